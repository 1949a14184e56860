// im2col and col2im. A thread has one channel at one position, or one pixel.
#include "../ops/im2col.h"

#include "grid.h"

namespace torchconv::gpu {
namespace {

template <class T, class Index>
struct Im2col {
  Sliding<Index> w;
  Order<Index> order;  // of (batch, channel, position)
  Strides<Index> strides;
  const T* image;
  T* columns;

  TORCHCONV_HD void operator()(Index i) const {
    const Coordinates<Index> o = order.of(i);
    const Index positions = volume(w.output), plane = i / positions;
    T* to = columns + (plane * volume(w.kernel) - plane) * positions + i;  // (plane * taps + 0) * positions + position
    for (Index kd = 0; kd < w.kernel[0]; kd++)
      for (Index kh = 0; kh < w.kernel[1]; kh++)
        for (Index kw = 0; kw < w.kernel[2]; kw++, to += positions) {
          const Index d = o.at[0] * w.stride[0] - w.padding[0] + kd * w.dilation[0];
          const Index h = o.at[1] * w.stride[1] - w.padding[1] + kh * w.dilation[1];
          const Index x = o.at[2] * w.stride[2] - w.padding[2] + kw * w.dilation[2];
          const bool inside = 0 <= d && d < w.input[0] && 0 <= h && h < w.input[1] && 0 <= x && x < w.input[2];
          *to = inside ? image[strides.of(o.batch, o.channel, d, h, x)] : T(0);
        }
  }
};

template <class T, class Index>
struct Col2im {
  Sliding<Index> w;
  Order<Index> order;  // of the image
  const T* columns;
  T* image;

  TORCHCONV_HD void operator()(Index i) const {
    const Coordinates<Index> x = order.of(i);
    const Index positions = volume(w.output);
    const T* from = columns + (x.batch * order.channels + x.channel) * volume(w.kernel) * positions;
    SpanOf<Index> over[RANK];
    for (int d = 0; d < RANK; d++) over[d] = positions_over(w, d, x.at[d]);
    wide<T> sum = 0;
    for (Index od = over[0].begin; od < over[0].end; od++)
      for (Index oh = over[1].begin; oh < over[1].end; oh++)
        for (Index ow = over[2].begin; ow < over[2].end; ow++) {
          const Index taps[RANK] = {tap_over(w, 0, x.at[0], od), tap_over(w, 1, x.at[1], oh), tap_over(w, 2, x.at[2], ow)};
          if (taps[0] < 0 || taps[1] < 0 || taps[2] < 0) continue;
          const Index tap = (taps[0] * w.kernel[1] + taps[1]) * w.kernel[2] + taps[2];
          sum += static_cast<wide<T>>(from[tap * positions + (od * w.output[1] + oh) * w.output[2] + ow]);
        }
    image[i] = static_cast<T>(sum);
  }
};

// The last element of an image, and what else must fit an index.
template <class T>
int64_t extent_of(const Columns<T>& p) {
  int64_t last = (p.batch - 1) * p.batch_step + (p.channels - 1) * p.channel_step;
  for (int i = 0; i < RANK; i++) last += (p.window.input[i] - 1) * p.step[i];
  return last;
}

struct GpuColumns : Gpu {
  using Gpu::Gpu;

  template <class T>
  static void im2col(const Columns<T>& p) {
    const int64_t planes = p.batch * p.channels, positions = volume(p.window.output);
    with_index({planes * volume(p.window.kernel) * positions, extent_of(p), reach(p.window)}, [&](auto zero) {
      using Index = decltype(zero);
      const Strides<Index> strides(p.batch_step, p.channel_step, p.step);
      const Order<Index> order(p.channels, p.window.output, false);
      for_each<Index>(planes * positions, Im2col<T, Index>{Sliding<Index>(p.window), order, strides, p.image, p.columns});
    });
  }
  template <class T>
  static void col2im(const Columns<T>& p) {
    const int64_t planes = p.batch * p.channels, pixels = planes * volume(p.window.input);
    with_index({planes * volume(p.window.kernel) * volume(p.window.output), pixels, reach(p.window)}, [&](auto zero) {
      using Index = decltype(zero);
      const Order<Index> order(p.channels, p.window.input, false);
      for_each<Index>(pixels, Col2im<T, Index>{Sliding<Index>(p.window), order, p.columns, p.image});
    });
  }
};

using Complex = c10::complex<float>;
using ComplexDouble = c10::complex<double>;
constexpr auto im2col_on_gpu = &torchconv::im2col<GpuColumns, float, double, BFloat16, Half, Complex, ComplexDouble>;
constexpr auto col2im_on_gpu = &torchconv::col2im<GpuColumns, float, double, BFloat16, Half, Complex, ComplexDouble>;

}  // namespace
}  // namespace torchconv::gpu

TORCHCONV_GPU_OPS(m) {
  m.impl("im2col", TORCH_BOX(torchconv::gpu::im2col_on_gpu));
  m.impl("col2im", TORCH_BOX(torchconv::gpu::col2im_on_gpu));
}
