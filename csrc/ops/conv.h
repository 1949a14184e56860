// The three bilinear maps of convolution.
#pragma once

#include "../phases.h"
#include "../tensors.h"

namespace torchconv {

inline Problem problem(const char* op, int64_t rank, int64_t batch, int64_t in_channels, int64_t out_channels, int64_t groups,
                const Extent& input, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation) {
  TORCHCONV_CHECK(groups > 0, op, ": groups is ", groups, ", expected 1 or more");
  TORCHCONV_CHECK(in_channels % groups == 0 && out_channels % groups == 0, op, ": ", in_channels, " input and ", out_channels,
                  " output channels are not both divisible by groups=", groups);
  Problem p{rank, batch, groups, in_channels / groups, out_channels / groups, window(op, rank, input, kernel, stride, padding, dilation)};
  set_output(op, p.window);
  checked_volume(op, p.input_sizes());
  checked_volume(op, p.weight_sizes());
  checked_volume(op, p.output_sizes());
  return p;
}

inline Ints kernel_sizes(const char* op, const Tensor& weight) {
  spatial_rank(op, "weight", weight);
  const auto sizes = weight.sizes();
  return Ints(sizes.begin() + 2, sizes.end());
}

// A weight tensor as the forward pass reads it.
template <class T>
WeightView<T> weight_view(const Problem& p, const Tensor& weight) {
  const auto steps = weight.strides();
  return {static_cast<const T*>(weight.data_ptr()), 0, steps[1], steps[0], p.out * steps[0], strides_of(weight)};
}

// A tensor's elements where they are.
template <class T>
Activations<T> activations(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.strides()[0], t.strides()[1], strides_of(t)};
}

template <class Device>
Tensor conv(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints stride, Ints padding, Ints dilation, int64_t groups,
            Text algorithm, bool channels_last, std::optional<Tensor> packed, std::optional<double> max_value) {
  const char* op = "conv";
  if (max_value) expect_positive(op, "max_value", *max_value);
  const Device device(op, "input", input);
  device.expect("weight", weight);
  expect_same_dtype(op, "weight", weight, input);
  const int64_t rank = spatial_rank(op, "input", input);
  const Problem p = problem(op, rank, input.size(0), input.size(1), weight.size(0), groups, spatial_sizes(op, "input", input),
                            kernel_sizes(op, weight), stride, padding, dilation);
  expect_sizes(op, "weight", weight, p.weight_sizes());
  if (bias) {
    device.expect("bias", *bias);
    expect_same_dtype(op, "bias", *bias, input);
    expect_sizes(op, "bias", *bias, {p.groups * p.out});
    bias = as_contiguous(*bias);
  }
  expect_format(op, p.output_sizes(), channels_last);
  Tensor output = empty(input, p.output_sizes(), channels_last);
  if (output.numel() == 0) return output;
  Device::conv(op, algorithm, p, input, weight, packed, bias, max_value, output);
  return output;
}

template <class Device>
Tensor conv_input(Tensor grad_output, Tensor weight, Ints input_size, Ints stride, Ints padding, Ints dilation, int64_t groups,
                  Text algorithm, bool channels_last) {
  const char* op = "conv_input";
  const Device device(op, "grad_output", grad_output);
  device.expect("weight", weight);
  expect_same_dtype(op, "weight", weight, grad_output);
  const int64_t rank = spatial_rank(op, "grad_output", grad_output);
  TORCHCONV_CHECK(groups > 0, op, ": groups is ", groups, ", expected 1 or more");
  const int64_t in_channels = checked_volume(op, {weight.size(1), groups});
  const Problem p = problem(op, rank, grad_output.size(0), in_channels, weight.size(0), groups, extent(op, "input_size", input_size, rank, 0, 1),
                            kernel_sizes(op, weight), stride, padding, dilation);
  expect_sizes(op, "grad_output", grad_output, p.output_sizes());
  expect_format(op, p.input_sizes(), channels_last);
  Tensor grad_input = empty(grad_output, p.input_sizes(), channels_last);
  if (grad_input.numel() == 0) return grad_input;
  Device::conv_input(op, algorithm, p, grad_output, weight, grad_input);
  return grad_input;
}

template <class Device>
Tensor conv_weight(Tensor input, Tensor grad_output, Ints kernel_size, Ints stride, Ints padding, Ints dilation, int64_t groups,
                   Text algorithm, bool channels_last) {
  const char* op = "conv_weight";
  const Device device(op, "input", input);
  device.expect("grad_output", grad_output);
  expect_same_dtype(op, "grad_output", grad_output, input);
  const int64_t rank = spatial_rank(op, "input", input);
  spatial_rank(op, "grad_output", grad_output);
  const Problem p = problem(op, rank, input.size(0), input.size(1), grad_output.size(1), groups, spatial_sizes(op, "input", input), kernel_size,
                            stride, padding, dilation);
  expect_sizes(op, "grad_output", grad_output, p.output_sizes());
  expect_format(op, p.weight_sizes(), channels_last);
  Tensor grad_weight = empty(input, p.weight_sizes(), channels_last);
  if (grad_weight.numel() == 0) return grad_weight;
  Device::conv_weight(op, algorithm, p, input, grad_output, grad_weight);
  return grad_weight;
}

}  // namespace torchconv
