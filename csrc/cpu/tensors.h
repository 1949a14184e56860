// Tensors as the kernels want them: dense, and in a known order.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <optional>

#include "kernels.h"
#include "scratch.h"

namespace torchconv {

// True where the channels lie next to each other and the rest in order. A contiguous tensor that is both (one channel, or
// one position) counts as channels-last as well: either reading is right.
inline bool is_channels_last(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  const auto fits = [&](int64_t d) {
    const bool ok = sizes[d] == 1 || strides[d] == expected;
    expected *= sizes[d];
    return ok;
  };
  if (!fits(1)) return false;
  for (int64_t d = t.dim() - 1; d >= 2; d--)
    if (!fits(d)) return false;
  return fits(0);
}

// Straight from the allocator: a call through the dispatcher takes as long as a small convolution.
inline Tensor empty(const Tensor& like, const Ints& sizes, bool channels_last, std::optional<ScalarType> dtype = std::nullopt) {
  const int64_t rank = sizes.size();
  Ints strides(rank);
  int64_t step = 1;
  const auto lay = [&](int64_t d) {
    strides[d] = step;
    step *= channels_last ? sizes[d] : std::max<int64_t>(sizes[d], 1);  // as torch does it
  };
  if (channels_last) lay(1);
  for (int64_t d = rank - 1; d >= 0; d--)
    if (d != 1 || !channels_last) lay(d);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.data(), strides.data(), static_cast<int32_t>(dtype.value_or(like.scalar_type())),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  const Tensor result(handle);
  ask_for_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Brings a tensor into the memory format that its problem is solved in.
inline Tensor in_format(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  const auto sizes = t.sizes();
  Tensor copy = empty(t, Ints(sizes.begin(), sizes.end()), channels_last);
  return torch::stable::copy_(copy, t);
}

inline void expect_format(const char* op, const Ints& sizes, bool channels_last) {
  TORCHCONV_CHECK(!channels_last || sizes.size() >= 4, op, ": channels_last is for two or three spatial dimensions");
}

inline Extent strides_of(const Tensor& t) {
  Extent step{0, 0, 0};
  for (int64_t i = 2; i < t.dim(); i++) step[RANK - t.dim() + i] = t.strides()[i];
  return step;
}

// Calls f with a value of the tensor's type; an error names the op where it takes no such type.
template <class... Types, class F>
void dispatch(const char* op, const Tensor& t, const F& f) {
  const ScalarType dtype = t.scalar_type();
  const bool found = ((dtype == torch::headeronly::CppTypeToScalarType<Types>::value ? (f(Types{}), true) : false) || ...);
  TORCHCONV_CHECK(found, op, ": no kernel for dtype ", torch::headeronly::toString(dtype));
}

}  // namespace torchconv
