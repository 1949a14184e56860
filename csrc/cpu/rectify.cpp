// ReLU in place, and its gradient from a bit per element.
#include "kernels.h"
#include "tensors.h"

namespace torchconv {
namespace {

constexpr int64_t WORD_BITS = 64;

int64_t words(int64_t count) { return (count + WORD_BITS - 1) / WORD_BITS; }

// The bits are in the order of the values in memory.
Tensor rectify_(Tensor values, bool save_signs) {
  const char* op = "rectify_";
  expect_cpu(op, "values", values);
  TORCHCONV_CHECK(values.is_contiguous() || (values.dim() >= 4 && is_channels_last(values)), op, ": values are neither contiguous nor channels-last");
  Tensor signs = empty(values, {save_signs ? words(values.numel()) : 0}, false, ScalarType::Long);
  dispatch<float, double>(op, values, [&](auto zero) {
    using T = decltype(zero);
    std::get<RectifyKernels<T>>(kernels())
        .rectify({values.numel(), static_cast<T*>(values.data_ptr()), save_signs ? static_cast<uint64_t*>(signs.data_ptr()) : nullptr});
  });
  return signs;
}

Tensor rectify_input(Tensor grad_output, Tensor signs, bool channels_last) {
  const char* op = "rectify_input";
  expect_cpu(op, "grad_output", grad_output);
  expect_cpu(op, "signs", signs);
  TORCHCONV_CHECK(signs.scalar_type() == ScalarType::Long, op, ": signs has dtype ", torch::headeronly::toString(signs.scalar_type()),
                  ", expected ", torch::headeronly::toString(ScalarType::Long));
  expect_sizes(op, "signs", signs, {words(grad_output.numel())});
  const auto sizes = grad_output.sizes();
  expect_format(op, Ints(sizes.begin(), sizes.end()), channels_last);
  grad_output = in_format(grad_output, channels_last);
  signs = as_contiguous(signs);
  Tensor grad_input = empty(grad_output, Ints(sizes.begin(), sizes.end()), channels_last);
  dispatch<float, double>(op, grad_output, [&](auto zero) {
    using T = decltype(zero);
    std::get<RectifyKernels<T>>(kernels())
        .rectify_input({grad_output.numel(), static_cast<const T*>(grad_output.data_ptr()), static_cast<const uint64_t*>(signs.data_ptr()),
                        static_cast<T*>(grad_input.data_ptr())});
  });
  return grad_input;
}

}  // namespace
}  // namespace torchconv

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("rectify_", TORCH_BOX(&torchconv::rectify_));
  m.impl("rectify_input", TORCH_BOX(&torchconv::rectify_input));
}
