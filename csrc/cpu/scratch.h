// Memory that a kernel works in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "blocks.h"

namespace torchconv {

// Uninitialised elements, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t wanted = static_cast<size_t>(count) * sizeof(T);
    size_t size = (wanted / LINE + 1) * LINE;
    void* const data = size < Blocks::SMALLEST ? std::aligned_alloc(LINE, size) : Blocks::take(size, size);
    if (data == nullptr) throw std::bad_alloc();
    data_ = std::unique_ptr<T, GiveBack>(static_cast<T*>(data), GiveBack{size});
  }
  T* get() const { return data_.get(); }

 private:
  static constexpr size_t LINE = 64;
  struct GiveBack {
    size_t size = 0;
    void operator()(T* p) const { size < Blocks::SMALLEST ? std::free(p) : Blocks::give(p, size); }
  };
  std::unique_ptr<T, GiveBack> data_;
};

}  // namespace torchconv
