// Average pooling, over windows and adaptive, and its adjoint.
#pragma once

#include <algorithm>

#include "../problems.h"
#include "../tensors.h"

namespace torchconv {

// How an average pooling counts: what its windows are divided by.
struct Counting {
  bool ceil_mode, count_include_pad;
  std::optional<int64_t> divisor_override;
};

inline DivisorRule divisor_of(const Window& w, const Counting& counting) {
  return {{w, false, false}, counting.count_include_pad, counting.divisor_override};
}

inline Window avg_window(const char* op, int64_t rank, const Extent& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                  const Counting& counting) {
  Window w = window(op, rank, input, kernel_size, stride, padding, Ints(rank, 1));
  for (int i = 0; i < RANK; i++) {
    TORCHCONV_CHECK(w.input[i] > 0, op, ": the input has a spatial dimension of size 0");
    TORCHCONV_CHECK(2 * w.padding[i] <= w.kernel[i], op, ": padding ", w.padding[i], " is more than half of the kernel, ", w.kernel[i]);
  }
  TORCHCONV_CHECK(!counting.divisor_override || *counting.divisor_override != 0, op, ": divisor_override is 0");
  set_output(op, w, counting.ceil_mode);
  return w;
}

template <class Device>
Tensor box_sum(const char* op, Tensor input, Tensor output, const BoxRule& boxes, const DivisorRule& divisor, bool divide_inputs, bool channels_last) {
  const int64_t batch = input.size(0), channels = input.size(1);
  input = in_format(input, channels_last);
  dispatch<float, double, BFloat16, Half>(op, input, [&](auto zero) {
    using T = decltype(zero);
    Device::box_sum(BoxSum<T>{batch, channels, boxes, divisor, divide_inputs, channels_last, static_cast<const T*>(input.data_ptr()),
                              static_cast<T*>(output.data_ptr())});
  });
  return output;
}

// The result, unwritten. It comes before the boxes: a size that can't be had fails here.
inline Tensor pooled(const char* op, const Tensor& like, const Extent& spatial, bool channels_last) {
  const Ints sizes = tensor_sizes(like.size(0), like.size(1), spatial, like.dim() - 2);
  expect_format(op, sizes, channels_last);
  checked_volume(op, sizes);
  return empty(like, sizes, channels_last);
}

template <class Device>
Tensor avg_pool(Tensor input, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode, bool count_include_pad,
                std::optional<int64_t> divisor_override, bool channels_last) {
  const char* op = "avg_pool";
  const Device device(op, "input", input);
  const int64_t rank = spatial_rank(op, "input", input);
  const Counting counting{ceil_mode, count_include_pad, divisor_override};
  const Window w = avg_window(op, rank, spatial_sizes(op, "input", input), kernel_size, stride, padding, counting);
  const Tensor output = pooled(op, input, w.output, channels_last);
  if (output.numel() == 0) return output;
  return box_sum<Device>(op, input, output, {w, false, false}, divisor_of(w, counting), false, channels_last);
}

template <class Device>
Tensor avg_pool_input(Tensor grad_output, Ints input_size, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode,
                      bool count_include_pad, std::optional<int64_t> divisor_override, bool channels_last) {
  const char* op = "avg_pool_input";
  const Device device(op, "grad_output", grad_output);
  const int64_t rank = spatial_rank(op, "grad_output", grad_output);
  const Counting counting{ceil_mode, count_include_pad, divisor_override};
  const Window w = avg_window(op, rank, extent(op, "input_size", input_size, rank, 0, 1), kernel_size, stride, padding, counting);
  expect_sizes(op, "grad_output", grad_output, tensor_sizes(grad_output.size(0), grad_output.size(1), w.output, rank));
  const Tensor grad_input = pooled(op, grad_output, w.input, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  return box_sum<Device>(op, grad_output, grad_input, {w, false, true}, divisor_of(w, counting), true, channels_last);
}

template <class Device>
Tensor adaptive_avg_pool(Tensor input, Ints output_size, bool channels_last) {
  const char* op = "adaptive_avg_pool";
  const Device device(op, "input", input);
  const int64_t rank = spatial_rank(op, "input", input);
  const Extent from = spatial_sizes(op, "input", input), to = extent(op, "output_size", output_size, rank, 0, 1);
  TORCHCONV_CHECK(volume(from) > 0, op, ": the input has a spatial dimension of size 0");
  const Tensor output = pooled(op, input, to, channels_last);
  if (output.numel() == 0) return output;
  const BoxRule boxes{sizes_only(from, to), true, false};
  return box_sum<Device>(op, input, output, boxes, {boxes, false, std::nullopt}, false, channels_last);
}

template <class Device>
Tensor adaptive_avg_pool_input(Tensor grad_output, Ints input_size, bool channels_last) {
  const char* op = "adaptive_avg_pool_input";
  const Device device(op, "grad_output", grad_output);
  const int64_t rank = spatial_rank(op, "grad_output", grad_output);
  const Extent from = extent(op, "input_size", input_size, rank, 0, 1), to = spatial_sizes(op, "grad_output", grad_output);
  Tensor grad_input = pooled(op, grad_output, from, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  if (grad_output.numel() == 0) return torch::stable::fill_(grad_input, 0.0);  // of no outputs at all
  const Window w = sizes_only(from, to);
  return box_sum<Device>(op, grad_output, grad_input, {w, true, true}, {{w, true, false}, false, std::nullopt}, true, channels_last);
}

}  // namespace torchconv
