// Large blocks of memory, from the system and back to it.
//
// A heap leaves pieces between what lives, and keeps what was freed where nothing larger fits: with glibc's, which raises its
// threshold for separate mappings to 32 MB as it goes, a step of VGG-19 took two thirds more memory than its tensors.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchconv {

constexpr size_t HUGE_PAGE = size_t(1) << 21;

#if defined(__linux__)

// Fresh memory is zeroed by the system first, which can take longer than the work done in it: some is kept. Neighbours that are kept
// become one, and of one a part is lent, so that what is needed next needn't be as large as what was freed. Before fresh memory is
// asked for, as much of what is kept is given back: it never adds to the most that is in use, however it is cut up. What is kept beyond
// the first 128 MB, such as a classifier's gradient from one step to the next, the system may take as soon as it is short of memory; to tell
// it so takes longer than computing a small block's contents, so that this is done for large ones alone.
class Blocks {
 public:
  static constexpr size_t SMALLEST = HUGE_PAGE, KEPT = size_t(512) << 20, HELD = size_t(128) << 20, LARGE = size_t(32) << 20;

  // Uninitialised; `size` is what it must be given back with. Null where the system has no more.
  static void* take(size_t bytes, size_t& size) {
    size = (bytes + PAGE - 1) / PAGE * PAGE;
    std::vector<Block> superfluous;
    if (void* const kept = get().lend(size, superfluous)) return kept;
    for (const Block& block : superfluous) unmap(block);
    return map(size);
  }

  static void give(void* data, size_t size) {
    std::vector<Block> superfluous;
#if defined(MADV_FREE)
    if (size >= LARGE && get().total_.load(std::memory_order_relaxed) + size > HELD) madvise(data, size, MADV_FREE);
#endif
    get().keep({reinterpret_cast<uintptr_t>(data), size}, superfluous);
    for (const Block& block : superfluous) unmap(block);
  }

  // Gives everything that is kept back to the system.
  static void empty() {
    std::vector<Block> superfluous;
    {
      const std::lock_guard<std::mutex> lock(get().mutex_);
      get().forget(get().total_.load(), superfluous);
    }
    for (const Block& block : superfluous) unmap(block);
  }

 private:
  using Block = std::pair<uintptr_t, size_t>;         // where it begins, and its size
  static constexpr size_t PAGE = size_t(1) << 16;  // of the largest that Linux has

  // From the smallest that is large enough.
  void* lend(size_t size, std::vector<Block>& superfluous) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (block->second >= size && (best == kept_.end() || block->second < best->second)) best = block;
    if (best == kept_.end()) {
      forget(size, superfluous);
      return nullptr;
    }
    const auto [begin, length] = *best;
    kept_.erase(best);
    if (length > size) kept_.emplace(begin + size, length - size);
    total_ -= size;
    return reinterpret_cast<void*>(begin);
  }

  void keep(Block block, std::vector<Block>& superfluous) {
    const std::lock_guard<std::mutex> lock(mutex_);
    total_ += block.second;
    auto next = kept_.lower_bound(block.first);
    if (next != kept_.end() && block.first + block.second == next->first) {
      block.second += next->second;
      next = kept_.erase(next);
    }
    if (next != kept_.begin() && std::prev(next)->first + std::prev(next)->second == block.first)
      std::prev(next)->second += block.second;
    else
      kept_.insert(block);
    if (total_ > KEPT) forget(total_ - KEPT, superfluous);
  }

  // So many bytes, or all: the smallest pieces first, which are of the least use.
  void forget(size_t bytes, std::vector<Block>& superfluous) {
    while (bytes > 0 && !kept_.empty()) {
      auto least = kept_.begin();
      for (auto block = kept_.begin(); block != kept_.end(); ++block)
        if (block->second < least->second) least = block;
      const size_t part = std::min(bytes, least->second);
      least->second -= part;
      superfluous.emplace_back(least->first + least->second, part);
      if (least->second == 0) kept_.erase(least);
      total_ -= part;
      bytes -= part;
    }
  }

  // Aligned to a huge page.
  static void* map(size_t size) {
    void* const data = mmap(nullptr, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data), first = (begin + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (first > begin) munmap(data, first - begin);
    if (first < begin + HUGE_PAGE) munmap(reinterpret_cast<void*>(first + size), begin + HUGE_PAGE - first);
    // One page fault for 2 MB instead of one for 4 kB, which often take longer than computing what goes there.
    madvise(reinterpret_cast<void*>(first), size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return reinterpret_cast<void*>(first);
  }
  static void unmap(const Block& block) { munmap(reinterpret_cast<void*>(block.first), block.second); }

  static Blocks& get() {
    static Blocks* const blocks = new Blocks;  // never destroyed: threads and tensors may outlive static objects
    return *blocks;
  }

  std::mutex mutex_;
  std::map<uintptr_t, size_t> kept_;
  std::atomic<size_t> total_ = 0;  // changed under the lock
};

#else

// The heap's.
class Blocks {
 public:
  static constexpr size_t SMALLEST = HUGE_PAGE;
  static void* take(size_t bytes, size_t& size) { return std::aligned_alloc(HUGE_PAGE, size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE); }
  static void give(void* data, size_t) { std::free(data); }
  static void empty() {}
};

#endif

}  // namespace torchconv
