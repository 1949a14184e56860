#include "../ops/adaptive_max_pool.h"

#include "cpu.h"

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("adaptive_max_pool", TORCH_BOX(&torchconv::adaptive_max_pool<torchconv::Cpu>));
}
