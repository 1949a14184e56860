// Weights that are kept from call to call as the panels that the kernels multiply with (conv_kernel.h):
// [group][panel][tap and input channel][output channels of a panel], filled up with zeros.
#pragma once

#include "../tensors.h"
#include "kernels.h"

namespace torchconv {

template <class T>
Ints packed_sizes(const Problem& p) {
  const int64_t columns = std::get<ConvKernels<T>>(kernels()).panel_columns;
  return {p.groups, (p.out + columns - 1) / columns, volume(p.window.kernel) * p.in, columns};
}

// The panels of a problem's weight, or null where none are kept.
template <class T>
const T* packed_weight(const char* op, const Problem& p, const std::optional<Tensor>& packed) {
  if (!packed) return nullptr;
  TORCHCONV_CHECK(packed->is_cpu() && packed->is_contiguous(), op, ": packed is not a contiguous tensor on the CPU");
  TORCHCONV_CHECK(packed->scalar_type() == torch::headeronly::CppTypeToScalarType<T>::value, op, ": packed has dtype ",
                  torch::headeronly::toString(packed->scalar_type()), ", expected ",
                  torch::headeronly::toString(torch::headeronly::CppTypeToScalarType<T>::value));
  expect_sizes(op, "packed", *packed, packed_sizes<T>(p));
  return packed->numel() == 0 ? nullptr : static_cast<const T*>(packed->data_ptr());
}

}  // namespace torchconv
