#include "../ops/avg_pool.h"

#include "cpu.h"

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("avg_pool", TORCH_BOX(&torchconv::avg_pool<torchconv::Cpu>));
  m.impl("avg_pool_input", TORCH_BOX(&torchconv::avg_pool_input<torchconv::Cpu>));
  m.impl("adaptive_avg_pool", TORCH_BOX(&torchconv::adaptive_avg_pool<torchconv::Cpu>));
  m.impl("adaptive_avg_pool_input", TORCH_BOX(&torchconv::adaptive_avg_pool_input<torchconv::Cpu>));
}
