// im2col and col2im: the column matrix (batch, channels * taps, positions) of an image, and its adjoint.
#pragma once

#include "../problems.h"
#include "../tensors.h"

namespace torchconv {

template <class T>
Columns<T> columns_of(const Tensor& image, const Tensor& columns, const Window& w) {
  const auto steps = image.strides();
  return {image.size(0), image.size(1), w, steps[0], steps[1], strides_of(image), static_cast<T*>(image.data_ptr()),
          static_cast<T*>(columns.data_ptr())};
}

template <class Device, class... Types>
Tensor im2col(Tensor input, Ints kernel_size, Ints stride, Ints padding, Ints dilation) {
  const char* op = "im2col";
  const Device device(op, "input", input);
  const int64_t rank = spatial_rank(op, "input", input);
  Window w = window(op, rank, spatial_sizes(op, "input", input), kernel_size, stride, padding, dilation);
  set_output(op, w);
  const Ints kernel(w.kernel.begin(), w.kernel.end()), positions(w.output.begin(), w.output.end());
  const int64_t taps = checked_volume(op, kernel);
  const Ints sizes{input.size(0), checked_volume(op, {input.size(1), taps}), checked_volume(op, positions)};
  checked_volume(op, sizes);
  // Each pixel is read once for every tap: one copy costs less than as many reads apart.
  if (taps > 1) input = Device::contiguous(input);
  Tensor columns = empty(input, sizes, false);
  dispatch<Types...>(op, input, [&](auto zero) {
    using T = decltype(zero);
    Device::im2col(columns_of<T>(input, columns, w));
  });
  return columns;
}

template <class Device, class... Types>
Tensor col2im(Tensor columns, Ints output_size, Ints kernel_size, Ints stride, Ints padding, Ints dilation) {
  const char* op = "col2im";
  const Device device(op, "columns", columns);
  TORCHCONV_CHECK(columns.dim() == 3, op, ": columns has ", columns.dim(), " dimensions, expected 3 (batch, channels * taps, positions)");
  const int64_t rank = output_size.size();
  TORCHCONV_CHECK(1 <= rank && rank <= RANK, op, ": output_size has ", rank, " values, expected 1 to 3");
  Window w = window(op, rank, extent(op, "output_size", output_size, rank, 0, 1), kernel_size, stride, padding, dilation);
  set_output(op, w);
  const int64_t taps = checked_volume(op, Ints(w.kernel.begin(), w.kernel.end())), channels = columns.size(1) / taps;
  const int64_t positions = checked_volume(op, Ints(w.output.begin(), w.output.end()));
  expect_sizes(op, "columns", columns, {columns.size(0), channels * taps, positions});
  const Ints sizes = tensor_sizes(columns.size(0), channels, w.input, rank);
  checked_volume(op, sizes);
  columns = as_contiguous(columns);
  Tensor image = empty(columns, sizes, false);
  dispatch<Types...>(op, columns, [&](auto zero) {
    using T = decltype(zero);
    Device::col2im(columns_of<T>(image, columns, w));
  });
  return image;
}

}  // namespace torchconv
