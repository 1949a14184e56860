// im2col and col2im. A thread of the second has one pixel.
#include "../ops/im2col.h"

#include "columns.h"

namespace torchconv::gpu {
namespace {

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

struct GpuColumns : Gpu {
  using Gpu::Gpu;

  template <class T>
  static void im2col(const Columns<T>& p) {
    const int64_t positions = volume(p.window.output), entries = p.channels * volume(p.window.kernel);
    const Activations<const T> image{p.image, p.batch_step, p.channel_step, p.step};
    fill_columns(ColumnPart<T>{p.window, 1, p.channels, image, 0, p.batch, 0, positions, true, 0, entries * positions, positions, 1, p.columns});
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
