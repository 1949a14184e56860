// Average pooling, over windows and adaptive, and its adjoint: the sum of each box.
#include "../ops/avg_pool.h"

#include "grid.h"

namespace torchconv::gpu {
namespace {

template <class T, class Index>
struct Sum {
  BoxRuleOf<Index> boxes;
  DivisorRuleOf<Index> divisor;
  bool divide_inputs;
  Order<Index> outputs;
  const T* input;
  T* output;

  TORCHCONV_HD wide<T> count(const Index (&at)[RANK]) const {
    return static_cast<wide<T>>(divisor.of(0, at[0]) * divisor.of(1, at[1]) * divisor.of(2, at[2]));
  }

  TORCHCONV_HD void operator()(Index i) const {
    const Index size[RANK] = {boxes.inputs(0), boxes.inputs(1), boxes.inputs(2)};
    const Coordinates<Index> o = outputs.of(i);
    const Plane<Index> plane(outputs, o, volume(size));
    const SpanOf<Index> box[RANK] = {boxes.span(0, o.at[0]), boxes.span(1, o.at[1]), boxes.span(2, o.at[2])};
    wide<T> sum = 0;
    for (Index d = box[0].begin; d < box[0].end; d++)
      for (Index h = box[1].begin; h < box[1].end; h++)
        for (Index w = box[2].begin; w < box[2].end; w++) {
          const auto value = static_cast<wide<T>>(input[plane.base + ((d * size[1] + h) * size[2] + w) * plane.step]);
          sum += divide_inputs ? value / count({d, h, w}) : value;
        }
    output[i] = static_cast<T>(divide_inputs ? sum : sum / count(o.at));
  }
};

struct GpuAvgPool : Gpu {
  using Gpu::Gpu;

  template <class T>
  static void box_sum(const BoxSum<T>& p) {
    const int64_t planes = p.batch * p.channels, outputs = planes * volume(p.boxes.outputs());
    with_index({outputs, planes * volume(p.boxes.inputs()), reach(p.boxes.window)}, [&](auto zero) {
      using Index = decltype(zero);
      const Order<Index> order(p.channels, p.boxes.outputs(), p.channels_last);
      for_each<Index>(outputs, Sum<T, Index>{p.boxes.template of<Index>(), p.divisor.template of<Index>(), p.divide_inputs, order, p.input, p.output});
    });
  }
};

}  // namespace
}  // namespace torchconv::gpu

TORCHCONV_GPU_OPS(m) {
  m.impl("avg_pool", TORCH_BOX(&torchconv::avg_pool<torchconv::gpu::GpuAvgPool>));
  m.impl("avg_pool_input", TORCH_BOX(&torchconv::avg_pool_input<torchconv::gpu::GpuAvgPool>));
  m.impl("adaptive_avg_pool", TORCH_BOX(&torchconv::adaptive_avg_pool<torchconv::gpu::GpuAvgPool>));
  m.impl("adaptive_avg_pool_input", TORCH_BOX(&torchconv::adaptive_avg_pool_input<torchconv::gpu::GpuAvgPool>));
}
