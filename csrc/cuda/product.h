// Matrix products: views of tensors as batches of matrices, and torch's own bmm.
#pragma once

#include "../tensors.h"

namespace torchconv::gpu {

// What is computed here is never recorded: autograd is Python's part.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

using Three = std::array<int64_t, 3>;

// (batch, rows, columns), `steps` apart, from element `offset` of a tensor on.
inline Tensor matrices(const Tensor& of, int64_t offset, const Three& sizes, const Three& steps) {
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(of.get(), 3, sizes.data(), steps.data(), offset, &view));
  return Tensor(view);
}

// result = a @ b
inline void multiply(const Tensor& result, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(result)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // whose reference would be lost
}

}  // namespace torchconv::gpu
