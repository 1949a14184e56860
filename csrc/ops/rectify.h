// ReLU in place, and its gradient from a bit per element.
#pragma once

#include "../problems.h"
#include "../tensors.h"

namespace torchconv {

constexpr int64_t WORD_BITS = 64;

inline int64_t words(int64_t count) { return (count + WORD_BITS - 1) / WORD_BITS; }

// ReLU of the values, plus a bias a channel where there is one, in place, and no more than `max_value`. The bits are in the order of the values in memory.
template <class Device>
Tensor rectify_(Tensor values, std::optional<Tensor> bias, bool save_signs, std::optional<double> max_value) {
  const char* op = "rectify_";
  if (max_value) expect_positive(op, "max_value", *max_value);
  const Device device(op, "values", values);
  const bool nhwc = !values.is_contiguous();
  TORCHCONV_CHECK(!nhwc || (values.dim() >= 4 && is_channels_last(values)), op, ": values are neither contiguous nor channels-last");
  if (bias) {
    spatial_rank(op, "values", values);
    device.expect("bias", *bias);
    expect_same_dtype(op, "bias", *bias, values);
    expect_sizes(op, "bias", *bias, {values.size(1)});
    bias = as_contiguous(*bias);
  }
  Tensor signs = empty(values, {save_signs ? words(values.numel()) : 0}, false, ScalarType::Long);
  if (values.numel() == 0) return signs;
  const int64_t channels = values.dim() > 1 ? values.size(1) : 1;
  const int64_t channel_step = nhwc || values.dim() < 2 ? 1 : values.numel() / (values.size(0) * channels);
  Device::dispatch_rectify(op, values, [&](auto zero) {
    using T = decltype(zero);
    const auto most = static_cast<wide<T>>(max_value.value_or(std::numeric_limits<double>::infinity()));
    Device::rectify(Rectified<T>{values.numel(), channels, channel_step, static_cast<T*>(values.data_ptr()),
                                 bias ? static_cast<const T*>(bias->data_ptr()) : nullptr,
                                 save_signs ? static_cast<uint64_t*>(signs.data_ptr()) : nullptr, static_cast<wide<T>>(static_cast<T>(most))});
  });
  return signs;
}

template <class Device>
Tensor rectify_input(Tensor grad_output, Tensor signs, bool channels_last) {
  const char* op = "rectify_input";
  const Device device(op, "grad_output", grad_output);
  device.expect("signs", signs);
  TORCHCONV_CHECK(signs.scalar_type() == ScalarType::Long, op, ": signs has dtype ", torch::headeronly::toString(signs.scalar_type()),
                  ", expected ", torch::headeronly::toString(ScalarType::Long));
  expect_sizes(op, "signs", signs, {words(grad_output.numel())});
  const auto sizes = grad_output.sizes();
  expect_format(op, Ints(sizes.begin(), sizes.end()), channels_last);
  grad_output = in_format(grad_output, channels_last);
  signs = as_contiguous(signs);
  Tensor grad_input = empty(grad_output, Ints(sizes.begin(), sizes.end()), channels_last);
  Device::dispatch_rectify(op, grad_output, [&](auto zero) {
    using T = decltype(zero);
    Device::rectify_input(RectifyInput<T>{grad_output.numel(), static_cast<const T*>(grad_output.data_ptr()),
                                          static_cast<const uint64_t*>(signs.data_ptr()), static_cast<T*>(grad_input.data_ptr())});
  });
  return grad_input;
}

}  // namespace torchconv
