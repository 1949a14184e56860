// Convolutions of one channel to a group, in or out, by their definition: their matrices would be vectors.
#pragma once

#include "columns.h"

namespace torchconv::gpu {

// Where a gather's results belong: position o of the window is origin + o * spacing of the output.
template <class Index>
struct Target {
  Strides<Index> strides;
  Index origin[RANK], spacing[RANK];

  template <class T>
  Target(const Activations<T>& to, const GatherConv<T>& g)
      : strides(to.batch_step, to.channel_step, to.step),
        origin{static_cast<Index>(g.origin[0]), static_cast<Index>(g.origin[1]), static_cast<Index>(g.origin[2])},
        spacing{static_cast<Index>(g.spacing[0]), static_cast<Index>(g.spacing[1]), static_cast<Index>(g.spacing[2])} {}

  TORCHCONV_HD Index of(const Coordinates<Index>& o) const {
    return strides.of(o.batch, o.channel, origin[0] + o.at[0] * spacing[0], origin[1] + o.at[1] * spacing[1], origin[2] + o.at[2] * spacing[2]);
  }
};

template <class T, class Index>
struct Direct {
  Sliding<Index> w;
  Order<Index> order;  // of the results
  Target<Index> target;
  Strides<Index> strides;
  WeightPlace<T, Index> weight;
  const T *input, *bias;
  T* output;

  TORCHCONV_HD void operator()(Index i) const {
    const Coordinates<Index> o = order.of(i);
    const Index in_channels = weight.entries.in_channels, first = o.channel / weight.out_channels * in_channels;
    wide<T> sum(0);
    for (Index in = 0; in < in_channels; in++) {
      Index tap = 0;
      for (Index kd = 0; kd < w.kernel[0]; kd++)
        for (Index kh = 0; kh < w.kernel[1]; kh++)
          for (Index kw = 0; kw < w.kernel[2]; kw++, tap++) {
            const Index d = o.at[0] * w.stride[0] - w.padding[0] + kd * w.dilation[0];
            const Index h = o.at[1] * w.stride[1] - w.padding[1] + kh * w.dilation[1];
            const Index x = o.at[2] * w.stride[2] - w.padding[2] + kw * w.dilation[2];
            if (d < 0 || d >= w.input[0] || h < 0 || h >= w.input[1] || x < 0 || x >= w.input[2]) continue;
            sum += static_cast<wide<T>>(input[strides.of(o.batch, first + in, d, h, x)]) *
                   static_cast<wide<T>>(weight.view.data[weight.of(o.channel, in, tap)]);
          }
    }
    if (bias != nullptr) sum += static_cast<wide<T>>(bias[o.channel]);
    output[target.of(o)] = static_cast<T>(sum);
  }
};

// The weight gradient: sums over `length` positions each, [part][filter][in, tap].
template <class T, class Index>
struct DirectWeight {
  Sliding<Index> w;
  Index weights, in_channels, out_channels, total, length;  // total: positions of all pictures
  Strides<Index> input_strides, grad_strides;
  const T *input, *grad_output;
  wide<T>* sums;

  TORCHCONV_HD void operator()(Index i) const {
    const Index weight = i % weights, part = i / weights, taps = volume(w.kernel), positions = volume(w.output);
    const Index tap = weight % taps, in = weight / taps % in_channels, filter = weight / taps / in_channels;
    const Index channel = filter / out_channels * in_channels + in;
    const Index offset[RANK] = {tap / w.kernel[2] / w.kernel[1] * w.dilation[0] - w.padding[0],
                                tap / w.kernel[2] % w.kernel[1] * w.dilation[1] - w.padding[1], tap % w.kernel[2] * w.dilation[2] - w.padding[2]};
    wide<T> sum(0);
    for (Index q = part * length; q < smaller<Index>((part + 1) * length, total); q++) {
      const Index n = q / positions, od = q / w.output[2] / w.output[1] % w.output[0], oh = q / w.output[2] % w.output[1], ow = q % w.output[2];
      const Index d = od * w.stride[0] + offset[0], h = oh * w.stride[1] + offset[1], x = ow * w.stride[2] + offset[2];
      if (d < 0 || d >= w.input[0] || h < 0 || h >= w.input[1] || x < 0 || x >= w.input[2]) continue;
      sum += static_cast<wide<T>>(input[input_strides.of(n, channel, d, h, x)]) *
             static_cast<wide<T>>(grad_output[grad_strides.of(n, filter, od, oh, ow)]);
    }
    sums[i] = sum;
  }
};

}  // namespace torchconv::gpu
