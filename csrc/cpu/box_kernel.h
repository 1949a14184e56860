// Pooling over boxes: sums, which average pooling and its adjoint are made of, and the place of the maximum. Boxes of one
// problem may differ in size, as those of adaptive pooling do. Sums are taken in a fixed order, whatever the threads.
namespace torchconv {
namespace TORCHCONV_ISA {

constexpr int64_t BOX_CHUNK = 64;  // channels that are summed together

struct BoxPosition {
  int64_t batch, d, h, w;
};

inline BoxPosition box_position(const Extent& size, int64_t q) {
  return {q / size[2] / size[1] / size[0], q / size[2] / size[1] % size[0], q / size[2] % size[1], q % size[2]};
}

// Visits the pixels of the box of `at`, in order, with the index of each in its plane.
template <class Visit>
inline void for_each_pixel(const Boxes& b, const BoxPosition& at, const Visit& visit) {
  const Span ds = b.spans[0][at.d], hs = b.spans[1][at.h], ws = b.spans[2][at.w];
  for (int64_t d = ds.begin; d < ds.end; d++)
    for (int64_t h = hs.begin; h < hs.end; h++)
      for (int64_t w = ws.begin; w < ws.end; w++) visit((d * b.input[1] + h) * b.input[2] + w, d, h, w);
}

template <class T>
void box_sum_channels_last(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  const int64_t C = p.channels, inputs = volume(b.input);
  torch::stable::parallel_for(0, p.batch * volume(b.output), std::max<int64_t>(1, 4096 / (C + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; q++) {
      const BoxPosition at = box_position(b.output, q);
      const auto whole = static_cast<wide<T>>(p.divide_inputs ? 1 : by[0][at.d] * by[1][at.h] * by[2][at.w]);
      for (int64_t c = 0; c < C; c += BOX_CHUNK) {
        const int64_t count = std::min(BOX_CHUNK, C - c);
        wide<T> sum[BOX_CHUNK] = {};
        for_each_pixel(b, at, [&](int64_t pixel, int64_t d, int64_t h, int64_t w) {
          const T* from = p.input + (at.batch * inputs + pixel) * C + c;
          if (!p.divide_inputs) {
            for (int64_t j = 0; j < count; j++) sum[j] += from[j];
          } else {
            const auto part = static_cast<wide<T>>(by[0][d] * by[1][h] * by[2][w]);
            for (int64_t j = 0; j < count; j++) sum[j] += from[j] / part;
          }
        });
        for (int64_t j = 0; j < count; j++) p.output[q * C + c + j] = static_cast<T>(sum[j] / whole);
      }
    }
  });
}

// Row by row: the lines of the boxes are added up first, then the spans of that one line. Rows of the adjoint that sum the same lines are
// the same.
template <class T>
void box_sum_contiguous(const BoxSum<T>& p, const Boxes& b, const Divisor& by) {
  const int64_t width = b.input[2], out_width = b.output[2], rows = p.batch * p.channels * b.output[0] * b.output[1];
  bool single = true;
  for (const Span& span : b.spans[2]) single = single && span.end - span.begin <= 1;
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

// Ties go to the first maximum, a NaN wins (the last one, as in torch).
template <class T>
void box_argmax(const BoxArgmax<T>& p, const Boxes& b) {
  // A contiguous picture is one of a single channel, as often as it has channels.
  const int64_t C = p.channels_last ? p.channels : 1, pictures = p.channels_last ? p.batch : p.batch * p.channels, inputs = volume(b.input);
  torch::stable::parallel_for(0, pictures * volume(b.output), std::max<int64_t>(1, 4096 / (C + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; q++) {
      const BoxPosition at = box_position(b.output, q);
      const int64_t first = (b.spans[0][at.d].begin * b.input[1] + b.spans[1][at.h].begin) * b.input[2] + b.spans[2][at.w].begin;
      for (int64_t c = 0; c < C; c += BOX_CHUNK) {
        const int64_t count = std::min(BOX_CHUNK, C - c);
        wide<T> best[BOX_CHUNK];
        int64_t index[BOX_CHUNK];
        for (int64_t j = 0; j < count; j++) best[j] = -std::numeric_limits<wide<T>>::infinity(), index[j] = first;
        for_each_pixel(b, at, [&](int64_t pixel, int64_t, int64_t, int64_t) {
          const T* from = p.input + (at.batch * inputs + pixel) * C + c;
          for (int64_t j = 0; j < count; j++) {
            const wide<T> value = from[j];
            const bool better = (value > best[j]) | (value != value);
            best[j] = better ? value : best[j];
            index[j] = better ? pixel : index[j];
          }
        });
        for (int64_t j = 0; j < count; j++) p.index[q * C + c + j] = index[j];
      }
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
