// Winograd's convolutions as tensors' problems ask for them.
#pragma once

#include <algorithm>

#include "../phases.h"
#include "../tensors.h"
#include "kernels.h"

namespace torchconv {

// How a kernel has three taps, or five, along two dimensions or one: a square or a row, of any depth; a column, also of any depth, which is a row of
// the turned picture; or a line through a stack, all of whose pixels are a column of the turned picture then.
enum class WinogradForm { none, square, row, column, through };

inline WinogradForm winograd_form(const Window& w) {
  const auto [depth, height, width] = w.kernel;
  if (w.stride != Extent{1, 1, 1}) return WinogradForm::none;
  const auto serves = [](int64_t taps) { return taps == 3 || taps == 5; };
  if (serves(height) && width == height) return WinogradForm::square;
  if (serves(width) && height == 1) return WinogradForm::row;
  if (serves(height) && width == 1) return WinogradForm::column;
  const bool through = serves(depth) && height == 1 && width == 1 && w.padding[1] == 0 && w.padding[2] == 0;
  return through ? WinogradForm::through : WinogradForm::none;
}

// What a window has for each dimension, in the order that the tiles want: the taps of a line are along the last one.
inline Extent in_order(WinogradForm form, const Extent& e) {
  if (form == WinogradForm::column) return {e[0], e[2], e[1]};
  if (form == WinogradForm::through) return {e[1], e[2], e[0]};
  return e;
}
inline Extent size_in_order(WinogradForm form, const Extent& e) {
  return form == WinogradForm::through ? Extent{1, e[1] * e[2], e[0]} : in_order(form, e);
}
template <class T>
WeightView<T> in_order(WinogradForm form, WeightView<T> view) {
  view.step = in_order(form, view.step);
  return view;
}

inline WinogradPictures winograd_pictures(const Problem& p) {
  const WinogradForm form = winograd_form(p.window);
  const Extent in = size_in_order(form, p.window.input), out = size_in_order(form, p.window.output);
  const Extent kernel = in_order(form, p.window.kernel), padding = in_order(form, p.window.padding), dilation = in_order(form, p.window.dilation);
  const bool turned = form == WinogradForm::column || form == WinogradForm::through;
  return {p.batch, p.in, p.out, in[1], in[2], out[1], out[2], padding[1], padding[2], dilation[1], dilation[2], kernel[2],
          kernel[1] == 1, turned, in[0], out[0], padding[0], dilation[0], kernel[0]};
}

// Of the input's gradient: channels and sizes exchanged, and the padding's complement.
inline WinogradPictures winograd_input_pictures(const Problem& p) {
  WinogradPictures of = winograd_pictures(p);
  std::swap(of.in_channels, of.out_channels);
  std::swap(of.in_height, of.out_height);
  std::swap(of.in_width, of.out_width);
  std::swap(of.in_depth, of.out_depth);
  of.pad_height = (of.line ? 0 : of.taps - 1) * of.dilation_height - of.pad_height;
  of.pad_width = (of.taps - 1) * of.dilation_width - of.pad_width;
  of.pad_depth = (of.kernel_depth - 1) * of.dilation_depth - of.pad_depth;
  return of;
}

// How many pairs of an output and a tap meet an input, not padding, along one dimension.
inline int64_t met(int64_t input, int64_t output, int64_t taps, int64_t padding, int64_t dilation) {
  int64_t pairs = 0;
  for (int64_t tap = 0; tap < taps; tap++) {
    const int64_t place = tap * dilation - padding;
    pairs += std::max<int64_t>(0, std::min(output, input - place) - std::max<int64_t>(0, -place));
  }
  return pairs;
}

// Whether it takes three fifths of the multiplications, or fewer, with either size of tiles: much of them may jut out of the picture, and
// padding is not multiplied otherwise.
inline bool winograd_saves(const WinogradPictures& p) {
  const auto products = [&](int64_t outs) {
    const int64_t points = outs + p.taps - 1, down = p.line ? p.out_height : tiles_along(p.out_height, p.dilation_height, outs) * points;
    return down * tiles_along(p.out_width, p.dilation_width, outs) * points;
  };
  const int64_t least = std::min(products(7 - p.taps), products(9 - p.taps));
  const int64_t down = met(p.in_height, p.out_height, p.line ? 1 : p.taps, p.pad_height, p.dilation_height);
  return 5 * least <= 3 * down * met(p.in_width, p.out_width, p.taps, p.pad_width, p.dilation_width);
}

template <class S>
WinogradConv<S> winograd_conv(const Problem& p, const S* input, const WeightView<wide<S>>& weight, const wide<S>* bias, S* output) {
  return {winograd_pictures(p), input, in_order(winograd_form(p.window), weight), bias, output};
}

// The taps are turned around.
template <class S>
WinogradConv<S> winograd_conv_input(const Problem& p, const S* grad_output, WeightView<wide<S>> weight, S* grad_input) {
  std::swap(weight.in_step, weight.out_step);
  for (int i = 0; i < RANK; i++) {
    weight.start += (p.window.kernel[i] - 1) * weight.step[i];
    weight.step[i] = -weight.step[i];
  }
  return {winograd_input_pictures(p), grad_output, in_order(winograd_form(p.window), weight), nullptr, grad_input};
}

// The weight's gradient; `view` are the steps of `grad_weight`.
template <class S>
WinogradWeightGrad<S> winograd_conv_weight(const Problem& p, const S* input, const S* grad_output, wide<S>* grad_weight,
                                           const WeightView<wide<S>>& view) {
  return {winograd_pictures(p), input, grad_output, grad_weight, in_order(winograd_form(p.window), view)};
}

inline bool winograd_serves(const Problem& p) { return p.groups == 1 && p.in > 0 && p.out > 0 && winograd_form(p.window) != WinogradForm::none; }

// Where Winograd's transforms cost more than its fewer products save, or float64 is wanted exact, im2col is the better one.
constexpr int64_t WINOGRAD_CHANNELS = 32, WINOGRAD_LINE_CHANNELS = 64;
constexpr int64_t WINOGRAD_POSITIONS = 48;          // three tiles and more
constexpr int64_t WINOGRAD_WEIGHT_POSITIONS = 128;  // for the weight's gradient

// `pictures` are those of the result, and `least` how many positions it has at least where it pays.
template <class T>
bool use_winograd(const char* op, const std::string& algorithm, const Problem& p, const WinogradPictures& pictures, int64_t least) {
  TORCHCONV_CHECK(algorithm == "auto" || algorithm == "im2col" || algorithm == "winograd", op, ": algorithm is '", algorithm,
                  "', expected auto, im2col or winograd");
  if (algorithm == "winograd")
    TORCHCONV_CHECK(winograd_serves(p), op,
                    ": algorithm 'winograd' serves kernels of three or five taps along one dimension or two, of any depth, stride 1 and groups 1; got kernel ",
                    to_string(Ints(p.window.kernel.begin(), p.window.kernel.end())), ", stride ",
                    to_string(Ints(p.window.stride.begin(), p.window.stride.end())), ", groups ", p.groups);
  const int64_t positions = p.batch * pictures.out_depth * pictures.out_height * pictures.out_width;
  if (algorithm != "auto") return algorithm == "winograd" && positions > 0;
  if (!std::is_same_v<T, float> || !winograd_serves(p) || positions < least) return false;
  const bool usual = !pictures.line && pictures.taps == 3 && pictures.dilation_height == 1 && pictures.dilation_width == 1;
  const int64_t channels = pictures.line ? WINOGRAD_LINE_CHANNELS : WINOGRAD_CHANNELS;
  return std::min(p.in, p.out) >= channels && (usual || winograd_saves(pictures));
}

}  // namespace torchconv
