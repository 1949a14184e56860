// Contiguous to channels-last and back: a transposition of [channels][positions] per picture.
namespace torchconv {
namespace TORCHCONV_ISA {

// One butterfly: swaps the off-diagonal STEP x STEP blocks of every pair of rows that lie STEP apart.
template <class T, int STEP, int... I>
inline __attribute__((always_inline)) void butterfly(vec<T> row[], std::integer_sequence<int, I...>) {
  constexpr int L = lanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) {
    if (i & STEP) continue;
    const vec<T> a = row[i], b = row[i + STEP];
    row[i] = __builtin_shufflevector(a, b, ((I & STEP) ? L + I - STEP : I)...);
    row[i + STEP] = __builtin_shufflevector(a, b, ((I & STEP) ? L + I : I + STEP)...);
  }
  if constexpr (STEP > 1) butterfly<T, STEP / 2>(row, std::integer_sequence<int, I...>{});
}

template <class T>
void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int L = lanes<T>;
  vec<T> row[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) row[i] = load(from + i * from_stride);
  butterfly<T, L / 2>(row, std::make_integer_sequence<int, L>{});
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) store(to + i * to_stride, row[i]);
}

template <class T>
void transpose(int64_t batch, int64_t rows, int64_t columns, const T* from, T* to) {
  constexpr int64_t L = lanes<T>, BLOCK = 4 * L;  // blocks of whole cache lines on both sides
  const int64_t across = ceil_div(columns, BLOCK), down = ceil_div(rows, BLOCK);
  torch::stable::parallel_for(0, batch * across * down, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      // Neighbours in i share the columns: their writes meet in the same lines of `to`.
      const int64_t r0 = i % down * BLOCK, c0 = i / down % across * BLOCK, matrix = i / down / across * rows * columns;
      const int64_t r1 = std::min(r0 + BLOCK, rows), c1 = std::min(c0 + BLOCK, columns);
      const T* in = from + matrix;
      T* out = to + matrix;
      for (int64_t r = r0; r < r1; r += L) {
        for (int64_t c = c0; c < c1; c += L) {
          if (r + L <= r1 && c + L <= c1) {
            transpose_square(in + r * columns + c, columns, out + c * rows + r, rows);
            continue;
          }
          for (int64_t y = r; y < std::min(r + L, r1); y++)
            for (int64_t x = c; x < std::min(c + L, c1); x++) out[x * rows + y] = in[y * columns + x];
        }
      }
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
