// Tensors as the kernels want them: dense, and in a known order.
#pragma once

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

inline Tensor empty(const Tensor& like, const Ints& sizes, bool channels_last, std::optional<ScalarType> dtype = std::nullopt) {
  using torch::headeronly::MemoryFormat;
  const MemoryFormat format = !channels_last      ? MemoryFormat::Contiguous
                              : sizes.size() == 4 ? MemoryFormat::ChannelsLast
                                                  : MemoryFormat::ChannelsLast3d;
  const Tensor result = torch::stable::empty(sizes, dtype.value_or(like.scalar_type()), std::nullopt, like.device(), std::nullopt, format);
  ask_for_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

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
