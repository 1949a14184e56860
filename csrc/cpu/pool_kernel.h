// Max pooling and the two linear maps of its derivative. Ties go to the first maximum, a NaN wins (the last one, as in
// torch), and the padding is -inf that nobody can pick: the position starts at the first tap inside the input.
namespace torchconv {
namespace TORCHCONV_ISA {

// 16-bit types are compared and added up as float.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <class T>
using wide = typename Wide<T>::type;
// An integer as wide as the value beside it, so that both fill the same lanes.
template <class T>
using WideIndex = std::conditional_t<sizeof(wide<T>) == 8, int64_t, int32_t>;

constexpr int64_t POOL_CHUNK = 64;

// Taps k of dimension i with 0 <= start + k * dilation < input.
struct TapRange {
  int64_t begin, end;
};

inline TapRange taps_inside(const Window& w, int i, int64_t start) {
  const int64_t begin = start < 0 ? ceil_div(-start, w.dilation[i]) : 0;
  const int64_t end = start >= w.input[i] ? 0 : ceil_div(w.input[i] - start, w.dilation[i]);
  return {std::min(begin, w.kernel[i] - 1), std::min(end, w.kernel[i])};
}

template <class T>
inline void keep_better(wide<T> value, WideIndex<T> tap, wide<T>& best, WideIndex<T>& position) {
  const bool better = (value > best) | (value != value);
  best = better ? value : best;
  position = better ? tap : position;
}

template <class T, class Position>
void pool_channels_last(const Pool<T, Position>& p) {
  const Window& w = p.window;
  const int64_t C = p.channels;
  torch::stable::parallel_for(0, p.batch * volume(w.output), std::max<int64_t>(1, 4096 / (C + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; q++) {
      const Corner at = corner_of(w, q);
      const TapRange ds = taps_inside(w, 0, at.depth), hs = taps_inside(w, 1, at.height), ws = taps_inside(w, 2, at.width);
      const int64_t first = (ds.begin * w.kernel[1] + hs.begin) * w.kernel[2] + ws.begin;
      for (int64_t c = 0; c < C; c += POOL_CHUNK) {
        const int64_t count = std::min(POOL_CHUNK, C - c);
        wide<T> best[POOL_CHUNK];
        WideIndex<T> position[POOL_CHUNK];
        for (int64_t j = 0; j < count; j++) best[j] = -std::numeric_limits<wide<T>>::infinity(), position[j] = first;
        for (int64_t kd = ds.begin; kd < ds.end; kd++) {
          for (int64_t kh = hs.begin; kh < hs.end; kh++) {
            for (int64_t kw = ws.begin; kw < ws.end; kw++) {
              const int64_t d = at.depth + kd * w.dilation[0], h = at.height + kh * w.dilation[1], x = at.width + kw * w.dilation[2];
              const T* from = p.input + (((at.batch * w.input[0] + d) * w.input[1] + h) * w.input[2] + x) * C + c;
              const WideIndex<T> tap = (kd * w.kernel[1] + kh) * w.kernel[2] + kw;
              for (int64_t j = 0; j < count; j++) keep_better<T>(from[j], tap, best[j], position[j]);
            }
          }
        }
        for (int64_t j = 0; j < count; j++) p.output[q * C + c + j] = static_cast<T>(best[j]);
        if (p.positions != nullptr)
          for (int64_t j = 0; j < count; j++) p.positions[q * C + c + j] = static_cast<Position>(position[j]);
      }
    }
  });
}

template <class T, int STRIDE>
inline void keep_better_row(const T* from, int64_t stride, int64_t count, WideIndex<T> tap, wide<T>* best, WideIndex<T>* position) {
  const int64_t step = STRIDE != 0 ? STRIDE : stride;
  for (int64_t j = 0; j < count; j++) keep_better<T>(from[j * step], tap, best[j], position[j]);
}

template <class T, class Position>
void pool_contiguous(const Pool<T, Position>& p) {
  const Window& w = p.window;
  const int64_t width = w.output[2], stride = w.stride[2], rows = p.batch * p.channels * w.output[0] * w.output[1];
  // Taps that any window has inside the input: a kernel may be far larger than that.
  const int64_t kw0 = std::max<int64_t>(0, ceil_div(w.padding[2] - (width - 1) * stride, w.dilation[2]));
  const int64_t kw1 = std::min(w.kernel[2], ceil_div(w.padding[2] + w.input[2], w.dilation[2]));
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 4096 / (width + 1)), [&](int64_t begin, int64_t end) {
    Scratch<wide<T>> best(width);
    Scratch<WideIndex<T>> position(width);
    for (int64_t row = begin; row < end; row++) {
      const int64_t plane = row / (w.output[0] * w.output[1]);
      const int64_t depth = row / w.output[1] % w.output[0] * w.stride[0] - w.padding[0];
      const int64_t height = row % w.output[1] * w.stride[1] - w.padding[1];
      const TapRange ds = taps_inside(w, 0, depth), hs = taps_inside(w, 1, height);
      for (int64_t x = 0; x < width; x++) {
        const int64_t kw = taps_inside(w, 2, x * stride - w.padding[2]).begin;
        best.get()[x] = -std::numeric_limits<wide<T>>::infinity();
        position.get()[x] = (ds.begin * w.kernel[1] + hs.begin) * w.kernel[2] + kw;
      }
      for (int64_t kd = ds.begin; kd < ds.end; kd++) {
        for (int64_t kh = hs.begin; kh < hs.end; kh++) {
          const int64_t d = depth + kd * w.dilation[0], h = height + kh * w.dilation[1];
          const T* line = p.input + ((plane * w.input[0] + d) * w.input[1] + h) * w.input[2];
          for (int64_t kw = kw0; kw < kw1; kw++) {
            const int64_t offset = kw * w.dilation[2] - w.padding[2];
            const int64_t x0 = offset < 0 ? ceil_div(-offset, stride) : 0;
            const int64_t x1 = std::min(width, offset >= w.input[2] ? 0 : ceil_div(w.input[2] - offset, stride));
            if (x0 >= x1) continue;
            const auto row_of = stride == 1 ? keep_better_row<T, 1> : stride == 2 ? keep_better_row<T, 2> : keep_better_row<T, 0>;
            row_of(line + x0 * stride + offset, stride, x1 - x0, (kd * w.kernel[1] + kh) * w.kernel[2] + kw, best.get() + x0,
                   position.get() + x0);
          }
        }
      }
      for (int64_t x = 0; x < width; x++) p.output[row * width + x] = static_cast<T>(best.get()[x]);
      if (p.positions != nullptr)
        for (int64_t x = 0; x < width; x++) p.positions[row * width + x] = static_cast<Position>(position.get()[x]);
    }
  });
}

template <class T, class Position>
void pool(const Pool<T, Position>& p) {
  p.channels_last ? pool_channels_last(p) : pool_contiguous(p);
}

// Index in a plane of the element that window `q` picked with `tap`, or -1 where that lies outside the input.
inline int64_t picked(const Window& w, int64_t q, int64_t tap) {
  if (tap < 0 || tap >= volume(w.kernel)) return -1;
  const Corner at = corner_of(w, q);
  const int64_t d = at.depth + tap / w.kernel[2] / w.kernel[1] * w.dilation[0];
  const int64_t h = at.height + tap / w.kernel[2] % w.kernel[1] * w.dilation[1], x = at.width + tap % w.kernel[2] * w.dilation[2];
  const bool inside = 0 <= d && d < w.input[0] && 0 <= h && h < w.input[1] && 0 <= x && x < w.input[2];
  return inside ? (d * w.input[1] + h) * w.input[2] + x : -1;
}

template <class T, class Position>
void pool_gather(const PoolMap<T, Position>& p) {
  const int64_t outputs = volume(p.window.output), inputs = volume(p.window.input), C = p.channels;
  torch::stable::parallel_for(0, p.batch * outputs, std::max<int64_t>(1, 1024 / (C + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t n = i / outputs, q = i % outputs;
      for (int64_t c = 0; c < C; c++) {
        const int64_t at = p.channels_last ? i * C + c : (n * C + c) * outputs + q;
        const int64_t from = picked(p.window, q, p.positions[at]);
        p.pooled[at] = from < 0 ? T(0) : p.full[p.channels_last ? (n * inputs + from) * C + c : (n * C + c) * inputs + from];
      }
    }
  });
}

// Plane by plane, windows in order: the sum at an input does not depend on the number of threads.
template <class T, class Position>
void pool_scatter_contiguous(const PoolMap<T, Position>& p) {
  const Window& w = p.window;
  const int64_t inputs = volume(w.input), outputs = volume(w.output);
  const int64_t taps = std::min<int64_t>(volume(w.kernel), 256);  // those of larger windows are found the slow way
  std::vector<int64_t> offset(taps);
  for (int64_t tap = 0; tap < taps; tap++) {
    const int64_t kw = tap % w.kernel[2], kh = tap / w.kernel[2] % w.kernel[1], kd = tap / w.kernel[2] / w.kernel[1];
    offset[tap] = (kd * w.dilation[0] * w.input[1] + kh * w.dilation[1]) * w.input[2] + kw * w.dilation[2];
  }
  torch::stable::parallel_for(0, p.batch * p.channels, std::max<int64_t>(1, 4096 / (inputs + 1)), [&](int64_t begin, int64_t end) {
    Scratch<wide<T>> sum(inputs);
    for (int64_t plane = begin; plane < end; plane++) {
      std::memset(sum.get(), 0, inputs * sizeof(wide<T>));
      const Position* position = p.positions + plane * outputs;
      const T* value = p.pooled + plane * outputs;
      for (int64_t row = 0, q = 0; row < w.output[0] * w.output[1]; row++) {
        const Corner at = corner_of(w, q);
        const auto fits = [&](int i, int64_t start) { return 0 <= start && start + (w.kernel[i] - 1) * w.dilation[i] < w.input[i]; };
        const bool row_fits = fits(0, at.depth) && fits(1, at.height);
        const int64_t corner = (at.depth * w.input[1] + at.height) * w.input[2];
        for (int64_t x = 0; x < w.output[2]; x++, q++) {
          const int64_t start = x * w.stride[2] - w.padding[2], tap = position[q];
          const bool whole = row_fits && fits(2, start) && 0 <= tap && tap < taps;
          const int64_t to = whole ? corner + start + offset[tap] : picked(w, q, tap);
          if (to >= 0) sum.get()[to] += value[q];
        }
      }
      for (int64_t i = 0; i < inputs; i++) p.full[plane * inputs + i] = static_cast<T>(sum.get()[i]);
    }
  });
}

// The windows that hold coordinate x of dimension i: positions o with o * stride - padding + k * dilation == x.
template <class Visit>
inline void windows_holding(const Window& w, int i, int64_t x, const Visit& visit) {
  const int64_t reach = x + w.padding[i], span = (w.kernel[i] - 1) * w.dilation[i];
  const int64_t first = reach <= span ? 0 : ceil_div(reach - span, w.stride[i]), last = std::min(reach / w.stride[i], w.output[i] - 1);
  for (int64_t o = first; o <= last; o++)
    if ((reach - o * w.stride[i]) % w.dilation[i] == 0) visit(o, (reach - o * w.stride[i]) / w.dilation[i]);
}

template <class T, class Position>
void pool_scatter_channels_last(const PoolMap<T, Position>& p) {
  const Window& w = p.window;
  const int64_t C = p.channels, inputs = volume(w.input);
  torch::stable::parallel_for(0, p.batch * inputs, std::max<int64_t>(1, 4096 / (C + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t x = i % w.input[2], h = i / w.input[2] % w.input[1], d = i / w.input[2] / w.input[1] % w.input[0], n = i / inputs;
      for (int64_t c = 0; c < C; c += POOL_CHUNK) {
        const int64_t count = std::min(POOL_CHUNK, C - c);
        wide<T> sum[POOL_CHUNK];
        for (int64_t j = 0; j < count; j++) sum[j] = 0;
        windows_holding(w, 0, d, [&](int64_t od, int64_t kd) {
          windows_holding(w, 1, h, [&](int64_t oh, int64_t kh) {
            windows_holding(w, 2, x, [&](int64_t ow, int64_t kw) {
              const int64_t q = (((n * w.output[0] + od) * w.output[1] + oh) * w.output[2] + ow) * C + c;
              const Position tap = static_cast<Position>((kd * w.kernel[1] + kh) * w.kernel[2] + kw);
              const Position* __restrict position = p.positions + q;
              const T* __restrict value = p.pooled + q;
              for (int64_t j = 0; j < count; j++) sum[j] += position[j] == tap ? static_cast<wide<T>>(value[j]) : wide<T>(0);
            });
          });
        });
        for (int64_t j = 0; j < count; j++) p.full[i * C + c + j] = static_cast<T>(sum[j]);
      }
    }
  });
}

template <class T, class Position>
void pool_scatter(const PoolMap<T, Position>& p) {
  p.channels_last ? pool_scatter_channels_last(p) : pool_scatter_contiguous(p);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
