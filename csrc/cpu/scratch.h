// Memory that a kernel works in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

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

// Large blocks that were given back, to be lent again: fresh memory must be zeroed by the system first, which can take longer than
// the work done in it. A process keeps no more than KEPT bytes.
class KeptBlocks {
 public:
  static constexpr size_t KEPT = size_t(32) << 20;

  // A block of at least this size and not twice as large, or null.
  void* take(size_t bytes, size_t& size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < blocks_.size(); i++) {
      if (blocks_[i].second < bytes || blocks_[i].second >= 2 * bytes) continue;
      const auto [data, found] = blocks_[i];
      blocks_.erase(blocks_.begin() + i);
      total_ -= found;
      size = found;
      return data;
    }
    return nullptr;
  }

  void give(void* data, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes <= KEPT) {
      while (total_ + bytes > KEPT) {  // the oldest goes
        total_ -= blocks_.front().second;
        std::free(blocks_.front().first);
        blocks_.erase(blocks_.begin());
      }
      blocks_.emplace_back(data, bytes);
      total_ += bytes;
    } else {
      std::free(data);
    }
  }

  static KeptBlocks& get() {
    static KeptBlocks* const kept = new KeptBlocks;  // never destroyed: threads may outlive static objects
    return *kept;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<void*, size_t>> blocks_;
  size_t total_ = 0;
};

// Uninitialised elements, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t wanted = static_cast<size_t>(count) * sizeof(T), align = wanted < LARGE ? 64 : HUGE_PAGE;
    size_t bytes = (wanted / align + 1) * align;
    void* data = bytes < LARGE ? nullptr : KeptBlocks::get().take(bytes, bytes);
    if (data == nullptr) {
      data = std::aligned_alloc(align, bytes);
      if (data == nullptr) throw std::bad_alloc();
      ask_for_huge_pages(data, bytes);
    }
    data_ = std::unique_ptr<T, GiveBack>(static_cast<T*>(data), GiveBack{bytes});
  }
  T* get() const { return data_.get(); }

 private:
  struct GiveBack {
    size_t bytes = 0;
    void operator()(T* p) const { bytes < LARGE ? std::free(p) : KeptBlocks::get().give(p, bytes); }
  };
  std::unique_ptr<T, GiveBack> data_;
};

}  // namespace torchconv
