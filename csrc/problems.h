// What the ops ask of a device's kernels: plain pointers and geometry, no tensors.
#pragma once

#include <limits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "boxes.h"
#include "common.h"

namespace torchconv {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What values are compared, multiplied and added up in.
template <class S>
struct Wide {
  using type = S;
};
template <>
struct Wide<BFloat16> {
  using type = float;
};
template <>
struct Wide<Half> {
  using type = float;
};
template <class S>
using wide = typename Wide<S>::type;

// What becomes of a convolution's outputs before they are written: nothing, or they are brought into [0, most], as by ReLU and ReLU6.
template <class T>
struct Activation {
  bool rectifies = false;
  T most = std::numeric_limits<T>::infinity();
};

// A weight (out_channels, in_channels per group, taps...) seen as [tap][in][out], wherever its elements lie.
// Element (tap, in, out) is data[start + tap . step + in * in_step + out * out_step]; a group adds group_step.
template <class T>
struct WeightView {
  const T* data;
  int64_t start, in_step, out_step, group_step;
  Extent step;
  const T* packed = nullptr;  // the same as the kernels' own panels (cpu/packed_weight.h), where these are kept
};

// A convolution as a gather: channels-last `input`, and for each position of the window one row of output channels
//   output[origin + position * spacing] = bias + sum over taps and input channels.
// The forward pass has spacing 1; the input gradient of a strided convolution is one such gather per phase of the stride.
// Padding may be negative here. Channel counts are those of one group. Where each phase has one tap, number r of the kernel for phase r,
// and all have the same positions, they may be one gather: `window` and `origin` are the first one's.
template <class T>
struct GatherConv {
  int64_t batch, groups, in_channels, out_channels;
  Window window;
  Extent output_extent, origin, spacing;
  const T* input;
  WeightView<T> weight;
  const T* bias;  // may be null
  T* output;
  bool every_phase = false;
  Activation<wide<T>> activation{};
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

// ReLU in place, of values plus the bias of their channel, and no more than `most`: that of value i is i / channel_step % channels. `bias` and
// `signs` may be null.
template <class T>
struct Rectified {
  int64_t count, channels, channel_step;
  T* values;
  const T* bias;
  uint64_t* signs;
  wide<T> most;
};

template <class T>
struct RectifyInput {
  int64_t count;
  const T* grad_output;
  const uint64_t* signs;
  T* grad_input;
};

// output[o] = sum over the box of o. Average pooling divides the sums; its adjoint, over the boxes turned round, divides
// what goes into them.
template <class T>
struct BoxSum {
  int64_t batch, channels;
  BoxRule boxes;
  DivisorRule divisor;  // of outputs or inputs
  bool divide_inputs, channels_last;
  const T* input;
  T* output;
};

// Each box's maximum, and its place as an index into a plane of the input.
template <class T>
struct BoxMax {
  int64_t batch, channels;
  BoxRule boxes;
  bool channels_last;
  const T* input;
  T* output;
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

}  // namespace torchconv
