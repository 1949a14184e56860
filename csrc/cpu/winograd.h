// Winograd's convolutions as tensors' problems ask for them.
#pragma once

#include "../phases.h"
#include "kernels.h"

namespace torchconv {

template <class T>
WinogradConv<T> winograd_conv(const Problem& p, const T* input, const WeightView<T>& weight, const T* bias, T* output) {
  const Window& w = p.window;
  return {{p.batch, p.in, p.out, w.input[1], w.input[2], w.output[1], w.output[2], w.padding[1], w.padding[2]}, input, weight, bias, output};
}

// The same convolution with channels exchanged, the taps turned around and the padding's complement.
template <class T>
WinogradConv<T> winograd_conv_input(const Problem& p, const T* grad_output, WeightView<T> weight, T* grad_input) {
  const Window& w = p.window;
  std::swap(weight.in_step, weight.out_step);
  for (int i = 1; i < RANK; i++) {
    weight.start += 2 * weight.step[i];
    weight.step[i] = -weight.step[i];
  }
  return {{p.batch, p.out, p.in, w.output[1], w.output[2], w.input[1], w.input[2], 2 - w.padding[1], 2 - w.padding[2]},
          grad_output, weight, nullptr, grad_input};
}

}  // namespace torchconv
