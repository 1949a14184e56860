// Convolution of few positions, whose weights are the larger operand by far and pass by once. A filter's elements lie in a row, and so
// does what a position sees, once it is packed in the same order: each output is a dot product, with vectors along both rows, and the
// weights are read where they lie.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace dot {

constexpr int POSITIONS = VECTOR_BYTES == 64 ? 4 : 3, OUTS = VECTOR_BYTES == 64 ? 6 : 4;  // of a tile: its sums fill the registers
constexpr int64_t MOST_POSITIONS = 64, LEAST_DEPTH = 2048;
constexpr int64_t BLOCK = 1024;  // elements of a row: those of a tile stay in the L1 cache

// sums[position][out] += a[position] . filter[out], by lanes. Sums of short sums: they err less than one long one. What comes next of a
// filter, and from far, is `ahead` of it.
template <class T, int ROWS>
void tile(int64_t depth, const T* a, int64_t a_stride, const T* filter, int64_t out_step, int64_t ahead, T* sums) {
  constexpr int L = lanes<T>;
  vec<T> sum[ROWS][OUTS] = {};
  for (int64_t k = 0; k < depth; k += L) {
    vec<T> x[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) x[r] = load(a + r * a_stride + k);
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; o++) {
      const vec<T> w = load(filter + o * out_step + k);
      __builtin_prefetch(filter + o * out_step + k + ahead, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) sum[r][o] += x[r] * w;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; o++) store(sums + (r * OUTS + o) * L, load(sums + (r * OUTS + o) * L) + sum[r][o]);
}

// The sums of as many vectors as they have lanes.
template <class T>
void add_lanes(const T* vectors, T* to) {
  constexpr int L = lanes<T>;
  vec<T> row[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) row[i] = load(vectors + i * L);
  store(to, sums_of_rows<T>(row, std::make_integer_sequence<int, L>{}));
}

// Whether a filter's elements follow each other as (in, tap), or as (tap, in).
template <class T>
bool is_row(const GatherConv<T>& p, bool by_channel) {
  const auto& v = p.weight;
  const Extent& kernel = p.window.kernel;
  const int64_t taps = volume(kernel), tap_step = by_channel ? 1 : p.in_channels;
  return v.in_step == (by_channel ? taps : 1) && (kernel[2] == 1 || v.step[2] == tap_step) && (kernel[1] == 1 || v.step[1] == kernel[2] * tap_step) &&
         (kernel[0] == 1 || v.step[0] == kernel[1] * kernel[2] * tap_step);
}

template <class T>
bool serves(const GatherConv<T>& p) {
  const int64_t depth = volume(p.window.kernel) * p.in_channels;
  return p.groups == 1 && p.batch * volume(p.window.output) <= MOST_POSITIONS && depth >= LEAST_DEPTH && depth % lanes<T> == 0 && is_dense(p) &&
         (is_row(p, true) || is_row(p, false));
}

template <class T>
void conv(const GatherConv<T>& p) {
  constexpr int64_t L = lanes<T>;
  const Window& w = p.window;
  const int64_t taps = volume(w.kernel), C = p.in_channels, O = p.out_channels, depth = taps * C, total = p.batch * volume(w.output);
  const bool interleaved = taps > 1 && is_row(p, true);
  const int64_t stride = apart<T>(depth), out_step = p.weight.out_step, tiles = ceil_div(O, OUTS);
  const Scratch<T> rows(total * stride);
  torch::stable::parallel_for(0, total, std::max<int64_t>(1, 65536 / depth), [&](int64_t begin, int64_t end) {
    const Scratch<T> row(interleaved ? depth : 0);
    OutputPosition at(w.output, begin);
    for (int64_t i = begin; i < end; i++, at.advance(w.output)) {
      T* const to = rows.get() + i * stride;
      pack_row(w, p.input, C, INT64_C(0), C, corner_of(w, at), INT64_C(0), depth, interleaved ? row.get() : to);
      if (interleaved) interleave(taps, C, row.get(), C, to);
    }
  });
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    const int64_t count = total * OUTS;
    const Scratch<T> sums((count + L) * L), edge(OUTS * BLOCK);
    for (int64_t i = begin; i < end; i++) {
      const int64_t out = i * OUTS, outs = std::min<int64_t>(OUTS, O - out);
      zero_run(sums.get(), (count + L) * L);
      for (int64_t k = 0; k < depth; k += BLOCK) {
        const int64_t some = std::min(BLOCK, depth - k);
        const T* filter = p.weight.data + p.weight.start + out * out_step + k;
        int64_t step = out_step;
        if (outs < OUTS) {  // the last filter stands for those that don't exist
          for (int64_t o = 0; o < OUTS; o++) copy_run(filter + std::min(o, outs - 1) * out_step, edge.get() + o * BLOCK, some);
          filter = edge.get();
          step = BLOCK;
        }
        const int64_t ahead = k + some < depth ? some : OUTS * out_step - k;
        int64_t t = 0;
        for (; t + POSITIONS <= total; t += POSITIONS)
          tile<T, POSITIONS>(some, rows.get() + t * stride + k, stride, filter, step, ahead, sums.get() + t * OUTS * L);
        for (; t < total; t++) tile<T, 1>(some, rows.get() + t * stride + k, stride, filter, step, ahead, sums.get() + t * OUTS * L);
      }
      for (int64_t s = 0; s < count; s += L) {
        T total_of[L];
        add_lanes(sums.get() + s * L, total_of);
        for (int64_t j = 0; j < std::min(L, count - s); j++) {
          const int64_t o = (s + j) % OUTS, position = (s + j) / OUTS;
          if (o >= outs) continue;
          const T value = total_of[j] + (p.bias == nullptr ? T(0) : p.bias[out + o]);
          p.output[position * O + out + o] = p.activation.rectifies ? rectified(value, p.activation.most) : value;
        }
      }
    }
  });
}

}  // namespace dot
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
