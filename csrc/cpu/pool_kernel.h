// Max pooling. Ties go to the first maximum, a NaN wins (the last one, as in torch), and the padding is -inf that nobody can pick:
// the position starts at the first tap inside the input.
namespace torchconv {
namespace TORCHCONV_ISA {

// The first `count` of a vector, and their positions where those are saved.
template <bool SAVE, class T, class Position>
inline __attribute__((always_inline)) void store_best(T* output, Position* positions, const Best<T>& best, int64_t count) {
  constexpr int64_t L = lanes<wide<T>>;
  if (count >= L) {
    store_values(output, best.value);
    if constexpr (SAVE) store_positions<T>(positions, best.position);
    return;
  }
  store_some(output, best.value, count);
  if constexpr (SAVE) {
    Position picked[L];
    store_positions<T>(picked, best.position);
    std::memcpy(positions, picked, count * sizeof(Position));
  }
}

// Taps k of dimension i with 0 <= start + k * dilation < input.
struct TapRange {
  int64_t begin, end;
};

inline TapRange taps_inside(const Window& w, int i, int64_t start) {
  const int64_t begin = start < 0 ? ceil_div(-start, w.dilation[i]) : 0;
  const int64_t end = start >= w.input[i] ? 0 : ceil_div(w.input[i] - start, w.dilation[i]);
  return {std::min(begin, w.kernel[i] - 1), std::min(end, w.kernel[i])};
}

// Those of a window, and the elements between two of them.
struct Taps {
  std::array<TapRange, RANK> inside;
  Extent step;

  bool whole(const Window& w, int i) const { return inside[i].end - inside[i].begin == w.kernel[i]; }
  int64_t first(const Window& w) const { return (inside[0].begin * w.kernel[1] + inside[1].begin) * w.kernel[2] + inside[2].begin; }
  int64_t last_offset() const {
    return (inside[0].end - 1) * step[0] + (inside[1].end - 1) * step[1] + (inside[2].end - 1) * step[2];
  }
};

// Calls visit(offset of the tap's row, place in the row, index). Whole planes of K x K taps are unrolled; K is 0 for any others.
template <int K, class Visit>
inline __attribute__((always_inline)) void for_each_tap(const Window& w, const Taps& taps, const Visit& visit) {
  const auto& [ds, hs, xs] = taps.inside;
  for (int64_t kd = ds.begin; kd < ds.end; kd++) {
    if constexpr (K > 0) {
#pragma GCC unroll 3
      for (int kh = 0; kh < K; kh++)
#pragma GCC unroll 3
        for (int kw = 0; kw < K; kw++) visit(kd * taps.step[0] + kh * taps.step[1], kw, (kd * K + kh) * K + kw);
    } else {
      for (int64_t kh = hs.begin; kh < hs.end; kh++)
        for (int64_t kw = xs.begin; kw < xs.end; kw++) visit(kd * taps.step[0] + kh * taps.step[1], kw, (kd * w.kernel[1] + kh) * w.kernel[2] + kw);
    }
  }
}

// Calls f with the K of for_each_tap as a constant.
template <class F>
inline __attribute__((always_inline)) void unrolled(const Window& w, bool whole, const F& f) {
  const int64_t K = whole && w.kernel[1] == w.kernel[2] ? w.kernel[2] : 0;
  if (K == 2) return f(std::integral_constant<int, 2>{});
  if (K == 3) return f(std::integral_constant<int, 3>{});
  f(std::integral_constant<int, 0>{});
}

// One window and one channel.
template <bool SAVE, class T, class Position>
inline void pool_one(const Window& w, const Taps& taps, const T* corner, T* output, Position* position) {
  wide<T> best = -std::numeric_limits<wide<T>>::infinity();
  int64_t at = taps.first(w);
  for_each_tap<0>(w, taps, [&](int64_t row, int64_t kw, int64_t index) {
    const wide<T> value = corner[row + kw * taps.step[2]];
    if (value > best || value != value) best = value, at = index;
  });
  *output = static_cast<T>(best);
  if constexpr (SAVE) *position = static_cast<Position>(at);
}

// One window and all channels.
template <int K, bool SAVE, class T, class Position>
inline __attribute__((always_inline)) void pool_pixel(const Window& w, const Taps& taps, const T* corner, const T* behind, int64_t C,
                                                      T* output, Position* positions) {
  constexpr int64_t L = lanes<wide<T>>;
  // A last vector may read on into the next pixel, but not from `behind` on.
  const int64_t vectors = std::min(ceil_div(C, L), (behind - corner - taps.last_offset()) / L);
  int64_t c = 0;
  for (; c < vectors * L; c += L) {
    Best<T> best(taps.first(w));
    for_each_tap<K>(w, taps, [&](int64_t row, int64_t kw, int64_t index) { best.keep(load_values(corner + row + kw * taps.step[2] + c), index); });
    store_best<SAVE>(output + c, SAVE ? positions + c : nullptr, best, C - c);
  }
  for (; c < C; c++) pool_one<SAVE>(w, taps, corner + c, output + c, SAVE ? positions + c : nullptr);
}

template <bool SAVE, class T, class Position>
void pool_channels_last(const Pool<T, Position>& p) {
  const Window& w = p.window;
  const int64_t C = p.channels, width = w.output[2];
  const Extent rows{w.output[0], w.output[1], 1};
  const T* behind = p.input + p.batch * volume(w.input) * C;
  torch::stable::parallel_for(0, p.batch * volume(rows), std::max<int64_t>(1, 4096 / (C * width + 1)), [&](int64_t begin, int64_t end) {
    OutputPosition at(rows, begin);
    for (int64_t row = begin; row < end; row++, at.advance(rows)) {
      const Corner corner = corner_of(w, at);
      const T* from = p.input + ((corner.batch * w.input[0] + corner.depth) * w.input[1] + corner.height) * w.input[2] * C;
      Taps taps{{taps_inside(w, 0, corner.depth), taps_inside(w, 1, corner.height), {}},
                {w.dilation[0] * w.input[1] * w.input[2] * C, w.dilation[1] * w.input[2] * C, w.dilation[2] * C}};
      for (int64_t x = 0, start = corner.width; x < width; x++, start += w.stride[2]) {
        taps.inside[2] = taps_inside(w, 2, start);
        const int64_t to = (row * width + x) * C;
        unrolled(w, taps.whole(w, 1) && taps.whole(w, 2), [&](auto K) {
          pool_pixel<K, SAVE>(w, taps, from + start * C, behind, C, p.output + to, SAVE ? p.positions + to : nullptr);
        });
      }
    }
  });
}

// The even elements of two vectors that follow each other.
template <class V, int... I>
inline __attribute__((always_inline)) V even_elements(V first, V second, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(first, second, (2 * I)...);
}

template <class V, int... I>
inline __attribute__((always_inline)) V odd_elements(V first, V second, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(first, second, (2 * I + 1)...);
}

// Elements at, at + STRIDE, ..., for a stride of 1 or 2. The last element read is number at + STRIDE * lanes - 1. Where `at` is a
// constant, an even tap and the odd one behind it share their loads.
template <int STRIDE, bool CONSTANT, class T>
inline __attribute__((always_inline)) Values<T> load_strided(const T* from, int64_t at) {
  constexpr int L = lanes<wide<T>>;
  if constexpr (STRIDE == 1) return load_values(from + at);
  constexpr auto all = std::make_integer_sequence<int, L>{};
  if (CONSTANT && at % 2 == 1) return odd_elements(load_values(from + at - 1), load_values(from + at - 1 + L), all);
  return even_elements(load_values(from + at), load_values(from + at + L), all);
}

// Positions [begin, end) of an output row, all of whose taps lie inside, by vectors; returns where it stopped. A last vector may read
// on into the next row, but not from `behind` on, and write on over results to come: there is room for those before `room`.
template <int K, bool SAVE, int STRIDE, class T, class Position>
inline __attribute__((always_inline)) int64_t pool_row(const Window& w, const Taps& taps, const T* corner, const T* behind, int64_t begin,
                                                       int64_t end, int64_t room, T* output, Position* positions) {
  constexpr int64_t L = lanes<wide<T>>;
  const int64_t readable = behind - corner - taps.last_offset() - STRIDE * L;
  const int64_t step = K > 0 ? 1 : taps.step[2];
  int64_t x = begin;
  for (; x < end && x * STRIDE <= readable; x += L) {
    Best<T> best(taps.first(w));
    for_each_tap<K>(w, taps, [&](int64_t row, int64_t kw, int64_t index) {
      best.keep(load_strided<STRIDE, (K > 0)>(corner + x * STRIDE + row, kw * step), index);
    });
    store_best<SAVE>(output + x, SAVE ? positions + x : nullptr, best, room - x);
  }
  return std::min(x, end);
}

template <bool SAVE, class T, class Position>
void pool_contiguous(const Pool<T, Position>& p) {
  const Window& w = p.window;
  const int64_t width = w.output[2], stride = w.stride[2];
  const Extent rows{w.output[0], w.output[1], 1};
  const T* behind = p.input + p.batch * p.channels * volume(w.input);
  // Positions all of whose taps lie inside.
  const int64_t last = w.input[2] + w.padding[2] - w.dilation[2] * (w.kernel[2] - 1) - 1;
  const int64_t x0 = std::min(width, ceil_div(w.padding[2], stride)), x1 = last < 0 ? x0 : std::clamp(last / stride + 1, x0, width);
  torch::stable::parallel_for(0, p.batch * p.channels * volume(rows), std::max<int64_t>(1, 4096 / (width + 1)), [&](int64_t begin, int64_t end) {
    OutputPosition at(rows, begin);  // in its plane: that is the batch here
    for (int64_t row = begin; row < end; row++, at.advance(rows)) {
      const Corner corner = corner_of(w, at);
      const T* from = p.input + ((corner.batch * w.input[0] + corner.depth) * w.input[1] + corner.height) * w.input[2] - w.padding[2];
      Taps taps{{taps_inside(w, 0, corner.depth), taps_inside(w, 1, corner.height), {}},
                {w.dilation[0] * w.input[1] * w.input[2], w.dilation[1] * w.input[2], w.dilation[2]}};
      T* output = p.output + row * width;
      Position* positions = SAVE ? p.positions + row * width : nullptr;
      const auto one = [&](int64_t x) {
        taps.inside[2] = taps_inside(w, 2, x * stride - w.padding[2]);
        pool_one<SAVE>(w, taps, from + x * stride, output + x, SAVE ? positions + x : nullptr);
      };
      int64_t x = 0;
      for (; x < x0; x++) one(x);
      taps.inside[2] = {0, w.kernel[2]};
      const int64_t room = (end - row) * width;
      unrolled(w, taps.whole(w, 1) && w.dilation[2] == 1, [&](auto K) {
        if (stride == 1) x = pool_row<K, SAVE, 1>(w, taps, from, behind, x0, x1, room, output, positions);
        if (stride == 2) x = pool_row<K, SAVE, 2>(w, taps, from, behind, x0, x1, room, output, positions);
      });
      for (; x < width; x++) one(x);
    }
  });
}

template <class T, class Position>
void pool(const Pool<T, Position>& p) {
  const bool save = p.positions != nullptr;
  if (p.channels_last)
    save ? pool_channels_last<true>(p) : pool_channels_last<false>(p);
  else
    save ? pool_contiguous<true>(p) : pool_contiguous<false>(p);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
