// Max pooling, and the two linear maps of its derivative: gather at, and scatter to, the positions that won.
#pragma once

#include "../problems.h"
#include "../tensors.h"

namespace torchconv {

constexpr int64_t LARGEST_BYTE_WINDOW = 256;

inline ScalarType position_dtype(const Window& w) { return volume(w.kernel) <= LARGEST_BYTE_WINDOW ? ScalarType::Byte : ScalarType::Int; }

inline Window pool_window(const char* op, int64_t rank, const Extent& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                   const Ints& dilation, bool ceil_mode) {
  Window w = window(op, rank, input, kernel_size, stride, padding, dilation);
  TORCHCONV_CHECK(checked_volume(op, kernel_size) < LARGEST, op, ": kernel_size ", to_string(kernel_size), " has 2**31 taps or more");
  for (int i = 0; i < RANK; i++) {
    const int64_t span = w.dilation[i] * (w.kernel[i] - 1) + 1;
    TORCHCONV_CHECK(2 * w.padding[i] <= span, op, ": padding ", w.padding[i], " is more than half of the kernel's span, ", span);
  }
  set_output(op, w, ceil_mode);
  return w;
}

// Calls f with a value of the tensor's type and one of the positions' type.
template <class F>
void dispatch_pool(const char* op, const Tensor& t, ScalarType positions, const F& f) {
  dispatch<float, double, BFloat16, Half>(op, t, [&](auto zero) {
    if (positions == ScalarType::Byte)
      f(zero, uint8_t{});
    else
      f(zero, int32_t{});
  });
}

template <class Device>
std::tuple<Tensor, Tensor> max_pool(Tensor input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode,
                                    bool save_positions, bool channels_last) {
  const char* op = "max_pool";
  const Device device(op, "input", input);
  const int64_t rank = spatial_rank(op, "input", input), batch = input.size(0), channels = input.size(1);
  const Window w = pool_window(op, rank, spatial_sizes(op, "input", input), kernel_size, stride, padding, dilation, ceil_mode);
  const Ints sizes = tensor_sizes(batch, channels, w.output, rank);
  expect_format(op, sizes, channels_last);
  checked_volume(op, sizes);
  input = in_format(input, channels_last);
  Tensor output = empty(input, sizes, channels_last);
  Tensor positions = save_positions ? empty(input, sizes, channels_last, position_dtype(w)) : empty(input, {0}, false, position_dtype(w));
  dispatch_pool(op, input, position_dtype(w), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Position = decltype(index);
    Device::max_pool(Pool<T, Position>{batch, channels, w, channels_last, static_cast<const T*>(input.data_ptr()), static_cast<T*>(output.data_ptr()),
               save_positions ? static_cast<Position*>(positions.data_ptr()) : nullptr});
  });
  return {output, positions};
}

// The number of windows is the positions' own; it must be what the geometry gives, with or without ceil_mode.
inline Window map_window(const char* op, const Tensor& positions, const Extent& input, const Ints& kernel_size, const Ints& stride,
                  const Ints& padding, const Ints& dilation) {
  const int64_t rank = spatial_rank(op, "positions", positions);
  const Extent output = spatial_sizes(op, "positions", positions);
  Window w = pool_window(op, rank, input, kernel_size, stride, padding, dilation, true);
  for (int i = 0; i < RANK; i++) {
    const bool fits = w.dilation[i] * (w.kernel[i] - 1) < w.input[i] + 2 * w.padding[i];
    TORCHCONV_CHECK(output[i] == w.output[i] || (fits && output[i] == torchconv::positions(op, w, i)), op, ": positions has ", output[i],
                    " windows along a dimension of size ", input[i], ", which this geometry doesn't give");
  }
  w.output = output;
  TORCHCONV_CHECK(positions.scalar_type() == position_dtype(w), op, ": positions has dtype ",
                  torch::headeronly::toString(positions.scalar_type()), ", expected ", torch::headeronly::toString(position_dtype(w)));
  return w;
}

template <class Device>
Tensor max_pool_gather(Tensor input, Tensor positions, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool channels_last) {
  const char* op = "max_pool_gather";
  const Device device(op, "input", input);
  const int64_t rank = spatial_rank(op, "input", input), batch = input.size(0), channels = input.size(1);
  device.expect("positions", positions);
  const Window w = map_window(op, positions, spatial_sizes(op, "input", input), kernel_size, stride, padding, dilation);
  const Ints sizes = tensor_sizes(batch, channels, w.output, rank);
  expect_sizes(op, "positions", positions, sizes);
  expect_format(op, sizes, channels_last);
  input = in_format(input, channels_last);
  positions = in_format(positions, channels_last);
  Tensor output = empty(input, sizes, channels_last);
  dispatch_pool(op, input, positions.scalar_type(), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Position = decltype(index);
    Device::max_pool_gather(PoolMap<T, Position>{batch, channels, w, channels_last, static_cast<const Position*>(positions.data_ptr()),
                                                  static_cast<T*>(input.data_ptr()), static_cast<T*>(output.data_ptr())});
  });
  return output;
}

template <class Device>
Tensor max_pool_scatter(Tensor grad_output, Tensor positions, Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                        Ints dilation, bool channels_last) {
  const char* op = "max_pool_scatter";
  const Device device(op, "grad_output", grad_output);
  const int64_t rank = spatial_rank(op, "grad_output", grad_output), batch = grad_output.size(0), channels = grad_output.size(1);
  device.expect("positions", positions);
  const Window w =
      map_window(op, positions, extent(op, "input_size", input_size, rank, 0, 1), kernel_size, stride, padding, dilation);
  const Ints output_sizes = tensor_sizes(batch, channels, w.output, rank), sizes = tensor_sizes(batch, channels, w.input, rank);
  expect_sizes(op, "positions", positions, output_sizes);
  expect_sizes(op, "grad_output", grad_output, output_sizes);
  expect_format(op, sizes, channels_last);
  checked_volume(op, sizes);
  grad_output = in_format(grad_output, channels_last);
  positions = in_format(positions, channels_last);
  Tensor grad_input = empty(grad_output, sizes, channels_last);
  dispatch_pool(op, grad_output, positions.scalar_type(), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Position = decltype(index);
    Device::max_pool_scatter(PoolMap<T, Position>{batch, channels, w, channels_last, static_cast<const Position*>(positions.data_ptr()),
                  static_cast<T*>(grad_input.data_ptr()), static_cast<T*>(grad_output.data_ptr())});
  });
  return grad_input;
}

}  // namespace torchconv
