// Pooling over boxes: sums, which average pooling and its adjoint are made of, and maxima with their places. Boxes of one
// problem may differ in size, as those of adaptive pooling do. Sums are taken in a fixed order, whatever the threads.
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

// The sum of a run, by vectors.
template <class T>
inline wide<T> sum_of(const T* from, int64_t count) {
  constexpr int64_t L = lanes<wide<T>>;
  Values<T> sums{};
  int64_t i = 0;
  for (; i + L <= count; i += L) sums += load_values(from + i);
  wide<T> sum = 0;
  for (int l = 0; l < L; l++) sum += sums[l];
  for (; i < count; i++) sum += from[i];
  return sum;
}

// Row by row: the lines of the boxes are added up first, then the spans of that one line. Rows of the adjoint that sum the same lines are
// the same.
template <class T>
void box_sum_contiguous(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  const int64_t width = b.input[2], out_width = b.output[2], rows = p.batch * p.channels * b.output[0] * b.output[1];
  bool single = true;
  for (const Span& span : b.spans[2]) single = single && span.end - span.begin <= 1;
  // A box as wide as the picture is one run, as that of a mean over all pixels.
  const bool whole_lines = !p.divide_inputs && out_width == 1 && b.spans[2][0].begin == 0 && b.spans[2][0].end == width;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 4096 / (width + 1)), [&](int64_t begin, int64_t end) {
    Scratch<wide<T>> line(width);
    for (int64_t row = begin; row < end; row++) {
      const int64_t h = row % b.output[1], d = row / b.output[1] % b.output[0], plane = row / b.output[1] / b.output[0];
      T* __restrict to = p.output + row * out_width;
      const Span lines = b.spans[1][h];
      if (p.divide_inputs && row > begin && h > 0 && lines.begin == b.spans[1][h - 1].begin && lines.end == b.spans[1][h - 1].end) {
        std::memcpy(static_cast<void*>(to), to - out_width, out_width * sizeof(T));
        continue;
      }
      if (whole_lines) {
        wide<T> total = 0;
        for (int64_t id = b.spans[0][d].begin; id < b.spans[0][d].end; id++)
          total += sum_of(p.input + ((plane * b.input[0] + id) * b.input[1] + lines.begin) * width, (lines.end - lines.begin) * width);
        to[0] = static_cast<T>(total / static_cast<wide<T>>(by[0][d] * by[1][h] * by[2][0]));
        continue;
      }
      wide<T>* __restrict sum = line.get();
      std::fill(sum, sum + width, wide<T>(0));
      for (int64_t id = b.spans[0][d].begin; id < b.spans[0][d].end; id++) {
        for (int64_t ih = lines.begin; ih < lines.end; ih++) {
          const T* __restrict from = p.input + ((plane * b.input[0] + id) * b.input[1] + ih) * width;
          if (!p.divide_inputs) {
            for (int64_t w = 0; w < width; w++) sum[w] += from[w];
          } else {
            const double part = by[0][id] * by[1][ih];
            for (int64_t w = 0; w < width; w++) sum[w] += from[w] / static_cast<wide<T>>(part * by[2][w]);
          }
        }
      }
      if (p.divide_inputs && single) {
        for (int64_t x = 0; x < out_width; x++) to[x] = b.spans[2][x].begin < b.spans[2][x].end ? static_cast<T>(sum[b.spans[2][x].begin]) : T(0);
        continue;
      }
      for (int64_t x = 0; x < out_width; x++) {
        wide<T> total = 0;
        for (int64_t w = b.spans[2][x].begin; w < b.spans[2][x].end; w++) total += sum[w];
        const auto whole = static_cast<wide<T>>(p.divide_inputs ? 1 : by[0][d] * by[1][h] * by[2][x]);
        to[x] = static_cast<T>(total / whole);
      }
    }
  });
}

template <class T>
void box_sum(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  p.channels_last ? box_sum_channels_last(p, b, by) : box_sum_contiguous(p, b, by);
}

// One box of one channel, whose pixels lie `step` apart. Ties go to the first maximum, a NaN wins (the last one, as in torch).
template <class T>
inline void box_max_one(const Boxes& b, const BoxPosition& at, int64_t first, const T* from, int64_t step, T* output, int64_t* place) {
  wide<T> best = -std::numeric_limits<wide<T>>::infinity();
  int64_t index = first;
  for_each_pixel(b, at, [&](int64_t pixel, int64_t, int64_t, int64_t) {
    const wide<T> value = from[pixel * step];
    const bool better = (value > best) | (value != value);
    best = better ? value : best;
    index = better ? pixel : index;
  });
  *output = static_cast<T>(best);
  *place = index;
}

template <class T>
void box_max(const BoxMax<T>& p, const Boxes& b) {
  constexpr int64_t L = lanes<wide<T>>;
  // A contiguous picture is one of a single channel, as often as it has channels.
  const int64_t C = p.channels_last ? p.channels : 1, pictures = p.channels_last ? p.batch : p.batch * p.channels, inputs = volume(b.input);
  const bool counted = inputs <= std::numeric_limits<WideIndex<T>>::max();  // vectors count pixels in so many bits
  torch::stable::parallel_for(0, pictures * volume(b.output), std::max<int64_t>(1, BOX_GRAIN / (C + 1)), [&](int64_t begin, int64_t end) {
    BoxPosition at = box_position(b.output, begin);
    for (int64_t q = begin; q < end; q++, step(at, b.output)) {
      const int64_t first = (b.spans[0][at.d].begin * b.input[1] + b.spans[1][at.h].begin) * b.input[2] + b.spans[2][at.w].begin;
      const T* from = p.input + at.batch * inputs * C;
      const int64_t to = q * C;
      int64_t c = 0;
      for (; counted && c + L <= C; c += L) {
        Best<T> best(first);
        for_each_pixel(b, at, [&](int64_t pixel, int64_t, int64_t, int64_t) { best.keep(load_values(from + pixel * C + c), pixel); });
        store_values(p.output + to + c, best.value);
        store_positions<T>(p.index + to + c, best.position);
      }
      for (; c < C; c++) box_max_one(b, at, first, from + c, C, p.output + to + c, p.index + to + c);
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
