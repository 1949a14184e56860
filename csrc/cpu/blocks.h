// Large blocks of memory, from the system and back to it.
//
// A heap leaves pieces between what lives, and keeps what was freed where nothing larger fits: with glibc's, which raises its
// threshold for separate mappings to 32 MB as it goes, a step of VGG-19 took two thirds more memory than its tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchconv {

constexpr size_t HUGE_PAGE = size_t(1) << 21;

class Blocks {
 public:
  static constexpr size_t SMALLEST = HUGE_PAGE, KEPT = size_t(128) << 20;

  // Uninitialised, aligned to a huge page; `size` is what it must be given back with. Null where the system has no more.
  static void* take(size_t bytes, size_t& size) {
    size = (bytes + PAGE - 1) / PAGE * PAGE;
    std::vector<Block> superfluous;
    if (void* const kept = get().lend(size, superfluous)) return kept;
    for (const Block& block : superfluous) unmap(block);
    return map(size);
  }

  // Gives everything that is kept back to the system.
  static void empty() {
    std::vector<Block> superfluous;
    {
      const std::lock_guard<std::mutex> lock(get().mutex_);
      get().forget(0, superfluous);
    }
    for (const Block& block : superfluous) unmap(block);
  }

  static void give(void* data, size_t size) {
    std::vector<Block> superfluous;
    get().keep({data, size}, superfluous);
    for (const Block& block : superfluous) unmap(block);
  }

 private:
  using Block = std::pair<void*, size_t>;
  static constexpr size_t PAGE = size_t(1) << 16;  // of the largest that Linux has

  // Fresh memory is zeroed by the system first, which can take longer than the work done in it: some is kept, and lent to what is
  // not much smaller. Before fresh memory is asked for, as much as that of what is kept is given back: it never adds to the most that
  // is in use.
  void* lend(size_t& size, std::vector<Block>& superfluous) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (block->second >= size && block->second <= size + size / 4 && (best == kept_.end() || block->second < best->second)) best = block;
    if (best == kept_.end()) {
      forget(total_ > size ? total_ - size : 0, superfluous);
      return nullptr;
    }
    const Block block = *best;
    kept_.erase(best);
    total_ -= block.second;
    size = block.second;
    return block.first;
  }

  void keep(const Block& block, std::vector<Block>& superfluous) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(block);
    total_ += block.second;
    forget(KEPT, superfluous);
  }

  // The oldest go.
  void forget(size_t limit, std::vector<Block>& superfluous) {
    size_t count = 0;
    for (; total_ > limit; count++) total_ -= kept_[count].second;
    superfluous.assign(kept_.begin(), kept_.begin() + count);
    kept_.erase(kept_.begin(), kept_.begin() + count);
  }

#if defined(__linux__)
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
  static void unmap(const Block& block) { munmap(block.first, block.second); }
#else
  static void* map(size_t size) { return std::aligned_alloc(HUGE_PAGE, (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE); }
  static void unmap(const Block& block) { std::free(block.first); }
#endif

  static Blocks& get() {
    static Blocks* const blocks = new Blocks;  // never destroyed: threads and tensors may outlive static objects
    return *blocks;
  }

  std::mutex mutex_;
  std::vector<Block> kept_;
  size_t total_ = 0;
};

}  // namespace torchconv
