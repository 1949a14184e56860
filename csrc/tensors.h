// Tensors as the kernels want them: dense, and in a known order.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <optional>

#include "common.h"
#include "cpu/blocks.h"

// torch 2.11's; null in 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                                               int64_t storage_offset, int32_t dtype, int32_t device_type,
                                                               int32_t device_index, AtenTensorHandle* result, int32_t layout,
                                                               const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
                                                               void (*deleter)(void* data, void* context), void* context);

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

// A tensor in a large block, or null where there is none to be had, it isn't large, or torch is older than 2.11. Its storage can't be
// resized. A sanitizer watches over the heap alone.
inline AtenTensorHandle in_block([[maybe_unused]] const Ints& sizes, [[maybe_unused]] const Ints& strides, [[maybe_unused]] int32_t type) {
  AtenTensorHandle handle = nullptr;
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  size_t bytes = aoti_torch_dtype_element_size(type);
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return nullptr;
  if (torch_from_blob == nullptr || bytes < Blocks::SMALLEST) return nullptr;
  void* const data = Blocks::take(bytes, bytes);
  if (data == nullptr) return nullptr;
  const auto give = [](void* block, void* size) { Blocks::give(block, reinterpret_cast<size_t>(size)); };
  TORCH_ERROR_CODE_CHECK(torch_from_blob(data, sizes.size(), sizes.data(), strides.data(), 0, type, aoti_torch_device_type_cpu(), -1, &handle,
                                         aoti_torch_layout_strided(), nullptr, 0, give, reinterpret_cast<void*>(bytes)));
#endif
  return handle;
}

struct Place {
  int32_t device_type = aoti_torch_device_type_cpu(), index = 0;
};

inline Place place_of(const Tensor& t) {
  Place place;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &place.device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &place.index));
  return place;
}

// Straight from the allocator: a call through the dispatcher takes as long as a small convolution.
inline Tensor empty(const Ints& sizes, ScalarType dtype, bool channels_last, Place place = {}) {
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
  const auto type = static_cast<int32_t>(dtype);
  AtenTensorHandle handle = place.device_type == aoti_torch_device_type_cpu() ? in_block(sizes, strides, type) : nullptr;
  if (handle == nullptr)
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.data(), strides.data(), type, place.device_type, place.index, &handle));
  return Tensor(handle);
}

inline Tensor empty(const Tensor& like, const Ints& sizes, bool channels_last, std::optional<ScalarType> dtype = std::nullopt) {
  return empty(sizes, dtype.value_or(like.scalar_type()), channels_last, place_of(like));
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

inline void expect_same_dtype(const char* op, const char* name, const Tensor& t, const Tensor& other) {
  TORCHCONV_CHECK(t.scalar_type() == other.scalar_type(), op, ": ", name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                  ", expected ", torch::headeronly::toString(other.scalar_type()));
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
