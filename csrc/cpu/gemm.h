// The micro-kernel that all convolutions end in: C[rows][columns] += A[rows][depth] * B[depth][columns].
//
// A tile of C (TILE_ROWS x TILE_COLUMNS) lives in registers while the depth runs: each step loads one row of B
// (two vectors), broadcasts one element of A per row and multiplies-adds. 14 x 2 accumulators fill the 32 registers
// of AVX-512, 6 x 2 the 16 of AVX2 and SSE2, and leave enough independent chains to hide the latency of FMA.
namespace torchconv {
namespace TORCHCONV_ISA {

constexpr int TILE_ROWS = VECTOR_BYTES == 64 ? 14 : 6;
constexpr int TILE_VECTORS = 2;
template <class T>
constexpr int TILE_COLUMNS = TILE_VECTORS * lanes<T>;

// Depth of one block: B's panel of it (depth x 32 floats) stays in the L1 cache while the rows of A pass by.
constexpr int DEPTH = 128;
// A cache line. Added to a distance that may be a multiple of a large power of two, it keeps what is used together out of each
// other's cache sets.
template <class T>
constexpr int LINE = 64 / sizeof(T);
// Distance of A's packed rows. A constant makes every broadcast a load with an immediate offset.
template <class T>
constexpr int PACKED_STRIDE = DEPTH + LINE<T>;

// Where A comes from far, and B is near: without a gap between them, its rows are a run that is fetched ahead.
constexpr int TIGHT_STRIDE = 64;

// Rows of B that are fetched ahead into the L1 cache: what the L2 cache takes to answer.
constexpr int64_t AHEAD = 8;

// How A is laid out: rows packed at PACKED_STRIDE, or at TIGHT_STRIDE; or in place at a stride given at run time, as rows or,
// [depth][rows], as columns. `near` are rows in place, and B no packed panel that the next one follows.
enum class LayoutA { packed, tight, rows, near, columns };

// Computes ROWS x V vectors. `c` holds a pointer per row. The first `columns` of them are stored.
// `start` is what the sum starts from (a bias, or zeros), TILE_COLUMNS values for each row, `start_stride` apart (0: the same for all);
// null to add the sum to what C holds. Sums of short sums: they err less than one long one.
template <class T, int ROWS, LayoutA LAYOUT, int V>
void tile(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* const* c, int64_t columns,
          const T* start, int64_t start_stride) {
  constexpr int L = lanes<T>;
  vec<T> sum[ROWS][V];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) sum[i][j] = start != nullptr ? load(start + i * start_stride + j * L) : vec<T>{};
  }
  for (int64_t k = 0; k < depth; k++) {
    vec<T> row[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) {
      row[j] = load(b + k * b_stride + j * L);
      __builtin_prefetch(b + (k + AHEAD) * b_stride + j * L, 0, 3);
    }
    if constexpr (LAYOUT == LayoutA::columns) {
      __builtin_prefetch(a + (k + AHEAD) * a_stride, 0, 3);
      __builtin_prefetch(a + (k + AHEAD) * a_stride + ROWS - 1, 0, 3);
    } else if constexpr (LAYOUT == LayoutA::tight) {
      __builtin_prefetch(a + ROWS * TIGHT_STRIDE + k * LINE<T>, 0, 3);  // the next rows
    }
    if constexpr (LAYOUT == LayoutA::packed || LAYOUT == LayoutA::rows) {
      // The next panel of weights: from a large layer it comes from far, and not at the processor's own guess.
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) __builtin_prefetch(b + DEPTH * TILE_COLUMNS<T> + k * b_stride + j * L, 0, 2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const T value = LAYOUT == LayoutA::packed   ? a[i * PACKED_STRIDE<T> + k]
                      : LAYOUT == LayoutA::tight ? a[i * TIGHT_STRIDE + k]
                      : LAYOUT == LayoutA::columns ? a[k * a_stride + i]
                                                 : a[i * a_stride + k];
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) sum[i][j] += value * row[j];
    }
  }
  T edge[V * L];
  const bool whole = columns == V * L;
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
    T* to = whole ? c[i] : edge;
    if (start == nullptr) {
      if (!whole) {
        std::memset(edge, 0, sizeof edge);
        std::memcpy(edge, c[i], columns * sizeof(T));
      }
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) sum[i][j] += load(to + j * L);
    }
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) store(to + j * L, sum[i][j]);
    if (!whole) std::memcpy(c[i], edge, columns * sizeof(T));
  }
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T* const*, int64_t, const T*, int64_t);

// The tile for numbers of rows and columns known at run time, 1 to TILE_ROWS and TILE_COLUMNS.
template <class T, LayoutA LAYOUT, int ROWS = TILE_ROWS>
Tile<T> tile_of(int rows, int64_t columns = TILE_COLUMNS<T>) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_of<T, LAYOUT, ROWS - 1>(rows, columns);
  }
  if constexpr (LAYOUT != LayoutA::tight) {
    if (columns <= lanes<T>) return tile<T, ROWS, LAYOUT, 1>;
  }
  return tile<T, ROWS, LAYOUT, TILE_VECTORS>;
}

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
