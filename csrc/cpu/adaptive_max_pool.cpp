#include "../ops/adaptive_max_pool.h"

#include "cpu.h"

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("adaptive_max_pool_indices", TORCH_BOX(&torchconv::adaptive_max_pool_indices<torchconv::Cpu>));
}
