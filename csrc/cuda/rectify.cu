// ReLU, with the bias of a convolution, and its gradient. A thread has the eight elements of one byte of signs.
#include "../ops/rectify.h"

#include "grid.h"

namespace torchconv::gpu {
namespace {

constexpr int BYTE = 8;

// Words of signs are little-endian on every machine that has a GPU, so that their bytes are in the order of the elements.
template <class T, class Index>
struct Rectify {
  Index count, channels, channel_step;
  T* values;
  const T* bias;
  uint8_t* signs;
  wide<T> most;
  bool ends;  // whether that is finite

  TORCHCONV_HD void operator()(Index byte) const {
    unsigned bits = 0;
    for (int b = 0; b < BYTE; b++) {
      const Index i = byte * BYTE + b;
      if (i >= count) break;
      wide<T> value = static_cast<wide<T>>(values[i]);
      if (bias != nullptr) value = static_cast<wide<T>>(static_cast<T>(value + static_cast<wide<T>>(bias[i / channel_step % channels])));
      if (!(value <= 0 || (ends && value >= most))) bits |= 1u << b;
      values[i] = static_cast<T>(value < 0 ? wide<T>(0) : value > most ? most : value);
    }
    if (signs != nullptr) signs[byte] = static_cast<uint8_t>(bits);
  }
};

template <class T, class Index>
struct RectifyInputs {
  const T* grad_output;
  const uint8_t* signs;
  T* grad_input;

  TORCHCONV_HD void operator()(Index i) const { grad_input[i] = signs[i / BYTE] >> (i % BYTE) & 1 ? grad_output[i] : T(0); }
};

struct GpuRectify : Gpu {
  using Gpu::Gpu;

  template <class F>
  static void dispatch_rectify(const char* op, const Tensor& t, const F& f) {
    dispatch<float, double, BFloat16, Half>(op, t, f);
  }
  template <class T>
  static void rectify(const Rectified<T>& p) {
    // The last word is written whole.
    const int64_t bytes = p.signs == nullptr ? (p.count + BYTE - 1) / BYTE : words(p.count) * (WORD_BITS / BYTE);
    const bool ends = p.most < std::numeric_limits<wide<T>>::infinity();
    with_index({p.count + WORD_BITS}, [&](auto zero) {
      using Index = decltype(zero);
      const auto count = static_cast<Index>(p.count), channels = static_cast<Index>(p.channels), step = static_cast<Index>(p.channel_step);
      for_each<Index>(bytes, Rectify<T, Index>{count, channels, step, p.values, p.bias, reinterpret_cast<uint8_t*>(p.signs), p.most, ends});
    });
  }
  template <class T>
  static void rectify_input(const RectifyInput<T>& p) {
    with_index({p.count}, [&](auto zero) {
      using Index = decltype(zero);
      for_each<Index>(p.count, RectifyInputs<T, Index>{p.grad_output, reinterpret_cast<const uint8_t*>(p.signs), p.grad_input});
    });
  }
};

}  // namespace
}  // namespace torchconv::gpu

TORCHCONV_GPU_OPS(m) {
  m.impl("rectify_", TORCH_BOX(&torchconv::rectify_<torchconv::gpu::GpuRectify>));
  m.impl("rectify_input", TORCH_BOX(&torchconv::rectify_input<torchconv::gpu::GpuRectify>));
}
