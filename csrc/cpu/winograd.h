// Winograd's convolutions as tensors' problems ask for them.
#pragma once

#include "../phases.h"
#include "kernels.h"

namespace torchconv {

template <class S>
WinogradConv<S> winograd_conv(const Problem& p, const S* input, const WeightView<wide<S>>& weight, const wide<S>* bias, S* output) {
  const Window& w = p.window;
  return {{p.batch, p.in, p.out, w.input[1], w.input[2], w.output[1], w.output[2], w.padding[1], w.padding[2], w.input[0],
           w.output[0], w.padding[0], w.kernel[0]},
          input, weight, bias, output};
}

// The same convolution with channels exchanged, the taps turned around and the padding's complement.
template <class S>
WinogradConv<S> winograd_conv_input(const Problem& p, const S* grad_output, WeightView<wide<S>> weight, S* grad_input) {
  const Window& w = p.window;
  std::swap(weight.in_step, weight.out_step);
  for (int i = 0; i < RANK; i++) {
    weight.start += (w.kernel[i] - 1) * weight.step[i];
    weight.step[i] = -weight.step[i];
  }
  return {{p.batch, p.out, p.in, w.output[1], w.output[2], w.input[1], w.input[2], 2 - w.padding[1], 2 - w.padding[2], w.output[0],
           w.input[0], w.kernel[0] - 1 - w.padding[0], w.kernel[0]},
          grad_output, weight, nullptr, grad_input};
}

// The weight's gradient; `view` are the steps of `grad_weight`.
template <class S>
WinogradWeightGrad<S> winograd_conv_weight(const Problem& p, const S* input, const S* grad_output, wide<S>* grad_weight,
                                           const WeightView<wide<S>>& view) {
  const Window& w = p.window;
  return {{p.batch, p.in, p.out, w.input[1], w.input[2], w.output[1], w.output[2], w.padding[1], w.padding[2], w.input[0],
           w.output[0], w.padding[0], w.kernel[0]},
          input, grad_output, grad_weight, view};
}

}  // namespace torchconv
