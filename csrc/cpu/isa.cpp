#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace torchconv {
namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
  bool available;
};

#if defined(__x86_64__)

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

// Linux lends a process AMX's tiles, 8 KB for each thread, if it asks.
bool has_amx() {
#if defined(__linux__)
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16") &&
         syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

#endif

const std::vector<Choice>& choices() {
#if defined(__x86_64__)
  static const Kernels amx = [] {
    Kernels kernels = avx512::kernels;
    std::get<PairedKernels>(kernels) = avx512::amx_kernels;
    return kernels;
  }();
#endif
  static const std::vector<Choice> all = {
#if defined(__x86_64__)
      {"amx", &amx, has_avx512() && has_amx()},
      {"avx512", &avx512::kernels, has_avx512()},
      {"avx2", &avx2::kernels,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")},
#endif
      {"baseline", &baseline::kernels, true},
  };
  return all;
}

const Choice* find(const std::string& name) {
  for (const Choice& choice : choices())
    if (choice.available && (name.empty() || name == choice.name)) return &choice;
  std::string names;
  for (const std::string& available : available_isas()) names += (names.empty() ? "" : ", ") + available;
  TORCHCONV_CHECK(false, "instruction set '", name, "' is not available here, expected one of: ", names);
  return nullptr;
}

// TORCHCONV_ISA sets the first choice; a name that can't be served is reported by whichever op runs first.
std::atomic<const Choice*>& current() {
  static std::atomic<const Choice*> choice{nullptr};
  if (choice.load(std::memory_order_relaxed) == nullptr) {
    const char* wanted = std::getenv("TORCHCONV_ISA");
    choice.store(find(wanted != nullptr ? wanted : ""));
  }
  return choice;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Choice& choice : choices())
    if (choice.available) names.push_back(choice.name);
  return names;
}

std::string isa() { return current().load()->name; }

void set_isa(const std::string& name) { current().store(find(name)); }

int64_t l2_cache() {
  constexpr int64_t USUAL = INT64_C(1) << 20;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 where it isn't known
  if (size > 0) return std::clamp(size, USUAL / 4, 4 * USUAL);
#endif
  return USUAL;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed)->kernels; }

}  // namespace torchconv
