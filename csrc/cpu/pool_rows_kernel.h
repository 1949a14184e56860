// Max pooling's scatter along contiguous rows of pixels: a pixel adds up the windows that picked it, and vectors run along the row.
namespace torchconv {
namespace TORCHCONV_ISA {

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

// Two vectors' elements in turn: to[2 * i] = even[i], to[2 * i + 1] = odd[i].
template <class V, class T, int... I>
inline __attribute__((always_inline)) void store_in_turn(T* to, V even, V odd, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  store(to, __builtin_shufflevector(even, odd, (I % 2 * L + I / 2)...));
  store(to + L, __builtin_shufflevector(even, odd, (I % 2 * L + (L + I) / 2)...));
}

// Where pixel STRIDE * m + r of a row finds tap `tap` of a window's row: in window m + `window`, for all m alike.
template <int STRIDE>
std::array<std::vector<Holder>, STRIDE> shifts(const Window& w) {
  std::array<std::vector<Holder>, STRIDE> of;
  for (int64_t r = 0; r < STRIDE; r++)
    for (int64_t tap = w.kernel[2] - 1; tap >= 0; tap--) {  // the first window first
      const int64_t reach = r + w.padding[2] - tap * w.dilation[2];
      if (reach % STRIDE == 0) of[r].push_back({reach / STRIDE, tap});
    }
  return of;
}

// A row of windows' values and positions, as vectors have them, between margins of zeros.
template <class T, class Position>
struct PooledRow {
  using Index = WideIndex<T>;
  int64_t row = -1;
  Scratch<wide<T>> values;
  Scratch<Index> positions;

  explicit PooledRow(int64_t size) : values(size), positions(size) {
    zero_run(values.get(), size);
    zero_run(positions.get(), size);
  }
  // There is room for a vector behind the last margin.
  void read(const PoolMap<T, Position>& p, int64_t from, int64_t margin) {
    constexpr int64_t L = lanes<wide<T>>;
    if (row == from) return;
    row = from;
    const int64_t width = p.window.output[2], readable = p.batch * p.channels * volume(p.window.output) - from * width;
    const T* const value = p.pooled + from * width;
    const Position* const position = p.positions + from * width;
    wide<T>* const to = values.get() + margin;
    int64_t x = 0;
    for (; x < width && x + L <= readable; x += L) {  // a last vector may read on into the next row
      store(to + x, load_values(value + x));
      store(positions.get() + margin + x, load_positions<T>(position + x));
    }
    for (; x < width; x++) {
      to[x] = static_cast<wide<T>>(value[x]);
      positions.get()[margin + x] = static_cast<Index>(position[x]);
    }
    store(to + width, Values<T>{});
  }
};

// Where one of the pixels looks, for a start: whether there the position is `tap`, and if so for the value.
template <class T>
struct Place {
  const WideIndex<T>* positions;
  const wide<T>* values;
  WideIndex<T> tap;
};

template <class T>
inline __attribute__((always_inline)) Values<T> sum_of_picked(const Place<T>* place, const Place<T>* behind, int64_t m) {
  Values<T> sum{};
  for (; place != behind; place++) sum += load(place->positions + m) == Indices<T>{} + place->tap ? load(place->values + m) : Values<T>{};
  return sum;
}

// Row by row, for windows that are STRIDE pixels apart: vectors run over them.
template <int STRIDE, class T, class Position>
void pool_scatter_rows(const PoolMap<T, Position>& p) {
  constexpr int64_t L = lanes<wide<T>>;
  const Window& w = p.window;
  const int64_t W = w.input[2], columns = ceil_div(W, STRIDE * L) * L;
  const auto depths = holders(w, 0), heights = holders(w, 1);
  const auto taps = shifts<STRIDE>(w);
  int64_t front = 0, behind = 0;
  for (const auto& of_class : taps)
    for (const Holder& at : of_class) {
      front = std::max(front, -at.window);
      behind = std::max(behind, at.window);
    }
  const int64_t size = front + std::max(columns, w.output[2]) + behind + L;
  const Extent lines{w.input[0], w.input[1], 1};
  torch::stable::parallel_for(0, p.batch * p.channels * volume(lines), std::max<int64_t>(1, 4096 / (W + 1)), [&](int64_t begin, int64_t end) {
    std::vector<PooledRow<T, Position>> rows;
    std::array<std::vector<Place<T>>, STRIDE> places;
    OutputPosition at(lines, begin);  // in its plane: that is the batch here
    for (int64_t row = begin; row < end; row++, at.advance(lines)) {
      for (auto& of_class : places) of_class.clear();
      size_t held = 0;
      for (const Holder& od : depths[at.place[0]])
        for (const Holder& oh : heights[at.place[1]]) {
          if (rows.size() == held) rows.emplace_back(size);
          auto& pooled = rows[held++];
          pooled.read(p, (at.batch * w.output[0] + od.window) * w.output[1] + oh.window, front);
          const int64_t first_tap = (od.tap * w.kernel[1] + oh.tap) * w.kernel[2];
          for (int r = 0; r < STRIDE; r++)
            for (const Holder& from : taps[r]) {
              Place<T>& place = places[r].emplace_back();  // field by field: written whole it would be read before it is there
              place.positions = pooled.positions.get() + front + from.window;
              place.values = pooled.values.get() + front + from.window;
              place.tap = static_cast<WideIndex<T>>(first_tap + from.tap);
            }
        }
      T* const to = p.full + row * W;
      const int64_t room = (end - row) * W;  // a last vector may write on into rows to come
      const Place<T>*first[STRIDE], *last[STRIDE];
      for (int r = 0; r < STRIDE; r++) {
        first[r] = places[r].data();
        last[r] = first[r] + places[r].size();
      }
      for (int64_t m = 0; m < columns; m += L) {
        Values<T> sums[STRIDE];
#pragma GCC unroll 2
        for (int r = 0; r < STRIDE; r++) sums[r] = sum_of_picked(first[r], last[r], m);
        wide<T> run[STRIDE * L];
        if constexpr (STRIDE == 1) {
          store(run, sums[0]);
        } else {
          store_in_turn(run, sums[0], sums[1], std::make_integer_sequence<int, L>{});
        }
        for (int64_t x = STRIDE * m, r = 0; r < STRIDE && x < W; r++, x += L) store_some(to + x, load(run + r * L), room - x);
      }
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
