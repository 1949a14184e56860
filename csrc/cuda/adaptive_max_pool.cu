// Adaptive max pooling.
#include "../ops/adaptive_max_pool.h"

#include "grid.h"

namespace torchconv::gpu {
namespace {

// Ties go to the first maximum, a NaN wins (the last one, as in torch).
template <class T, class Index>
struct Maximum {
  BoxRuleOf<Index> boxes;
  Order<Index> outputs;
  const T* input;
  T* output;
  int64_t* index;

  TORCHCONV_HD void operator()(Index i) const {
    const Index size[RANK] = {boxes.inputs(0), boxes.inputs(1), boxes.inputs(2)};
    const Coordinates<Index> o = outputs.of(i);
    const Plane<Index> plane(outputs, o, volume(size));
    const SpanOf<Index> box[RANK] = {boxes.span(0, o.at[0]), boxes.span(1, o.at[1]), boxes.span(2, o.at[2])};
    wide<T> best = -std::numeric_limits<wide<T>>::infinity();
    Index place = (box[0].begin * size[1] + box[1].begin) * size[2] + box[2].begin;
    for (Index d = box[0].begin; d < box[0].end; d++)
      for (Index h = box[1].begin; h < box[1].end; h++)
        for (Index w = box[2].begin; w < box[2].end; w++) {
          const Index pixel = (d * size[1] + h) * size[2] + w;
          const auto value = static_cast<wide<T>>(input[plane.base + pixel * plane.step]);
          if (value > best || value != value) {
            best = value;
            place = pixel;
          }
        }
    output[i] = static_cast<T>(best);
    index[i] = place;
  }
};

struct GpuMax : Gpu {
  using Gpu::Gpu;

  template <class T>
  static void box_max(const BoxMax<T>& p) {
    const int64_t planes = p.batch * p.channels, outputs = planes * volume(p.boxes.outputs());
    with_index({outputs, planes * volume(p.boxes.inputs())}, [&](auto zero) {
      using Index = decltype(zero);
      const Order<Index> order(p.channels, p.boxes.outputs(), p.channels_last);
      for_each<Index>(outputs, Maximum<T, Index>{p.boxes.template of<Index>(), order, p.input, p.output, p.index});
    });
  }
};

}  // namespace
}  // namespace torchconv::gpu

TORCHCONV_GPU_OPS(m) {
  m.impl("adaptive_max_pool", TORCH_BOX(&torchconv::adaptive_max_pool<torchconv::gpu::GpuMax>));
}
