#include "../ops/rectify.h"

#include "cpu.h"

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("rectify_", TORCH_BOX(&torchconv::rectify_<torchconv::Cpu>));
  m.impl("rectify_input", TORCH_BOX(&torchconv::rectify_input<torchconv::Cpu>));
}
