// Products of bfloat16 by AMX, whose tiles are matrices: 16 rows of 32 numbers times 16 rows of pairs of 16 columns, added to 16 rows of sums.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace paired {

// What the processor is told of its eight tiles: rows, and bytes of each.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t row_count, int64_t byte_count) {
    rows[tile] = row_count;
    bytes[tile] = byte_count;
  }
};

// Two tiles of A, 4 and 5, times two of B, 6 and 7, add up in four of C, 0 to 3.
struct ByTiles {
  static constexpr int64_t ROWS = 16, PAIRS = 16, COLUMNS = 16;
  static constexpr int64_t LONGEST = 512;  // of the depth at a time, of which a panel of B is 32 KB

  ~ByTiles() { release(); }

  void multiply(const Product& p) {
    const int64_t steps = p.pairs / PAIRS, rest = p.pairs % PAIRS;
    for (size_t t = 0; t < p.tiles.size(); t += 2) {
      if (steps > 0 || rest == 0) multiply(p, t, 0, steps, PAIRS, p.first);
      if (rest > 0) multiply(p, t, steps, 1, rest, p.first && steps == 0);
    }
  }

 private:
  // Of each run the `steps` steps from one on, of so many pairs each.
  void multiply(const Product& p, size_t t, int64_t from, int64_t steps, int64_t pairs, bool first) {
    const bool two = t + 1 < p.tiles.size(), broad = p.columns > COLUMNS;
    configure(p.tiles[t].rows, two ? p.tiles[t + 1].rows : shapes_.rows[5], pairs);
    const auto multiply = two ? broad ? block<true, true> : block<true, false> : broad ? block<false, true> : block<false, false>;
    multiply(p, t, from, steps, first);
  }

  // The processor waits for what it is at before it changes the tiles' shapes.
  __attribute__((target("amx-tile"))) void configure(int64_t above, int64_t below, int64_t pairs) {
    if (above == shapes_.rows[4] && below == shapes_.rows[5] && pairs == shapes_.rows[6]) return;
    const int64_t line = 4 * COLUMNS;
    for (const int i : {0, 1}) shapes_.set(i, above, line);
    for (const int i : {2, 3}) shapes_.set(i, below, below > 0 ? line : 0);
    shapes_.set(4, above, 4 * pairs);
    shapes_.set(5, below, below > 0 ? 4 * pairs : 0);
    for (const int i : {6, 7}) shapes_.set(i, pairs, line);
    asm volatile("" ::: "memory");
    _tile_loadconfig(&shapes_);
  }

  // The compiler isn't told what memory the instructions read and write, but that they do.
  template <bool TWO, bool BROAD>
  __attribute__((target("amx-tile,amx-bf16"), noinline)) static void block(const Product& p, size_t t, int64_t from, int64_t steps, bool first) {
    asm volatile("" ::: "memory");
    float* const c = p.sums + p.tiles[t].first * p.width;
    float* const lower = TWO ? p.sums + p.tiles[t + 1].first * p.width : nullptr;
    const int64_t c_bytes = 4 * p.width, a_bytes = 2 * p.distance;
    if (first) {
      _tile_zero(0);
      if constexpr (BROAD) _tile_zero(1);
      if constexpr (TWO) _tile_zero(2);
      if constexpr (TWO && BROAD) _tile_zero(3);
    } else {
      _tile_loadd(0, c, c_bytes);
      if constexpr (BROAD) _tile_loadd(1, c + COLUMNS, c_bytes);
      if constexpr (TWO) _tile_loadd(2, lower, c_bytes);
      if constexpr (TWO && BROAD) _tile_loadd(3, lower + COLUMNS, c_bytes);
    }
    for (int64_t run = 0; run < p.runs; run++) {
      const BFloat16* a = p.a[t * p.runs + run] + 2 * PAIRS * from;
      const BFloat16* a_below = TWO ? p.a[(t + 1) * p.runs + run] + 2 * PAIRS * from : nullptr;
      const uint32_t* b = p.b + (run * p.pairs + from * PAIRS) * N;
      for (int64_t step = 0; step < steps; step++, a += 2 * PAIRS, a_below += TWO ? 2 * PAIRS : 0, b += PAIRS * N) {
        _tile_loadd(6, b, 4 * N);
        _tile_loadd(4, a, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (BROAD) {
          _tile_loadd(7, b + COLUMNS, 4 * N);
          _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (TWO) {
          _tile_loadd(5, a_below, a_bytes);
          _tile_dpbf16ps(2, 5, 6);
          if constexpr (BROAD) _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (BROAD) _tile_stored(1, c + COLUMNS, c_bytes);
    if constexpr (TWO) _tile_stored(2, lower, c_bytes);
    if constexpr (TWO && BROAD) _tile_stored(3, lower + COLUMNS, c_bytes);
    asm volatile("" ::: "memory");
  }

  // Else the system saves the tiles whenever it changes threads.
  __attribute__((target("amx-tile"))) static void release() { _tile_release(); }

  TileShapes shapes_;
};

}  // namespace paired
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
