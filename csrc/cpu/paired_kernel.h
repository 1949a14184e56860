// Convolution of bfloat16 by AVX512-BF16, which multiplies two pairs of numbers and adds both products to a sum in float: blocked im2col
// as in conv_kernel.h, whose depth passes by in pairs. Sums of a block of output positions are kept until they are rounded.
namespace torchconv {
namespace TORCHCONV_ISA {

#if VECTOR_BYTES == 64

namespace paired {

constexpr int64_t N = TILE_COLUMNS<float>, BLOCK_DEPTH = 2 * DEPTH;  // as many bytes as a block of floats
constexpr int64_t STRIDE = BLOCK_DEPTH + LINE<uint16_t>;             // of A's packed rows

// C[ROWS][N] += A[ROWS][2 * pairs] * B[pairs][N][2], or the product alone if it is the `first`.
template <int ROWS>
__attribute__((target("avx512bf16"))) void tile(int64_t pairs, const uint16_t* a, int64_t a_stride, const uint32_t* b, float* c,
                                                int64_t c_stride, bool first) {
  vec<float> sum[ROWS][TILE_VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = first ? vec<float>{} : load(c + i * c_stride + j * lanes<float>);
  }
  for (int64_t k = 0; k < pairs; k++) {
    vec<uint32_t> row[TILE_VECTORS];
#pragma GCC unroll 2
    for (int j = 0; j < TILE_VECTORS; j++) {
      row[j] = load(b + k * N + j * lanes<float>);
      __builtin_prefetch(b + (DEPTH + k) * N + j * lanes<float>, 0, 2);  // the next panel
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      uint32_t pair;
      std::memcpy(&pair, a + i * a_stride + 2 * k, sizeof pair);
      const vec<uint32_t> value = vec<uint32_t>{} + pair;
#pragma GCC unroll 2
      for (int j = 0; j < TILE_VECTORS; j++)
        sum[i][j] = reinterpret_cast<vec<float>>(
            _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum[i][j]), reinterpret_cast<__m512bh>(value), reinterpret_cast<__m512bh>(row[j])));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < TILE_VECTORS; j++) store(c + i * c_stride + j * lanes<float>, sum[i][j]);
  }
}

using Tile = void (*)(int64_t, const uint16_t*, int64_t, const uint32_t*, float*, int64_t, bool);

// tile<rows> for a number of rows known at run time, 1 to TILE_ROWS.
template <int ROWS = TILE_ROWS>
Tile tile_of(int rows) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_of<ROWS - 1>(rows);
  }
  return tile<ROWS>;
}

// A weight as panels of pairs: for each group, block of BLOCK_DEPTH rows and panel, [pair][column][2].
struct PackedPairs {
  int64_t blocks, panels;
  Scratch<uint32_t> data;

  explicit PackedPairs(const Panels<float>& all)
      : blocks(std::max<int64_t>(1, ceil_div(all.depth, BLOCK_DEPTH))), panels(all.count), data(all.p.groups * blocks * panels * DEPTH * N + DEPTH * N) {
    // A channel and the next one are of the same tap, and come in turn.
    Phases<float>({all}).pack_all([&](size_t, int64_t group, int64_t panel, int64_t k, const float* row) {
      uint32_t* const to = this->panel(group, k / BLOCK_DEPTH, panel) + k % BLOCK_DEPTH / 2 * N;
      for (int64_t j = 0; j < N; j += lanes<float>) {
        const auto bits = reinterpret_cast<vec<uint32_t>>(load(row + j));  // those of a bfloat16, and zeros
        store(to + j, k % 2 == 0 ? bits >> 16 : load(to + j) | bits);
      }
    });
  }
  uint32_t* panel(int64_t group, int64_t block, int64_t panel) const { return data.get() + ((group * blocks + block) * panels + panel) * DEPTH * N; }
};

// The outputs of a block of positions, of the panels [panel_begin, panel_end).
inline void gather_block(const Panels<float>& panels, const PackedPairs& weight, ColumnBlock<uint16_t>& block, BFloat16* output, int64_t first,
                         int64_t count, int64_t panel_begin, int64_t panel_end, float* sums) {
  const GatherConv<float>& p = panels.p;
  const int64_t out_pixel = p.groups * p.out_channels, width = (panel_end - panel_begin) * N;
  block.move_to(first, count);
  BFloat16* row[BLOCK_ROWS];
  locate_rows(p, output, first, count, row);
  for (int64_t group = 0; group < p.groups; group++) {
    for (int64_t depth = 0; depth == 0 || depth < panels.depth; depth += BLOCK_DEPTH)
      block.each_run(group, depth, std::min(depth + BLOCK_DEPTH, panels.depth), [&](int64_t begin, int64_t end, int64_t distance, const auto& row_of) {
        for (int64_t panel = panel_begin; panel < panel_end; panel++)
          for (const auto& tile : block.tiles())
            tile_of(tile.rows)((end - begin) / 2, row_of(tile), distance, weight.panel(group, depth / BLOCK_DEPTH, panel) + (begin - depth) / 2 * N,
                               sums + tile.first * width + (panel - panel_begin) * N, width, begin == 0);
      });
    for (int64_t i = 0; i < count; i++) {
      for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        const int64_t column = group * p.out_channels + panels.column(panel), columns = panels.columns(panel);
        const float* const from = sums + i * width + (panel - panel_begin) * N;
        BFloat16* const to = row[i] + panels.shift(panel) * out_pixel + column;
        for (int64_t j = 0; j < columns; j += lanes<float>) {
          const vec<float> value = load(from + j);
          store_some(to + j, p.bias == nullptr ? value : value + load_some(p.bias + column + j, columns - j), columns - j);
        }
      }
    }
  }
}

}  // namespace paired

inline bool paired_conv_serves(const GatherConv<float>& p) {
  return __builtin_cpu_supports("avx512bf16") && p.in_channels > 0 && p.in_channels % 2 == 0;
}

inline void paired_conv(const GatherConv<float>& p, const BFloat16* input, BFloat16* output) {
  const int64_t total = p.batch * volume(p.window.output);
  if (total == 0 || p.out_channels == 0) return;
  const Panels<float> panels(p);
  const paired::PackedPairs weight(panels);
  const GatherBlocks work(p.window, total, panels.count, columns_as<uint16_t>(p.window, p.groups, p.in_channels));
  torch::stable::parallel_for(0, work.blocks * work.cuts, 1, [&](int64_t begin, int64_t end) {
    ColumnBlock<uint16_t> block(p.window, p.groups, p.in_channels, reinterpret_cast<const uint16_t*>(input), paired::STRIDE);
    const Scratch<float> sums(BLOCK_ROWS * ceil_div(panels.count, work.cuts) * paired::N);
    work.each(begin, end, [&](int64_t first, int64_t count, int64_t panel_begin, int64_t panel_end) {
      paired::gather_block(panels, weight, block, output, first, count, panel_begin, panel_end, sums.get());
    });
  });
}

#else

inline bool paired_conv_serves(const GatherConv<float>&) { return false; }
inline void paired_conv(const GatherConv<float>&, const BFloat16*, BFloat16*) {}

#endif

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
