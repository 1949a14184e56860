// Sums over boxes, which average pooling and its adjoint are made of. Boxes of one problem may differ in size, as those of adaptive pooling
// do. Sums are taken in a fixed order, whatever the threads.
namespace torchconv {
namespace TORCHCONV_ISA {

constexpr int64_t BOX_GRAIN = 4096;  // results that are worth a thread

struct BoxPosition {
  int64_t batch, d, h, w;
};

inline BoxPosition box_position(const Extent& size, int64_t q) {
  return {q / size[2] / size[1] / size[0], q / size[2] / size[1] % size[0], q / size[2] % size[1], q % size[2]};
}

// The position after `at`, without another division.
inline void step(BoxPosition& at, const Extent& size) {
  if (++at.w < size[2]) return;
  at.w = 0;
  if (++at.h < size[1]) return;
  at.h = 0;
  if (++at.d < size[0]) return;
  at.d = 0;
  at.batch++;
}

// Visits the pixels of the box of `at`, in order, with the index of each in its plane.
template <class Visit>
inline void for_each_pixel(const Boxes& b, const BoxPosition& at, const Visit& visit) {
  const Span ds = b.spans[0][at.d], hs = b.spans[1][at.h], ws = b.spans[2][at.w];
  for (int64_t d = ds.begin; d < ds.end; d++)
    for (int64_t h = hs.begin; h < hs.end; h++)
      for (int64_t w = ws.begin; w < ws.end; w++) visit((d * b.input[1] + h) * b.input[2] + w, d, h, w);
}

// The sum over one box for channels [c, c + VECTORS * lanes).
template <int VECTORS, class T>
inline __attribute__((always_inline)) void box_sum_vectors(const BoxSum<T>& p, const Boxes& b, const Divisor& by, const BoxPosition& at,
                                                           wide<T> whole, int64_t c, T* to) {
  constexpr int64_t L = lanes<wide<T>>;
  const std::vector<Span>& columns = b.spans[2];
  const int64_t next = at.w + 1 < b.output[2] ? columns[at.w + 1].begin - columns[at.w].begin : 0;
  const T* from = p.input + at.batch * volume(b.input) * p.channels + c;
  Values<T> sum[VECTORS] = {};
  for_each_pixel(b, at, [&](int64_t pixel, int64_t d, int64_t h, int64_t w) {
    const T* here = from + pixel * p.channels;
    for (int v = 0; v < VECTORS; v++) __builtin_prefetch(here + next * p.channels + v * L);
    if (!p.divide_inputs) {
      for (int v = 0; v < VECTORS; v++) sum[v] += load_values(here + v * L);
    } else {
      const auto part = static_cast<wide<T>>(by[0][d] * by[1][h] * by[2][w]);
      for (int v = 0; v < VECTORS; v++) sum[v] += load_values(here + v * L) / part;
    }
  });
  for (int v = 0; v < VECTORS; v++) store_values(to + c + v * L, sum[v] / whole);
}

template <class T>
void box_sum_channels_last(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  constexpr int64_t L = lanes<wide<T>>;
  const int64_t C = p.channels, inputs = volume(b.input);
  torch::stable::parallel_for(0, p.batch * volume(b.output), std::max<int64_t>(1, BOX_GRAIN / (C + 1)), [&](int64_t begin, int64_t end) {
    BoxPosition at = box_position(b.output, begin);
    for (int64_t q = begin; q < end; q++, step(at, b.output)) {
      const auto whole = static_cast<wide<T>>(p.divide_inputs ? 1 : by[0][at.d] * by[1][at.h] * by[2][at.w]);
      T* const to = p.output + q * C;
      int64_t c = 0;
      for (; c + 8 * L <= C; c += 8 * L) box_sum_vectors<8>(p, b, by, at, whole, c, to);
      for (; c + 4 * L <= C; c += 4 * L) box_sum_vectors<4>(p, b, by, at, whole, c, to);
      for (; c + L <= C; c += L) box_sum_vectors<1>(p, b, by, at, whole, c, to);
      for (; c < C; c++) {
        wide<T> sum = 0;
        for_each_pixel(b, at, [&](int64_t pixel, int64_t d, int64_t h, int64_t w) {
          const wide<T> value = p.input[(at.batch * inputs + pixel) * C + c];
          sum += p.divide_inputs ? value / static_cast<wide<T>>(by[0][d] * by[1][h] * by[2][w]) : value;
        });
        to[c] = static_cast<T>(sum / whole);
      }
    }
  });
}

// Means over all pixels of a picture, which is read from its first byte to its last. So many parts of it are summed on their own,
// whatever the threads: it may be the only one, and sums of sums err less.
template <class T>
void mean_of_pixels(const BoxSum<T>& p, int64_t pixels, wide<T> whole) {
  constexpr int64_t L = lanes<wide<T>>;
  const int64_t C = p.channels, width = ceil_div(C, L) * L, parts = std::clamp<int64_t>(pixels * C >> 15, 1, std::min<int64_t>(pixels, 16));
  const Scratch<wide<T>> sums(p.batch * parts * width);
  torch::stable::parallel_for(0, p.batch * parts, std::max<int64_t>(1, 4 * BOX_GRAIN * parts / (pixels * C)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = pixels * (i % parts) / parts, behind = pixels * (i % parts + 1) / parts;
      const T* from = p.input + (i / parts * pixels + first) * C;
      wide<T>* const sum = sums.get() + i * width;
      zero_run(sum, width);
      int64_t pixel = first;
      for (; pixel + 4 <= behind; pixel += 4, from += 4 * C)
        for (int64_t c = 0; c < C; c += L) {
          const auto value = [&](int k) __attribute__((always_inline)) { return load_some(from + k * C + c, C - c); };
          store(sum + c, load(sum + c) + ((value(0) + value(1)) + (value(2) + value(3))));
        }
      for (; pixel < behind; pixel++, from += C)
        for (int64_t c = 0; c < C; c += L) store(sum + c, load(sum + c) + load_some(from + c, C - c));
    }
  });
  for (int64_t n = 0; n < p.batch; n++)
    for (int64_t c = 0; c < C; c += L) {
      Values<T> total{};
      for (int64_t i = 0; i < parts; i++) total += load(sums.get() + (n * parts + i) * width + c);
      store_some(p.output + n * C + c, total / whole, C - c);
    }
}

// The sum of a run, by vectors.
template <class T>
inline wide<T> sum_of(const T* from, int64_t count) {
  constexpr int64_t L = lanes<wide<T>>;
  Values<T> sums[4] = {};  // independent of each other, or each would wait for the one before
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L)
    for (int v = 0; v < 4; v++) sums[v] += load_values(from + i + v * L);
  for (; i + L <= count; i += L) sums[0] += load_values(from + i);
  wide<T> each[L], rest = 0;
  store(each, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; i++) rest += from[i];
  for (int64_t half = L / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; l++) each[l] += each[l + half];
  return each[0] + rest;
}

// Means of boxes as wide as the picture, whose pixels are one run in each of the picture's slices.
template <class T>
void box_mean_of_lines(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  const int64_t width = b.input[2];
  const Extent& size = b.output;
  const int64_t pixels = ceil_div(volume(b.input), volume(size));  // of a box, about
  torch::stable::parallel_for(0, p.batch * p.channels * volume(size), std::max<int64_t>(1, 4 * BOX_GRAIN / pixels), [&](int64_t begin, int64_t end) {
    BoxPosition at = box_position(size, begin);  // in its plane: that is the batch here
    for (int64_t q = begin; q < end; q++, step(at, size)) {
      const Span lines = b.spans[1][at.h];
      wide<T> total = 0;
      for (int64_t d = b.spans[0][at.d].begin; d < b.spans[0][at.d].end; d++)
        total += sum_of(p.input + ((at.batch * b.input[0] + d) * b.input[1] + lines.begin) * width, (lines.end - lines.begin) * width);
      p.output[q] = static_cast<T>(total / static_cast<wide<T>>(by[0][at.d] * by[1][at.h] * by[2][0]));
    }
  });
}

// Outputs [begin, end) of a row whose boxes have the same width, begin `step` after each other, and divide by the same number.
struct EvenBoxes {
  int64_t begin, end, width, step;
};

// Those around the middle one.
inline EvenBoxes even_boxes(const std::vector<Span>& spans, const std::vector<double>& by) {
  const int64_t count = spans.size(), middle = count / 2, next = std::min(middle + 1, count - 1);
  EvenBoxes even{middle, middle + 1, spans[middle].end - spans[middle].begin, spans[next].begin - spans[middle].begin};
  const auto follows = [&](int64_t x, int64_t from) {
    return spans[x].begin - spans[from].begin == (x - from) * even.step && spans[x].end - spans[x].begin == even.width && by[x] == by[from];
  };
  while (even.begin > 0 && follows(even.begin - 1, middle)) even.begin--;
  while (even.end < count && follows(even.end, middle)) even.end++;
  return even;
}

// Sums of `even.width` elements that begin STEP after each other, over `whole`: outputs [even.begin, even.end), by vectors, which may read
// two vectors on, and write results to come, before `room`.
template <int STEP, class T>
inline void even_sums(const wide<T>* sum, const EvenBoxes& even, int64_t first, wide<T> whole, int64_t room, T* to) {
  constexpr int64_t L = lanes<wide<T>>;
  for (int64_t x = even.begin; x < even.end; x += L) {
    const wide<T>* const from = sum + first + (x - even.begin) * STEP;
    Values<T> total{};
    for (int64_t k = 0; k < even.width; k++) total += load_strided<STEP, false>(from, k);
    store_some(to + x, total / whole, room - x);
  }
}

// Row by row: the lines of the boxes are added up first, then the spans of that one line.
template <class T>
void box_mean_contiguous(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  constexpr int64_t L = lanes<wide<T>>;
  const int64_t width = b.input[2], out_width = b.output[2];
  const std::vector<Span>& spans = b.spans[2];
  const Extent rows{b.output[0], b.output[1], 1};
  EvenBoxes even = even_boxes(spans, by[2]);
  if (even.step != 1 && even.step != 2) even.end = even.begin;
  torch::stable::parallel_for(0, p.batch * p.channels * volume(rows), std::max<int64_t>(1, BOX_GRAIN / (width + 1)), [&](int64_t begin, int64_t end) {
    const Scratch<wide<T>> line(width + 2 * L);
    wide<T>* __restrict const sum = line.get();
    zero_run(sum + width, 2 * L);
    BoxPosition at = box_position(rows, begin);
    for (int64_t row = begin; row < end; row++, step(at, rows)) {
      T* const to = p.output + row * out_width;
      bool first = true;
      for (int64_t d = b.spans[0][at.d].begin; d < b.spans[0][at.d].end; d++) {
        for (int64_t h = b.spans[1][at.h].begin; h < b.spans[1][at.h].end; h++, first = false) {
          const T* __restrict const from = p.input + ((at.batch * b.input[0] + d) * b.input[1] + h) * width;
          for (int64_t w = 0; w < width; w++) sum[w] = (first ? wide<T>(0) : sum[w]) + static_cast<wide<T>>(from[w]);
        }
      }
      const double lines = by[0][at.d] * by[1][at.h];
      if (even.begin < even.end) {
        const auto whole = static_cast<wide<T>>(lines * by[2][even.begin]);
        const int64_t from = spans[even.begin].begin, room = (end - row) * out_width;
        even.step == 1 ? even_sums<1>(sum, even, from, whole, room, to) : even_sums<2>(sum, even, from, whole, room, to);
      }
      const auto one = [&](int64_t x) {
        wide<T> total = 0;
        for (int64_t w = spans[x].begin; w < spans[x].end; w++) total += sum[w];
        to[x] = static_cast<T>(total / static_cast<wide<T>>(lines * by[2][x]));
      };
      for (int64_t x = 0; x < even.begin; x++) one(x);
      for (int64_t x = even.end; x < out_width; x++) one(x);
    }
  });
}

// The adjoint, of what was divided before it is summed. Rows that sum the same lines are the same.
template <class T>
void box_sum_contiguous(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  const int64_t width = b.input[2], out_width = b.output[2];
  bool single = true;
  for (const Span& span : b.spans[2]) single = single && span.end - span.begin <= 1;
  const Extent rows{b.output[0], b.output[1], 1};
  torch::stable::parallel_for(0, p.batch * p.channels * volume(rows), std::max<int64_t>(1, BOX_GRAIN / (width + 1)), [&](int64_t begin, int64_t end) {
    const Scratch<wide<T>> line(width);
    wide<T>* __restrict const sum = line.get();
    BoxPosition at = box_position(rows, begin);
    for (int64_t row = begin; row < end; row++, step(at, rows)) {
      T* __restrict const to = p.output + row * out_width;
      const Span lines = b.spans[1][at.h];
      if (row > begin && at.h > 0 && lines.begin == b.spans[1][at.h - 1].begin && lines.end == b.spans[1][at.h - 1].end) {
        copy_run(to - out_width, to, out_width);
        continue;
      }
      std::fill(sum, sum + width, wide<T>(0));
      for (int64_t d = b.spans[0][at.d].begin; d < b.spans[0][at.d].end; d++) {
        for (int64_t h = lines.begin; h < lines.end; h++) {
          const T* __restrict const from = p.input + ((at.batch * b.input[0] + d) * b.input[1] + h) * width;
          const double part = by[0][d] * by[1][h];
          for (int64_t w = 0; w < width; w++) sum[w] += from[w] / static_cast<wide<T>>(part * by[2][w]);
        }
      }
      for (int64_t x = 0; x < out_width; x++) {
        const Span span = b.spans[2][x];
        wide<T> total = 0;
        if (single)
          total = span.begin < span.end ? sum[span.begin] : wide<T>(0);
        else
          for (int64_t w = span.begin; w < span.end; w++) total += sum[w];
        to[x] = static_cast<T>(total);
      }
    }
  });
}

template <class T>
void box_sum(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  const auto all = [&](int i) { return b.output[i] == 1 && b.spans[i][0].begin == 0 && b.spans[i][0].end == b.input[i]; };
  if (p.channels_last) {
    if (p.divide_inputs || !all(0) || !all(1) || !all(2)) return box_sum_channels_last(p, b, by);
    return mean_of_pixels(p, volume(b.input), static_cast<wide<T>>(by[0][0] * by[1][0] * by[2][0]));
  }
  if (p.divide_inputs) return box_sum_contiguous(p, b, by);
  all(2) ? box_mean_of_lines(p, b, by) : box_mean_contiguous(p, b, by);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
