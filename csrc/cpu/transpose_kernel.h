// Contiguous to channels-last and back: a transposition of [channels][positions] per picture.
namespace torchconv {
namespace TORCHCONV_ISA {

// Of two rows, STEP apart, the blocks of STEP lanes off the diagonal change places.
template <class T, int STEP, int... I>
inline __attribute__((always_inline)) void exchange(vec<T>& a, vec<T>& b, std::integer_sequence<int, I...>) {
  constexpr int L = lanes<T>;
  const vec<T> first = __builtin_shufflevector(a, b, ((I & STEP) ? L + I - STEP : I)...);
  b = __builtin_shufflevector(a, b, ((I & STEP) ? L + I : I + STEP)...);
  a = first;
}

// One butterfly: the same of every pair of rows that lie STEP apart. Of 16-bit lanes two move as one, which is a cheaper instruction, until
// they part.
template <class T, int STEP, int... I>
inline __attribute__((always_inline)) void butterfly(vec<T> row[], std::integer_sequence<int, I...>) {
  constexpr int L = lanes<T>;
#pragma GCC unroll 32
  for (int i = 0; i < L; i++) {
    if (i & STEP) continue;
    if constexpr (sizeof(T) == 2) {
      vec<uint32_t> a = reinterpret_cast<vec<uint32_t>>(row[i]), b = reinterpret_cast<vec<uint32_t>>(row[i + STEP]);
      if constexpr (STEP > 1) {
        exchange<uint32_t, STEP / 2>(a, b, std::make_integer_sequence<int, L / 2>{});
      } else {
        const vec<uint32_t> first = (a & 0xffff) | b << 16;
        b = a >> 16 | (b & 0xffff0000);
        a = first;
      }
      row[i] = reinterpret_cast<vec<T>>(a);
      row[i + STEP] = reinterpret_cast<vec<T>>(b);
    } else {
      exchange<T, STEP>(row[i], row[i + STEP], std::integer_sequence<int, I...>{});
    }
  }
  if constexpr (STEP > 1) butterfly<T, STEP / 2>(row, std::integer_sequence<int, I...>{});
}

// Lane i is the sum of row i's lanes: half a transposition, each of whose butterflies is added up.
template <class T, int STEP = lanes<T> / 2, int... I>
inline __attribute__((always_inline)) vec<T> sums_of_rows(vec<T> row[], std::integer_sequence<int, I...> lane) {
  constexpr int L = lanes<T>;
#pragma GCC unroll 8
  for (int i = 0; i < STEP; i++)
    row[i] = __builtin_shufflevector(row[i], row[i + STEP], ((I & STEP) ? L + I - STEP : I)...) +
             __builtin_shufflevector(row[i], row[i + STEP], ((I & STEP) ? L + I : I + STEP)...);
  if constexpr (STEP > 1) return sums_of_rows<T, STEP / 2>(row, lane);
  return row[0];
}

template <class T>
void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  using E = Bits<T>;
  constexpr int L = lanes<T>;
  vec<E> row[L];
#pragma GCC unroll 32
  for (int i = 0; i < L; i++) row[i] = load(reinterpret_cast<const E*>(from + i * from_stride));
  butterfly<E, L / 2>(row, std::make_integer_sequence<int, L>{});
#pragma GCC unroll 32
  for (int i = 0; i < L; i++) store(reinterpret_cast<E*>(to + i * to_stride), row[i]);
}

// Less than a square of it.
template <class T>
void transpose_part(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int64_t L = lanes<T>;
  if (rows * columns < L * L / 4) {
    for (int64_t y = 0; y < rows; y++)
      for (int64_t x = 0; x < columns; x++) to[x * to_stride + y] = from[y * from_stride + x];
    return;
  }
  T square[L * L];
  for (int64_t y = 0; y < rows; y++) copy_run(from + y * from_stride, square + y * L, columns);
  transpose_square(square, L, square, L);
  for (int64_t x = 0; x < columns; x++) copy_run(square + x * L, to + x * to_stride, rows);
}

// to[column][row] = from[row][column], with these distances between the rows of each.
template <class T>
void transpose_matrix(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int64_t L = lanes<T>;
  for (int64_t r = 0; r < rows; r += L) {
    for (int64_t c = 0; c < columns; c += L) {
      if (r + L <= rows && c + L <= columns) {
        transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
        continue;
      }
      transpose_part(std::min(L, rows - r), std::min(L, columns - c), from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
    }
  }
}

// to[row * to_row + column * to_column] = from[row * from_row + column * from_column]
template <class T>
void copy_matrix(int64_t rows, int64_t columns, const T* from, int64_t from_row, int64_t from_column, T* to, int64_t to_row,
                 int64_t to_column) {
  if (from_column == 1 && to_column == 1) {
    for (int64_t r = 0; r < rows; r++) copy_run(from + r * from_row, to + r * to_row, columns);
  } else if (from_row == 1 && to_column == 1) {
    transpose_matrix(columns, rows, from, from_column, to, to_row);
  } else if (to_row == 1 && from_column == 1) {
    transpose_matrix(rows, columns, from, from_row, to, to_column);
  } else {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c++) to[r * to_row + c * to_column] = from[r * from_row + c * from_column];
  }
}

// to[in][tap] = from[tap][in], for `taps` taps that lie `tap_step` apart. Taps are few: their vectors are transposed as if they
// were a square, and of each row of it all but the last overwrite what is behind the taps, which the next row then writes.
template <class T>
void interleave(int64_t taps, int64_t ins, const T* from, int64_t tap_step, T* to) {
  constexpr int64_t L = lanes<T>;
  int64_t in = 0;
  for (; taps <= L && in + L <= ins; in += L) {
    vec<T> row[L] = {};
    T square[L * L];
    for (int64_t tap = 0; tap < taps; tap++) row[tap] = load(from + tap * tap_step + in);
    butterfly<T, L / 2>(row, std::make_integer_sequence<int, L>{});
    for (int64_t i = 0; i < L; i++) store(square + i * L, row[i]);
    const int64_t whole = std::clamp<int64_t>((ins - in) - ceil_div(L, taps), 0, L);
    for (int64_t i = 0; i < whole; i++) store(to + (in + i) * taps, load(square + i * L));
    for (int64_t i = whole; i < L; i++) std::memcpy(to + (in + i) * taps, square + i * L, taps * sizeof(T));
  }
  for (; in < ins; in++)
    for (int64_t tap = 0; tap < taps; tap++) to[in * taps + tap] = from[tap * tap_step + in];
}

template <class T>
void transpose(int64_t batch, int64_t rows, int64_t columns, const T* from, T* to) {
  constexpr int64_t L = lanes<T>, BLOCK = 4 * L;  // blocks of whole cache lines on both sides
  const int64_t across = ceil_div(columns, BLOCK), down = ceil_div(rows, BLOCK);
  torch::stable::parallel_for(0, batch * across * down, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      // Neighbours in i share the columns: their writes meet in the same lines of `to`.
      const int64_t r0 = i % down * BLOCK, c0 = i / down % across * BLOCK, matrix = i / down / across * rows * columns;
      transpose_matrix(std::min(BLOCK, rows - r0), std::min(BLOCK, columns - c0), from + matrix + r0 * columns + c0, columns,
                       to + matrix + c0 * rows + r0, rows);
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
