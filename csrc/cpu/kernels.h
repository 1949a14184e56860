// What the ops call: one table of kernels per instruction set.
#pragma once

#include <algorithm>
#include <tuple>

#include "../problems.h"

namespace torchconv {

// The pictures of a 3x3 or 5x5, stride 1 convolution: channels-last, (batch, height, width, channels). Padding may be less than none.
struct WinogradPictures {
  int64_t batch, in_channels, out_channels;
  int64_t in_height, in_width, out_height, out_width, pad_height, pad_width;
  int64_t dilation_height, dilation_width;
  int64_t taps;
  // Whether the kernel is a line, 1x3 or 1x5; and whether height and width have changed places, the pictures being (batch, width, height, channels).
  bool line, turned;
  // In three dimensions each of the batch is a stack of pictures, and the kernel one of such filters.
  int64_t in_depth, out_depth, pad_depth, dilation_depth, kernel_depth;
};

// How many tiles of `outs` outputs, as far apart as the dilation, begin within so many positions.
constexpr int64_t tiles_along(int64_t positions, int64_t dilation, int64_t outs) {
  return positions / (dilation * outs) * dilation + std::min(positions % (dilation * outs), dilation);
}

// Activations are of type S, all else is what they are computed in.
template <class S>
struct WinogradConv : WinogradPictures {
  const S* input;
  WeightView<wide<S>> weight;
  const wide<S>* bias;
  S* output;
  Activation<wide<S>> activation{};
  // In a fused block, all of whose channels are whole vectors, which rectifies, and whose pooling's windows are 2x2 and side by side. The
  // output: whether its 2x2 maxima are what is written; where to keep its signs and the maxima's positions, or null. The input:
  // the signs that it is still to be masked with, or the positions of the maxima if it is one for each of those; or null. Signs are the
  // bytes of rectify's words, the lowest first.
  bool pooled = false;
  uint8_t *output_signs = nullptr, *output_positions = nullptr;
  const uint8_t *input_signs = nullptr, *input_positions = nullptr;
};

// Its weight gradient; `grad_weight` is seen through the steps of a WeightView.
template <class S>
struct WinogradWeightGrad : WinogradPictures {
  const S *input, *grad_output;
  wide<S>* grad_weight;
  WeightView<wide<S>> view;
};

// As many matrices [rows][columns] as `batch` says, each transposed into [columns][rows].
template <class T>
using Transpose = void (*)(int64_t batch, int64_t rows, int64_t columns, const T* from, T* to);

template <class T>
struct ConvKernels {
  void (*gather_conv)(const std::vector<GatherConv<T>>& phases);
  // A weight as the panels that this and Winograd's multiply with, and how many output channels one has.
  void (*pack_weight)(const GatherConv<T>&, T* panels);
  int64_t panel_columns;
  void (*weight_grad)(const WeightGrad<T>&);
  // The same two for few input channels, of activations as they are; and whether that is faster.
  void (*row_conv)(const GatherConv<T>&, const Activations<const T>& input, const Activations<T>& output);
  void (*row_weight_grad)(const WeightGrad<T>&, const Activations<const T>& input, const Activations<const T>& grad_output);
  bool (*row_conv_serves)(const GatherConv<T>&);
  bool (*row_weight_grad_serves)(const WeightGrad<T>&);
  // The first for one tap and contiguous activations; and whether that is it.
  void (*pointwise_conv)(const GatherConv<T>&, const Activations<const T>& input, const Activations<T>& output);
  bool (*pointwise_conv_serves)(const GatherConv<T>&, bool channels_last);
  // The first two for few channels, of activations as they are; and whether that is faster.
  void (*plane_conv)(const GatherConv<T>&, const Activations<const T>& input, const Activations<T>& output);
  void (*plane_weight_grad)(const WeightGrad<T>&, const Activations<const T>& input, const Activations<const T>& grad_output);
  bool (*plane_conv_serves)(const GatherConv<T>&, bool channels_last);
  bool (*plane_weight_grad_serves)(const WeightGrad<T>&, bool channels_last);
};

template <class S>
struct WinogradKernels {
  void (*conv)(const WinogradConv<S>&);
  void (*weight_grad)(const WinogradWeightGrad<S>&);
};

// 16-bit numbers in float, and back.
template <class S>
struct NarrowKernels {
  void (*widen)(int64_t count, const S* from, wide<S>* to);
  void (*narrow)(int64_t count, const wide<S>* from, S* to);
};

// gather_conv and weight_grad of bfloat16 for a processor that multiplies it; whether that is it, and faster so than by Winograd's algorithm.
struct PairedKernels {
  void (*conv)(const GatherConv<BFloat16>&);
  bool (*conv_serves)(const GatherConv<BFloat16>&);
  void (*weight_grad)(const WeightGrad<BFloat16>&, const Activations<const BFloat16>& input);
  bool (*weight_grad_serves)(const WeightGrad<BFloat16>&);
  bool beats_winograd;
};

// gather_conv and weight_grad of one channel in and one out, of activations as they are stored; whether that is it.
template <class S>
struct DepthwiseKernels {
  void (*conv)(const GatherConv<S>&);
  bool (*conv_serves)(const GatherConv<S>&);
  void (*weight_grad)(const WeightGrad<S>&);
  bool (*weight_grad_serves)(const WeightGrad<S>&);
};

template <class T, class Position>
struct PoolKernels {
  void (*pool)(const Pool<T, Position>&);
  void (*gather)(const PoolMap<T, Position>&);
  void (*scatter)(const PoolMap<T, Position>&);
};

template <class T>
struct RectifyKernels {
  void (*rectify)(const Rectified<T>&);
  void (*rectify_input)(const RectifyInput<T>&);
};

// The rules of boxes, looked up: spans[i][o], and the count of position o along dimension i.
struct Boxes {
  Extent input, output;
  std::array<std::vector<Span>, RANK> spans;
};
using Divisor = std::array<std::vector<double>, RANK>;

template <class T>
struct BoxKernels {
  void (*sum)(const BoxSum<T>&, const Boxes&, const Divisor&);
  void (*max)(const BoxMax<T>&, const Boxes&);
};

template <class T>
struct ColumnKernels {
  void (*im2col)(const Columns<T>&);
  void (*col2im)(const Columns<T>&);
};

// Every kernel of one instruction set; std::get<PoolKernels<float, uint8_t>>(kernels()) is a table of it.
using Kernels =
    std::tuple<Transpose<float>, Transpose<double>, Transpose<BFloat16>, Transpose<Half>, ConvKernels<float>, ConvKernels<double>, WinogradKernels<float>, WinogradKernels<double>, WinogradKernels<BFloat16>,
               NarrowKernels<BFloat16>, NarrowKernels<Half>, PairedKernels, DepthwiseKernels<BFloat16>, ColumnKernels<float>, ColumnKernels<double>, ColumnKernels<BFloat16>,
               ColumnKernels<Half>, PoolKernels<float, uint8_t>, PoolKernels<float, int32_t>, PoolKernels<double, uint8_t>,
               PoolKernels<double, int32_t>, PoolKernels<BFloat16, uint8_t>, PoolKernels<BFloat16, int32_t>,
               PoolKernels<Half, uint8_t>, PoolKernels<Half, int32_t>, BoxKernels<float>, BoxKernels<double>,
               BoxKernels<BFloat16>, BoxKernels<Half>, RectifyKernels<float>, RectifyKernels<double>>;

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
extern const PairedKernels amx_kernels;
}
#endif

// The instruction set in use: the best that the processor has, unless another was chosen (isa.cpp).
const Kernels& kernels();

// Bytes of a core's L2 cache.
int64_t l2_cache();

}  // namespace torchconv
