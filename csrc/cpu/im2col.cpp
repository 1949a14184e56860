#include "../ops/im2col.h"

#include "cpu.h"

namespace torchconv {
constexpr auto im2col_on_cpu = &im2col<Cpu, float, double, BFloat16, Half>;
constexpr auto col2im_on_cpu = &col2im<Cpu, float, double, BFloat16, Half>;
}  // namespace torchconv

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("im2col", TORCH_BOX(torchconv::im2col_on_cpu));
  m.impl("col2im", TORCH_BOX(torchconv::col2im_on_cpu));
}
