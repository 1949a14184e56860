// Memory that a kernel works in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchconv {

constexpr size_t HUGE_PAGE = size_t(1) << 21, LARGE = 2 * HUGE_PAGE;

// Memory that was just allocated and is not yet touched costs a page fault per 4 kB, often more than computing what goes
// into it. With this hint it is one per 2 MB.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (bytes >= LARGE && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Uninitialised elements, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t wanted = static_cast<size_t>(count) * sizeof(T), align = wanted < LARGE ? 64 : HUGE_PAGE;
    const size_t bytes = (wanted / align + 1) * align;
    data_.reset(static_cast<T*>(std::aligned_alloc(align, bytes)));
    if (!data_) throw std::bad_alloc();
    ask_for_huge_pages(data_.get(), bytes);
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace torchconv
