// A convolution, and its input gradient as convolutions.
#pragma once

#include <numeric>

#include "problems.h"

namespace torchconv {

// One convolution: (batch, groups * in, input) with (groups * out, in, kernel) gives (batch, groups * out, output).
struct Problem {
  int64_t rank, batch, groups, in, out;  // channels of one group
  Window window;

  Ints input_sizes() const { return tensor_sizes(batch, groups * in, window.input, rank); }
  Ints weight_sizes() const { return tensor_sizes(groups * out, in, window.kernel, rank); }
  Ints output_sizes() const { return tensor_sizes(batch, groups * out, window.output, rank); }
};

// The input gradient at i sums grad_output[o] * weight[k] over all o * stride - padding + k * dilation == i. For each residue
// ("phase") of i modulo the stride, the taps that satisfy it are every (stride / g)-th, g = gcd(stride, dilation), and
// consecutive ones meet outputs dilation / g apart: an ordinary convolution of stride 1 over grad_output, taps reversed.
struct Phase {
  int64_t count, taps, first_tap, tap_step, padding, dilation;
};

inline Phase phase_of(const Window& w, int i, int64_t residue) {
  const int64_t s = w.stride[i], d = w.dilation[i], g = std::gcd(s, d), reach = residue + w.padding[i];
  Phase phase{w.input[i] > residue ? (w.input[i] - residue - 1) / s + 1 : 0, 0, 0, -(s / g), 0, d / g};
  if (reach % g != 0) return phase;
  int64_t first = 0;
  while (first < std::min(s / g, w.kernel[i]) && (reach - first * d) % s != 0) first++;
  if (first == std::min(s / g, w.kernel[i])) return phase;
  phase.taps = (w.kernel[i] - 1 - first) / (s / g) + 1;
  phase.first_tap = first + (phase.taps - 1) * (s / g);
  phase.padding = (phase.taps - 1) * phase.dilation - (reach - first * d) / s;
  return phase;
}

// Calls f with the gather of each phase; it sets the input and the output.
template <class T, class F>
void for_each_phase(const Problem& p, const WeightView<T>& weight, const F& f) {
  const Window& w = p.window;
  const auto residues = [&](int i) { return std::min(w.stride[i], std::max<int64_t>(w.input[i], 1)); };
  for (int64_t r0 = 0; r0 < residues(0); r0++) {
    for (int64_t r1 = 0; r1 < residues(1); r1++) {
      for (int64_t r2 = 0; r2 < residues(2); r2++) {
        const Phase phase[RANK] = {phase_of(w, 0, r0), phase_of(w, 1, r1), phase_of(w, 2, r2)};
        GatherConv<T> g{p.batch, p.groups, p.out, p.in, {}, w.input, {r0, r1, r2}, w.stride, nullptr, weight, nullptr, nullptr};
        for (int i = 0; i < RANK; i++) {
          g.window.input[i] = w.output[i];
          g.window.output[i] = phase[i].count;
          g.window.kernel[i] = phase[i].taps;
          g.window.stride[i] = 1;
          g.window.padding[i] = phase[i].padding;
          g.window.dilation[i] = phase[i].dilation;
          g.weight.start += phase[i].first_tap * weight.step[i];
          g.weight.step[i] = phase[i].tap_step * weight.step[i];
        }
        f(g);
      }
    }
  }
}

// Whether the windows tile the input, so that each phase has one tap and as many positions.
inline bool windows_tile(const Window& w) {
  for (int i = 0; i < RANK; i++)
    if (w.kernel[i] != w.stride[i] || (w.kernel[i] > 1 && w.dilation[i] != 1) || w.padding[i] != 0 || w.input[i] != w.stride[i] * w.output[i])
      return false;
  return true;
}

// Where windows tile the input, the pixels under a line of the kernel lie side by side, as its taps do in a channels-last weight: both may
// be taken for channels of one pixel.
inline Problem with_taps_in_channels(Problem p) {
  p.in *= p.window.kernel[2];
  p.window.input[2] = p.window.output[2];
  p.window.kernel[2] = p.window.stride[2] = 1;
  return p;
}

// All phases as one gather where windows tile the input.
template <class T>
GatherConv<T> every_phase(const Problem& p, const WeightView<T>& weight) {
  const Extent ones{1, 1, 1}, origin{0, 0, 0}, &size = p.window.output;
  const Window window{size, size, ones, ones, origin, ones};
  return {p.batch, p.groups, p.out, p.in, window, p.window.input, origin, p.window.stride, nullptr, weight, nullptr, nullptr, true};
}

}  // namespace torchconv
