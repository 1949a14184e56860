// What the ops call: one table of kernels per instruction set. Plain pointers and geometry, no tensors.
#pragma once

#include <tuple>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common.h"

namespace torchconv {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A weight (out_channels, in_channels per group, taps...) seen as [tap][in][out], wherever its elements lie.
// Element (tap, in, out) is data[start + tap . step + in * in_step + out * out_step]; a group adds group_step.
template <class T>
struct WeightView {
  const T* data;
  int64_t start, in_step, out_step, group_step;
  Extent step;
};

// A convolution as a gather: channels-last `input`, and for each position of the window one row of output channels
//   output[origin + position * spacing] = bias + sum over taps and input channels.
// The forward pass has spacing 1; the input gradient of a strided convolution is one such gather per phase of the stride.
// Padding may be negative here. Channel counts are those of one group.
template <class T>
struct GatherConv {
  int64_t batch, groups, in_channels, out_channels;
  Window window;
  Extent output_extent, origin, spacing;
  const T* input;
  WeightView<T> weight;
  const T* bias;  // may be null
  T* output;
};

// The weight gradient: grad_weight[out, in, tap] = sum over positions of grad_output[position, out] * input[...].
// `grad_weight` is seen as [tap][in][out] through the steps of a WeightView, as above.
template <class T>
struct WeightGrad {
  int64_t batch, groups, in_channels, out_channels;
  Window window;
  const T *input, *grad_output;  // channels-last
  T* grad_weight;
  WeightView<T> view;
};

// Activations wherever they lie: element (n, c, position) is data[n * batch_step + c * channel_step + position . step].
template <class T>
struct Activations {
  T* data;
  int64_t batch_step, channel_step;
  Extent step;
};

// The pictures of a 3x3, stride 1 convolution: channels-last, (batch, height, width, channels). Padding may be anything from -1 on.
struct WinogradPictures {
  int64_t batch, in_channels, out_channels;
  int64_t in_height, in_width, out_height, out_width, pad_height, pad_width;
};

template <class T>
struct WinogradConv : WinogradPictures {
  const T* input;
  WeightView<T> weight;
  const T* bias;
  T* output;
};

// Its weight gradient; `grad_weight` is seen through the steps of a WeightView.
template <class T>
struct WinogradWeightGrad : WinogradPictures {
  const T *input, *grad_output;
  T* grad_weight;
  WeightView<T> view;
};

// Max pooling. `Position` is the index of the tap that won, the smallest unsigned type that holds them all.
template <class T, class Position>
struct Pool {
  int64_t batch, channels;
  Window window;
  bool channels_last;
  const T* input;
  T* output;
  Position* positions;  // may be null
};

// The two linear maps that saved positions define: gather picks from `full` what pooling picked from its input, scatter
// adds each pooled value up where it came from. A position that lies outside the input picks and adds nothing.
template <class T, class Position>
struct PoolMap {
  int64_t batch, channels;
  Window window;
  bool channels_last;
  const Position* positions;
  T* full;
  T* pooled;
};

// ReLU in place. `signs` may be null.
template <class T>
struct Rectified {
  int64_t count;
  T* values;
  uint64_t* signs;
};

template <class T>
struct RectifyInput {
  int64_t count;
  const T* grad_output;
  const uint64_t* signs;
  T* grad_input;
};

// Windows that are boxes: output position o of dimension i covers the inputs spans[i][o], which is never empty.
struct Span {
  int64_t begin, end;
};

struct Boxes {
  Extent input, output;
  std::array<std::vector<Span>, RANK> spans;
};

// What sums are divided by: position (d, h, w) by the product of its three entries.
using Divisor = std::array<std::vector<double>, RANK>;

// output[o] = sum over the box of o. Average pooling divides the sums; its adjoint, over the boxes turned round, divides
// what goes into them.
template <class T>
struct BoxSum {
  int64_t batch, channels;
  const Boxes& boxes;
  const Divisor& divisor;  // of outputs or inputs
  bool divide_inputs, channels_last;
  const T* input;
  T* output;
};

// The place of each box's maximum, as an index into a plane of the input.
template <class T>
struct BoxArgmax {
  int64_t batch, channels;
  const Boxes& boxes;
  bool channels_last;
  const T* input;
  int64_t* index;
};

template <class T>
struct Columns {
  int64_t batch, channels;
  Window window;
  int64_t batch_step, channel_step;  // of `image`, in elements
  Extent step;                       // of `image`
  T* image;
  T* columns;  // (batch, channels * taps, positions), contiguous
};

// As many matrices [rows][columns] as `batch` says, each transposed into [columns][rows].
template <class T>
using Transpose = void (*)(int64_t batch, int64_t rows, int64_t columns, const T* from, T* to);

template <class T>
struct ConvKernels {
  void (*gather_conv)(const GatherConv<T>&);
  void (*weight_grad)(const WeightGrad<T>&);
  void (*winograd_conv)(const WinogradConv<T>&);
  void (*winograd_weight_grad)(const WinogradWeightGrad<T>&);
  // The first for few input channels, of activations as they are; and whether that is faster.
  void (*row_conv)(const GatherConv<T>&, const Activations<const T>& input, const Activations<T>& output);
  bool (*row_conv_serves)(const GatherConv<T>&);
  // The first for one tap and contiguous activations; and whether that is it.
  void (*pointwise_conv)(const GatherConv<T>&, const Activations<const T>& input, const Activations<T>& output);
  bool (*pointwise_conv_serves)(const GatherConv<T>&, bool channels_last);
  // The same two maps for few channels, of activations as they are; and whether that is faster.
  void (*plane_conv)(const GatherConv<T>&, const Activations<const T>& input, const Activations<T>& output);
  void (*plane_weight_grad)(const WeightGrad<T>&, const Activations<const T>& input, const Activations<const T>& grad_output);
  bool (*plane_conv_serves)(const GatherConv<T>&, bool channels_last);
  bool (*plane_weight_grad_serves)(const WeightGrad<T>&, bool channels_last);
  Transpose<T> transpose;
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

template <class T>
struct BoxKernels {
  void (*sum)(const BoxSum<T>&);
  void (*argmax)(const BoxArgmax<T>&);
};

template <class T>
struct ColumnKernels {
  void (*im2col)(const Columns<T>&);
  void (*col2im)(const Columns<T>&);
};

// Every kernel of one instruction set; std::get<PoolKernels<float, uint8_t>>(kernels()) is a table of it.
using Kernels =
    std::tuple<ConvKernels<float>, ConvKernels<double>, ColumnKernels<float>, ColumnKernels<double>, ColumnKernels<BFloat16>,
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
}
#endif

// The instruction set in use: the best that the processor has, unless another was chosen (isa.cpp).
const Kernels& kernels();

}  // namespace torchconv
