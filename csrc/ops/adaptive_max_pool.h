// Adaptive max pooling: the maxima, and where they stand. Scattering back to there, and gathering, is indexing, which torch has.
#pragma once

#include "../problems.h"
#include "../tensors.h"

namespace torchconv {

template <class Device>
std::tuple<Tensor, Tensor> adaptive_max_pool(Tensor input, Ints output_size, bool channels_last) {
  const char* op = "adaptive_max_pool";
  const Device device(op, "input", input);
  const int64_t rank = spatial_rank(op, "input", input), batch = input.size(0), channels = input.size(1);
  const Extent from = spatial_sizes(op, "input", input), to = extent(op, "output_size", output_size, rank, 0, 1);
  TORCHCONV_CHECK(volume(from) > 0, op, ": the input has a spatial dimension of size 0");
  const Ints sizes = tensor_sizes(batch, channels, to, rank);
  expect_format(op, sizes, channels_last);
  const bool no_elements = checked_volume(op, sizes) == 0;
  Tensor output = empty(input, sizes, channels_last), index = empty(input, sizes, channels_last, ScalarType::Long);
  if (no_elements) return {output, index};
  input = in_format(input, channels_last);
  dispatch<float, double, BFloat16, Half>(op, input, [&](auto zero) {
    using T = decltype(zero);
    Device::box_max(BoxMax<T>{batch, channels, {sizes_only(from, to), true, false}, channels_last, static_cast<const T*>(input.data_ptr()),
                              static_cast<T*>(output.data_ptr()), static_cast<int64_t*>(index.data_ptr())});
  });
  return {output, index};
}

}  // namespace torchconv
