// The column matrix itself, for those who want it, and the way back. One row of it is one tap of one channel.
namespace torchconv {
namespace TORCHCONV_ISA {

// Visits, for one tap, each row of window positions: the input row it meets, and the range of them that meets it.
template <class Visit>
inline void for_each_row(const Window& w, int64_t tap, const Visit& visit) {
  const int64_t kw = tap % w.kernel[2], kh = tap / w.kernel[2] % w.kernel[1], kd = tap / w.kernel[2] / w.kernel[1];
  const int64_t offset = kw * w.dilation[2] - w.padding[2], width = w.output[2];
  const int64_t x0 = std::min(width, offset < 0 ? ceil_div(-offset, w.stride[2]) : 0);
  const int64_t x1 = std::max(x0, std::min(width, offset >= w.input[2] ? 0 : ceil_div(w.input[2] - offset, w.stride[2])));
  for (int64_t od = 0; od < w.output[0]; od++) {
    for (int64_t oh = 0; oh < w.output[1]; oh++) {
      const int64_t d = od * w.stride[0] - w.padding[0] + kd * w.dilation[0], h = oh * w.stride[1] - w.padding[1] + kh * w.dilation[1];
      const bool inside = 0 <= d && d < w.input[0] && 0 <= h && h < w.input[1];
      visit((od * w.output[1] + oh) * width, d, h, offset, inside ? x0 : width, inside ? x1 : width);
    }
  }
}

template <class T>
void im2col(const Columns<T>& p) {
  const Window& w = p.window;
  const int64_t taps = volume(w.kernel), outputs = volume(w.output), width = w.output[2], stride = w.stride[2];
  const bool far = p.batch * p.channels * taps * outputs * static_cast<int64_t>(sizeof(T)) >= FAR_BYTES && p.step[2] == 1 && stride == 1;
  torch::stable::parallel_for(0, p.batch * p.channels * taps, std::max<int64_t>(1, 16384 / (outputs + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t tap = i % taps, c = i / taps % p.channels, n = i / taps / p.channels;
      const T* image = p.image + n * p.batch_step + c * p.channel_step;
      for_each_row(w, tap, [&](int64_t q, int64_t d, int64_t h, int64_t offset, int64_t x0, int64_t x1) {
        T* to = p.columns + i * outputs + q;
        std::fill(to, to + x0, T(0));
        std::fill(to + x1, to + width, T(0));
        if (x0 == x1) return;
        const T* from = image + d * p.step[0] + h * p.step[1] + (x0 * stride + offset) * p.step[2];
        const int64_t step = stride * p.step[2];
        if (far)
          copy_far(from, to + x0, x1 - x0);
        else if (step == 1)
          std::memcpy(to + x0, from, (x1 - x0) * sizeof(T));
        else
          for (int64_t x = x0; x < x1; x++) to[x] = from[(x - x0) * step];
      });
    }
    if (far) arrive();
  });
}

// Plane by plane, taps in order: the sum at a pixel does not depend on the number of threads.
template <class T>
void col2im(const Columns<T>& p) {
  const Window& w = p.window;
  const int64_t taps = volume(w.kernel), outputs = volume(w.output), stride = w.stride[2], inputs = volume(w.input);
  torch::stable::parallel_for(0, p.batch * p.channels, std::max<int64_t>(1, 16384 / (outputs * taps + 1)), [&](int64_t begin, int64_t end) {
    // A plane that lies in order is added up where it is.
    const bool in_place = std::is_same_v<T, wide<T>> && p.step == Extent{w.input[1] * w.input[2], w.input[2], 1};
    const Scratch<wide<T>> plane(in_place ? 0 : inputs);
    for (int64_t i = begin; i < end; i++) {
      T* image = p.image + i / p.channels * p.batch_step + i % p.channels * p.channel_step;
      wide<T>* const sum = in_place ? reinterpret_cast<wide<T>*>(image) : plane.get();
      zero_run(sum, inputs);
      for (int64_t tap = 0; tap < taps; tap++) {
        for_each_row(w, tap, [&](int64_t q, int64_t d, int64_t h, int64_t offset, int64_t x0, int64_t x1) {
          if (x0 == x1) return;
          const T* __restrict from = p.columns + (i * taps + tap) * outputs + q + x0;
          wide<T>* __restrict to = sum + (d * w.input[1] + h) * w.input[2] + x0 * stride + offset;
          if (stride == 1)
            for (int64_t x = 0; x < x1 - x0; x++) to[x] += from[x];
          else
            for (int64_t x = 0; x < x1 - x0; x++) to[x * stride] += from[x];
        });
      }
      if (in_place) continue;
      for (int64_t d = 0, at = 0; d < w.input[0]; d++)
        for (int64_t h = 0; h < w.input[1]; h++)
          for (int64_t x = 0; x < w.input[2]; x++, at++)
            image[d * p.step[0] + h * p.step[1] + x * p.step[2]] = static_cast<T>(sum[at]);
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
