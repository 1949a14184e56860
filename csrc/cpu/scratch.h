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
    size_t size = static_cast<size_t>(count) * sizeof(T) + CACHE_LINE;
    const bool small = size < Blocks::SMALLEST;
    void* const memory = small ? std::malloc(size) : Blocks::take(size, size);
    if (memory == nullptr) throw std::bad_alloc();
    memory_ = std::unique_ptr<void, GiveBack>(memory, GiveBack{small ? 0 : size});
  }
  T* get() const { return static_cast<T*>(at_line(memory_.get())); }

 private:
  struct GiveBack {
    size_t block = 0;  // its size
    void operator()(void* memory) const { block == 0 ? std::free(memory) : Blocks::give(memory, block); }
  };
  std::unique_ptr<void, GiveBack> memory_;
};

}  // namespace torchconv
