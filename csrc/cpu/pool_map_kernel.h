// The two linear maps of max pooling's derivative: from and to the places that its windows picked.
namespace torchconv {
namespace TORCHCONV_ISA {

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

inline bool within(int64_t i, int64_t size) { return 0 <= i && i < size; }

// Plane by plane, windows in order: the sum at an input does not depend on the number of threads.
template <class T, class Position>
void pool_scatter_planes(const PoolMap<T, Position>& p) {
  const Window& w = p.window;
  const int64_t inputs = volume(w.input), outputs = volume(w.output);
  const int64_t taps = std::min<int64_t>(volume(w.kernel), 256);  // those of larger windows are found the slow way
  std::vector<Extent> step(taps);  // from a window's corner to its taps
  std::vector<int64_t> offset(taps);
  for (int64_t tap = 0; tap < taps; tap++) {
    const int64_t kw = tap % w.kernel[2], kh = tap / w.kernel[2] % w.kernel[1], kd = tap / w.kernel[2] / w.kernel[1];
    step[tap] = {kd * w.dilation[0], kh * w.dilation[1], kw * w.dilation[2]};
    offset[tap] = (step[tap][0] * w.input[1] + step[tap][1]) * w.input[2] + step[tap][2];
  }
  constexpr bool in_place = std::is_same_v<T, wide<T>>;
  const auto span = [&](int i) { return (w.kernel[i] - 1) * w.dilation[i]; };
  // The windows [first, last) of a row lie inside of it.
  const int64_t width = w.output[2], stride = w.stride[2], room = w.input[2] + w.padding[2] - span(2) - 1;
  const int64_t first = std::min(ceil_div(w.padding[2], stride), width), last = std::clamp(room < 0 ? 0 : room / stride + 1, first, width);
  torch::stable::parallel_for(0, p.batch * p.channels, std::max<int64_t>(1, 4096 / (inputs + 1)), [&](int64_t begin, int64_t end) {
    const Scratch<wide<T>> sums(in_place ? 0 : inputs);
    for (int64_t plane = begin; plane < end; plane++) {
      T* const result = p.full + plane * inputs;
      wide<T>* sum = sums.get();
      if constexpr (in_place) sum = result;
      zero_run(sum, inputs);
      const Position* position = p.positions + plane * outputs;
      const T* value = p.pooled + plane * outputs;
      for (int64_t od = 0, q = 0; od < w.output[0]; od++) {
        for (int64_t oh = 0; oh < w.output[1]; oh++, q += width) {
          const int64_t d = od * w.stride[0] - w.padding[0], h = oh * w.stride[1] - w.padding[1];
          bool inside = 0 <= d && d + span(0) < w.input[0] && 0 <= h && h + span(1) < w.input[1];
          for (int64_t x = 0; x < width; x++) inside &= static_cast<uint64_t>(position[q + x]) < static_cast<uint64_t>(taps);
          const int64_t begin_inside = inside ? first : width, end_inside = inside ? last : width;
          const int64_t corner = (d * w.input[1] + h) * w.input[2] - w.padding[2];  // an index: it may lie outside of the plane
          const auto add = [&](int64_t x) {
            const int64_t tap = position[q + x];
            int64_t to = -1;
            if (tap < 0 || tap >= taps) {
              to = picked(w, q + x, tap);
            } else if (const Extent& s = step[tap]; within(d + s[0], w.input[0]) && within(h + s[1], w.input[1]) &&
                                                    within(x * stride - w.padding[2] + s[2], w.input[2])) {
              to = corner + x * stride + offset[tap];
            }
            if (to >= 0) sum[to] += static_cast<wide<T>>(value[q + x]);
          };
          for (int64_t x = 0; x < begin_inside; x++) add(x);
          for (int64_t x = begin_inside; x < end_inside; x++)
            sum[corner + x * stride + offset[position[q + x]]] += static_cast<wide<T>>(value[q + x]);
          for (int64_t x = end_inside; x < width; x++) add(x);
        }
      }
      if constexpr (!in_place)
        for (int64_t i = 0; i < inputs; i++) result[i] = static_cast<T>(sum[i]);
    }
  });
}

// A window that holds a coordinate, and as which of its taps.
struct Holder {
  int64_t window, tap;
};

// For each coordinate x of dimension i the windows that hold it, those o with o * stride - padding + k * dilation == x, in order.
inline std::vector<std::vector<Holder>> holders(const Window& w, int i) {
  std::vector<std::vector<Holder>> of(w.input[i]);
  for (int64_t x = 0; x < w.input[i]; x++) {
    const int64_t reach = x + w.padding[i], span = (w.kernel[i] - 1) * w.dilation[i];
    const int64_t first = reach <= span ? 0 : ceil_div(reach - span, w.stride[i]), last = std::min(reach / w.stride[i], w.output[i] - 1);
    for (int64_t o = first; o <= last; o++)
      if ((reach - o * w.stride[i]) % w.dilation[i] == 0) of[x].push_back({o, (reach - o * w.stride[i]) / w.dilation[i]});
  }
  return of;
}

// Calls f with the number of windows that hold a pixel as a constant, where there are few; with 0 for any others.
template <class F>
inline __attribute__((always_inline)) void counted(size_t holders, const F& f) {
  if (holders == 1) return f(std::integral_constant<size_t, 1>{});
  if (holders == 2) return f(std::integral_constant<size_t, 2>{});
  if (holders == 4) return f(std::integral_constant<size_t, 4>{});
  f(std::integral_constant<size_t, 0>{});
}

template <class T, class Position>
void pool_scatter_channels_last(const PoolMap<T, Position>& p) {
  constexpr int64_t L = lanes<wide<T>>;
  const Window& w = p.window;
  const int64_t C = p.channels;
  const auto depths = holders(w, 0), heights = holders(w, 1), widths = holders(w, 2);
  const Extent lines{w.input[0], w.input[1], 1};
  torch::stable::parallel_for(0, p.batch * volume(lines), std::max<int64_t>(1, 4096 / (C * w.input[2] + 1)), [&](int64_t begin, int64_t end) {
    std::vector<Holder> rows, found;  // rows of windows that hold a row of pixels, and windows that hold a pixel; as which of their taps
    OutputPosition at(lines, begin);
    for (int64_t row = begin; row < end; row++, at.advance(lines)) {
      rows.clear();
      for (const Holder& od : depths[at.place[0]])
        for (const Holder& oh : heights[at.place[1]])
          rows.push_back({((at.batch * w.output[0] + od.window) * w.output[1] + oh.window) * w.output[2], (od.tap * w.kernel[1] + oh.tap) * w.kernel[2]});
      for (int64_t x = 0; x < w.input[2]; x++) {
        found.clear();
        for (const Holder& line : rows)
          for (const Holder& ow : widths[x]) {
            Holder& holder = found.emplace_back();  // field by field: written whole it would be read before it is there
            holder.window = (line.window + ow.window) * C;
            holder.tap = line.tap + ow.tap;
          }
        T* const to = p.full + (row * w.input[2] + x) * C;
        counted(found.size(), [&](auto count) {
          const size_t windows = count > 0 ? count : found.size();
          int64_t c = 0;
          for (; c + L <= C; c += L) {
            Values<T> sum{};
#pragma GCC unroll 4
            for (size_t i = 0; i < windows; i++) {
              const auto picked = load_positions<T>(p.positions + found[i].window + c) == Indices<T>{} + static_cast<WideIndex<T>>(found[i].tap);
              sum += picked ? load_values(p.pooled + found[i].window + c) : Values<T>{};
            }
            store_values(to + c, sum);
          }
          for (; c < C; c++) {
            wide<T> sum = 0;
            for (size_t i = 0; i < windows; i++)
              if (p.positions[found[i].window + c] == static_cast<Position>(found[i].tap)) sum += static_cast<wide<T>>(p.pooled[found[i].window + c]);
            to[c] = static_cast<T>(sum);
          }
        });
      }
    }
  });
}

// Two vectors' elements in turn: to[2 * i] = even[i], to[2 * i + 1] = odd[i].
template <class V, class T, int... I>
inline __attribute__((always_inline)) void store_in_turn(T* to, V even, V odd, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  store(to, __builtin_shufflevector(even, odd, (I % 2 * L + I / 2)...));
  store(to + L, __builtin_shufflevector(even, odd, (I % 2 * L + (L + I) / 2)...));
}

// Windows two pixels apart and no larger, that cover each row: each pixel is in one window, and a window's row gives two runs of it.
inline bool are_pairs(const Window& w) {
  return w.stride[2] == 2 && w.kernel[2] == 2 && w.padding == Extent{0, 0, 0} && w.dilation == Extent{1, 1, 1} && w.kernel[0] <= w.stride[0] &&
         w.kernel[1] <= w.stride[1] && 2 * w.output[2] >= w.input[2];
}

template <class T, class Position>
void pool_scatter_pairs(const PoolMap<T, Position>& p) {
  constexpr int64_t L = lanes<wide<T>>;
  const Window& w = p.window;
  const int64_t W = w.input[2], total = p.batch * p.channels * volume(w.output);
  const Extent lines{w.input[0], w.input[1], 1};
  torch::stable::parallel_for(0, p.batch * p.channels * volume(lines), std::max<int64_t>(1, 4096 / (W + 1)), [&](int64_t begin, int64_t end) {
    OutputPosition place(lines, begin);  // in its plane: that is the batch here
    for (int64_t row = begin; row < end; row++, place.advance(lines)) {
      const auto [d, h, _] = place.place;
      const int64_t plane = place.batch;
      const int64_t kd = d % w.stride[0], kh = h % w.stride[1], od = d / w.stride[0], oh = h / w.stride[1];
      T* const to = p.full + row * W;
      if (kd >= w.kernel[0] || kh >= w.kernel[1] || od >= w.output[0] || oh >= w.output[1]) {
        zero_run(to, W);
        continue;
      }
      const int64_t from = ((plane * w.output[0] + od) * w.output[1] + oh) * w.output[2], tap = (kd * w.kernel[1] + kh) * 2;
      int64_t x = 0;
      for (; 2 * x < W && from + x + L <= total; x += L) {  // a last vector may read on into the next row
        const Values<T> value = load_values(p.pooled + from + x), none{};
        const Indices<T> position = load_positions<T>(p.positions + from + x), first = Indices<T>{} + static_cast<WideIndex<T>>(tap);
        const Values<T> even = none + (position == first ? value : none), odd = none + (position == first + 1 ? value : none);
        wide<T> both[2 * L];
        store_in_turn(both, even, odd, std::make_integer_sequence<int, L>{});
        T some[2 * L];
        const bool whole = W - 2 * x >= 2 * L;
        T* const run = whole ? to + 2 * x : some;
        store_values(run, load(both));
        store_values(run + L, load(both + L));
        if (!whole) copy_run(some, to + 2 * x, W - 2 * x);
      }
      for (x *= 2; x < W; x++) {
        const int64_t at = from + x / 2;
        to[x] = p.positions[at] == static_cast<Position>(tap + x % 2) ? static_cast<T>(wide<T>(0) + static_cast<wide<T>>(p.pooled[at])) : T(0);
      }
    }
  });
}

template <class T, class Position>
void pool_scatter(const PoolMap<T, Position>& p) {
  if (p.channels_last) return pool_scatter_channels_last(p);
  if constexpr (std::is_same_v<T, wide<T>>)
    if (are_pairs(p.window) && 2 * p.window.output[2] >= 3 * lanes<T>) return pool_scatter_pairs(p);  // shorter rows don't fill vectors
  pool_scatter_planes(p);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
