#include "../ops/pool.h"

#include "cpu.h"

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&torchconv::max_pool<torchconv::Cpu>));
  m.impl("max_pool_gather", TORCH_BOX(&torchconv::max_pool_gather<torchconv::Cpu>));
  m.impl("max_pool_scatter", TORCH_BOX(&torchconv::max_pool_scatter<torchconv::Cpu>));
}
