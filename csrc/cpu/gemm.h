// The micro-kernel that all convolutions end in: C[rows][columns] += A[rows][depth] * B[depth][columns].
//
// A tile of C lives in registers while the depth runs: each step loads one row of B, broadcasts one element of A per row and
// multiplies-adds. Tiles are tall, TILE_ROWS x TILE_COLUMNS: 14 x 2 accumulators fill the 32 registers of AVX-512, 6 x 2 the 16 of AVX2
// and SSE2, and leave enough independent chains to hide the latency of FMA. With AVX-512 they may be broad, too: 6 x 4 take 10 loads for
// 24 multiplications where tall ones take 16 for 28, and all addresses find a register. On a core that is shared with another thread
// they are up to a fifth faster.
namespace torchconv {
namespace TORCHCONV_ISA {

constexpr int TILE_ROWS = VECTOR_BYTES == 64 ? 14 : 6;
constexpr int TILE_VECTORS = 2;
template <class T>
constexpr int TILE_COLUMNS = TILE_VECTORS * lanes<T>;

// Rows of a broad tile, which has twice the columns; none where there are too few registers.
constexpr int BROAD_ROWS = VECTOR_BYTES == 64 ? 6 : 0;
template <class T>
constexpr int BROAD_COLUMNS = 2 * TILE_COLUMNS<T>;

// Depth of one block: B's panel of it (depth x 32 floats) stays in the L1 cache while the rows of A pass by.
constexpr int DEPTH = 128;
template <class T>
constexpr int LINE = 64 / sizeof(T);  // of the cache
// The distance, of `size` or a little more, at which many runs are used together. An odd number of lines, it puts them into all of the
// cache's sets before two of them meet in one.
template <class T>
constexpr int64_t apart(int64_t size) { return ((size + LINE<T> - 1) / LINE<T> | 1) * LINE<T>; }
// Distance of A's packed rows. A constant makes every broadcast a load with an immediate offset.
template <class T>
constexpr int PACKED_STRIDE = apart<T>(DEPTH);

// Where A comes from far, and B is near: without a gap between them, its rows are a run that is fetched ahead.
constexpr int TIGHT_STRIDE = 64;

// Rows of B that are fetched ahead into the L1 cache: what the L2 cache takes to answer.
constexpr int64_t AHEAD = 8;

// How A is laid out: rows packed at PACKED_STRIDE, or at TIGHT_STRIDE; or in place at a stride given at run time, as rows or,
// [depth][rows], as columns.
enum class LayoutA { packed, tight, rows, columns };

// The first `columns` of each row of `vectors` vectors, to where it belongs, or added to what is there.
template <class T>
__attribute__((noinline)) void store_parts(const T* rows, int64_t count, int64_t vectors, int64_t columns, bool add, T* const* c) {
  constexpr int64_t L = lanes<T>;
  for (int64_t i = 0; i < count; i++) {
    for (int64_t j = 0; j < columns; j += L) {
      const T* from = rows + i * vectors * L + j;
      const int64_t some = std::min(L, columns - j);
      T sum[L] = {};
      if (add) {
        copy_run(c[i] + j, sum, some);
        store(sum, load(sum) + load(from));
        from = sum;
      }
      copy_run(from, c[i] + j, some);
    }
  }
}

// Computes ROWS x V vectors. `c` holds a pointer per row. The first `columns` of them are stored. The columns of a broad tile are those of
// two panels of B, `pair` apart.
// `start` is what the sum starts from (a bias, or zeros), a value a column for each row, `start_stride` apart (0: the same for all);
// null to add the sum to what C holds. Sums of short sums: they err less than one long one.
// FAR: what comes from far, and not at the processor's own guess, is fetched ahead, too: the panel of packed weights that follows, by the first
// tile that meets this one; or A's columns of the next depth, by the last tile that meets these.
template <class T, int ROWS, LayoutA LAYOUT, int V, bool FAR>
void tile(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t pair, T* const* c, int64_t columns,
          const T* start, int64_t start_stride) {
  constexpr int L = lanes<T>;
  const auto column = [&](int j) __attribute__((always_inline)) { return j / TILE_VECTORS * pair + j % TILE_VECTORS * L; };
  vec<T> sum[ROWS][V];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) sum[i][j] = start != nullptr ? load(start + i * start_stride + j * L) : vec<T>{};
  }
  const int64_t next_step = a_stride == depth ? LINE<T> : 0;
  for (int64_t k = 0; k < depth; k++) {
    vec<T> row[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) {
      const T* const from = b + k * b_stride + column(j);
      row[j] = load(from);
      __builtin_prefetch(from + AHEAD * b_stride, 0, 3);
      if constexpr (FAR && LAYOUT != LayoutA::columns) __builtin_prefetch(from + ceil_div(V, TILE_VECTORS) * pair, 0, 2);
    }
    if constexpr (LAYOUT == LayoutA::columns) {
      __builtin_prefetch(a + (k + AHEAD) * a_stride, 0, 3);
      __builtin_prefetch(a + (k + AHEAD) * a_stride + ROWS - 1, 0, 3);
      if constexpr (FAR) __builtin_prefetch(a + (k + DEPTH) * a_stride, 0, 2);
    } else if constexpr (LAYOUT == LayoutA::tight) {
      __builtin_prefetch(a + ROWS * TIGHT_STRIDE + k * LINE<T>, 0, 3);  // the next rows
    } else if constexpr (LAYOUT == LayoutA::rows) {
      __builtin_prefetch(a + ROWS * a_stride + k * next_step, 0, 3);  // them, too, where they are a run
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const T value = LAYOUT == LayoutA::packed   ? a[i * PACKED_STRIDE<T> + k]
                      : LAYOUT == LayoutA::tight ? a[i * TIGHT_STRIDE + k]
                      : LAYOUT == LayoutA::columns ? a[k * a_stride + i]
                                                 : a[i * a_stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) sum[i][j] += value * row[j];
    }
  }
  if (columns < V * L) {
    T rows[ROWS * V * L];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) store(rows + (i * V + j) * L, sum[i][j]);
    }
    return store_parts(rows, ROWS, V, columns, start == nullptr, c);
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) store(c[i] + j * L, start == nullptr ? sum[i][j] + load(c[i] + j * L) : sum[i][j]);
  }
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, int64_t, int64_t, T* const*, int64_t, const T*, int64_t);

// tile() for a number of rows known at run time, 1 to ROWS.
template <class T, LayoutA LAYOUT, int V, bool FAR, int ROWS>
Tile<T> tile_of_rows(int rows) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_of_rows<T, LAYOUT, V, FAR, ROWS - 1>(rows);
  }
  return tile<T, ROWS, LAYOUT, V, FAR>;
}

template <class T, LayoutA LAYOUT, bool FAR>
Tile<T> tile_of_columns(int rows, int64_t columns) {
  if constexpr (BROAD_ROWS > 0 && (LAYOUT == LayoutA::rows || LAYOUT == LayoutA::columns)) {
    if (columns > TILE_COLUMNS<T>) return tile_of_rows<T, LAYOUT, 2 * TILE_VECTORS, FAR, BROAD_ROWS>(rows);
  }
  if constexpr (LAYOUT != LayoutA::tight) {
    if (columns <= lanes<T>) return tile_of_rows<T, LAYOUT, 1, FAR, TILE_ROWS>(rows);
  }
  return tile_of_rows<T, LAYOUT, TILE_VECTORS, FAR, TILE_ROWS>(rows);
}

// The tile for numbers of rows and columns known at run time: 1 to TILE_ROWS and TILE_COLUMNS, or 1 to BROAD_ROWS and BROAD_COLUMNS.
template <class T, LayoutA LAYOUT>
Tile<T> tile_of(int rows, int64_t columns = TILE_COLUMNS<T>, bool far = false) {
  if constexpr (LAYOUT != LayoutA::tight) {
    if (far) return tile_of_columns<T, LAYOUT, true>(rows, columns);
  }
  return tile_of_columns<T, LAYOUT, false>(rows, columns);
}

// Calls f(first, rows) for tiles of as many rows, or one less: 16 are 8 and 8, not 14 and 2.
template <class F>
inline __attribute__((always_inline)) void for_each_tile(int64_t total, int64_t most, const F& f) {
  const int64_t tiles = ceil_div(total, most);
  for (int64_t i = 0, first = 0, rows; i < tiles; i++, first += rows) {
    rows = total / tiles + (i < total % tiles);
    f(first, rows);
  }
}

// How many items of work, of about so many multiplications each, are worth a thread, which takes microseconds to wake up.
inline int64_t grain_of(int64_t multiplications) { return std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, multiplications)); }

// Into how many parts to cut each of `items` pieces of work, of so many tiles, that the busiest thread has the least to do. A part takes as
// long as `extra` tiles besides its own.
inline int64_t cuts_of(int64_t items, int64_t tiles, double extra) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t cuts = 1; cuts <= std::min(tiles, 4 * threads); cuts++) {
    const double load = ceil_div(items * cuts, threads) * (ceil_div(tiles, cuts) + extra);
    if (load < least) {
      least = load;
      best = cuts;
    }
  }
  return best;
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
