// Max pooling and the two maps of its positions, each a gather: one thread, one element, no atomics, the same sum in every run.
#include "../ops/pool.h"

#include "grid.h"

namespace torchconv::gpu {
namespace {

// The taps of a window that lie inside the input along one dimension. At least one is said to, if none does.
template <class Index>
TORCHCONV_HD SpanOf<Index> taps_inside(const Sliding<Index>& w, int i, Index start) {
  const Index begin = start < 0 ? (w.dilation[i] - 1 - start) / w.dilation[i] : 0;
  const Index end = start >= w.input[i] ? 0 : (w.input[i] - start + w.dilation[i] - 1) / w.dilation[i];
  return {smaller<Index>(begin, w.kernel[i] - 1), smaller<Index>(end, w.kernel[i])};
}

// Ties go to the first maximum, a NaN wins (the last one, as in torch), and the padding is -inf that nobody can pick.
template <class T, class Position, class Index>
struct MaxPool {
  Sliding<Index> w;
  Order<Index> outputs;
  const T* input;
  T* output;
  Position* positions;

  TORCHCONV_HD void operator()(Index i) const {
    const Coordinates<Index> o = outputs.of(i);
    const Plane<Index> plane(outputs, o, volume(w.input));
    Index start[RANK];
    SpanOf<Index> taps[RANK];
    for (int d = 0; d < RANK; d++) {
      start[d] = o.at[d] * w.stride[d] - w.padding[d];
      taps[d] = taps_inside(w, d, start[d]);
    }
    wide<T> best = -std::numeric_limits<wide<T>>::infinity();
    Index position = (taps[0].begin * w.kernel[1] + taps[1].begin) * w.kernel[2] + taps[2].begin;
    for (Index kd = taps[0].begin; kd < taps[0].end; kd++)
      for (Index kh = taps[1].begin; kh < taps[1].end; kh++)
        for (Index kw = taps[2].begin; kw < taps[2].end; kw++) {
          const Index d = start[0] + kd * w.dilation[0], h = start[1] + kh * w.dilation[1], x = start[2] + kw * w.dilation[2];
          const wide<T> value = input[plane.base + ((d * w.input[1] + h) * w.input[2] + x) * plane.step];
          if (value > best || value != value) {
            best = value;
            position = (kd * w.kernel[1] + kh) * w.kernel[2] + kw;
          }
        }
    output[i] = static_cast<T>(best);
    if (positions != nullptr) positions[i] = static_cast<Position>(position);
  }
};

// A position that lies outside of the input, which only hostile positions do, picks nothing.
template <class T, class Position, class Index>
struct Gather {
  Sliding<Index> w;
  Order<Index> outputs;
  const Position* positions;
  T *full, *pooled;

  TORCHCONV_HD void operator()(Index i) const {
    const Coordinates<Index> o = outputs.of(i);
    const Plane<Index> plane(outputs, o, volume(w.input));
    Index tap = static_cast<Index>(positions[i]), place[RANK];
    bool inside = 0 <= tap && tap < w.kernel[0] * w.kernel[1] * w.kernel[2];
    for (int d = RANK - 1; d >= 0; d--) {
      place[d] = o.at[d] * w.stride[d] - w.padding[d] + tap % w.kernel[d] * w.dilation[d];
      tap /= w.kernel[d];
      inside = inside && 0 <= place[d] && place[d] < w.input[d];
    }
    pooled[i] = inside ? full[plane.base + ((place[0] * w.input[1] + place[1]) * w.input[2] + place[2]) * plane.step] : T(0);
  }
};

// An input asks every window that spans it whether it was the one.
template <class T, class Position, class Index>
struct Scatter {
  Sliding<Index> w;
  Order<Index> inputs;
  const Position* positions;
  T *full, *pooled;

  TORCHCONV_HD void operator()(Index i) const {
    const Coordinates<Index> x = inputs.of(i);
    const Plane<Index> plane(inputs, x, volume(w.output));
    SpanOf<Index> over[RANK];
    for (int d = 0; d < RANK; d++) over[d] = positions_over(w, d, x.at[d]);
    wide<T> sum = 0;
    for (Index od = over[0].begin; od < over[0].end; od++)
      for (Index oh = over[1].begin; oh < over[1].end; oh++)
        for (Index ow = over[2].begin; ow < over[2].end; ow++) {
          const Index taps[RANK] = {tap_over(w, 0, x.at[0], od), tap_over(w, 1, x.at[1], oh), tap_over(w, 2, x.at[2], ow)};
          if (taps[0] < 0 || taps[1] < 0 || taps[2] < 0) continue;
          const Index place = plane.base + ((od * w.output[1] + oh) * w.output[2] + ow) * plane.step;
          if (static_cast<Index>(positions[place]) == (taps[0] * w.kernel[1] + taps[1]) * w.kernel[2] + taps[2])
            sum += static_cast<wide<T>>(pooled[place]);
        }
    full[i] = static_cast<T>(sum);
  }
};

struct GpuPool : Gpu {
  using Gpu::Gpu;

  template <class T, class Position>
  static void max_pool(const Pool<T, Position>& p) {
    const int64_t planes = p.batch * p.channels, outputs = planes * volume(p.window.output);
    with_index({outputs, planes * volume(p.window.input), reach(p.window)}, [&](auto zero) {
      using Index = decltype(zero);
      const Order<Index> of(p.channels, p.window.output, p.channels_last);
      for_each<Index>(outputs, MaxPool<T, Position, Index>{Sliding<Index>(p.window), of, p.input, p.output, p.positions});
    });
  }

  template <class T, class Position>
  static void max_pool_gather(const PoolMap<T, Position>& p) {
    map<Gather>(p, p.window.output);
  }
  template <class T, class Position>
  static void max_pool_scatter(const PoolMap<T, Position>& p) {
    map<Scatter>(p, p.window.input);
  }

 private:
  template <template <class, class, class> class Body, class T, class Position>
  static void map(const PoolMap<T, Position>& p, const Extent& results) {
    const int64_t planes = p.batch * p.channels;
    with_index({planes * volume(p.window.input), planes * volume(p.window.output), reach(p.window)}, [&](auto zero) {
      using Index = decltype(zero);
      const Order<Index> of(p.channels, results, p.channels_last);
      for_each<Index>(planes * volume(results), Body<T, Position, Index>{Sliding<Index>(p.window), of, p.positions, p.full, p.pooled});
    });
  }
};

}  // namespace
}  // namespace torchconv::gpu

TORCHCONV_GPU_OPS(m) {
  m.impl("max_pool", TORCH_BOX(&torchconv::max_pool<torchconv::gpu::GpuPool>));
  m.impl("max_pool_gather", TORCH_BOX(&torchconv::max_pool_gather<torchconv::gpu::GpuPool>));
  m.impl("max_pool_scatter", TORCH_BOX(&torchconv::max_pool_scatter<torchconv::gpu::GpuPool>));
}
