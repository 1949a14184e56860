// Convolution of bfloat16 by instructions that multiply pairs of numbers and add both products to a sum in float: AVX512-BF16's here, AMX's in
// amx_kernel.h. It is blocked im2col as in conv_kernel.h, whose depth passes by in pairs. Sums of a block of output positions are kept until
// they are rounded.
namespace torchconv {
namespace TORCHCONV_ISA {

#if VECTOR_BYTES == 64

namespace paired {

constexpr int64_t N = TILE_COLUMNS<float>;  // of a panel
using Tiles = std::vector<ColumnBlock<BFloat16>::Tile>;

// sums[row][N] += A[row][runs][2 * pairs] * B[runs][2 * pairs][N], or the product alone if it is the first of them, for the rows of all tiles.
struct Product {
  const Tiles& tiles;
  const std::vector<const BFloat16*>& a;  // [tile][run]: where its first row begins; the next ones' are `distance` apart
  int64_t runs, pairs, distance;
  const uint32_t* b;  // [run][pair][N], and the next panel `next` further on
  int64_t next;
  float* sums;  // `width` apart
  int64_t width, columns;
  bool first;
};

// Of the rows of tile t.
template <int ROWS>
__attribute__((target("avx512bf16"))) void tile(const Product& p, size_t t) {
  vec<float> sum[ROWS][TILE_VECTORS];
  float* const c = p.sums + p.tiles[t].first * p.width;
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = p.first ? vec<float>{} : load(c + i * p.width + j * lanes<float>);
  }
  const uint32_t* b = p.b;
  for (int64_t run = 0; run < p.runs; run++) {
    const BFloat16* const a = p.a[t * p.runs + run];
    for (int64_t k = 0; k < p.pairs; k++, b += N) {
      vec<uint32_t> row[TILE_VECTORS];
#pragma GCC unroll 2
      for (int j = 0; j < TILE_VECTORS; j++) {
        row[j] = load(b + j * lanes<float>);
        __builtin_prefetch(b + p.next + j * lanes<float>, 0, 2);
      }
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        uint32_t pair;
        std::memcpy(&pair, a + i * p.distance + 2 * k, sizeof pair);
        const vec<uint32_t> value = vec<uint32_t>{} + pair;
#pragma GCC unroll 2
        for (int j = 0; j < TILE_VECTORS; j++)
          sum[i][j] = reinterpret_cast<vec<float>>(
              _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum[i][j]), reinterpret_cast<__m512bh>(value), reinterpret_cast<__m512bh>(row[j])));
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < TILE_VECTORS; j++) store(c + i * p.width + j * lanes<float>, sum[i][j]);
  }
}

using Tile = void (*)(const Product&, size_t);

// tile<rows> for a number of rows known at run time, 1 to TILE_ROWS.
template <int ROWS = TILE_ROWS>
Tile tile_of(int rows) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_of<ROWS - 1>(rows);
  }
  return tile<ROWS>;
}

struct ByVectors {
  static constexpr int64_t ROWS = TILE_ROWS, LONGEST = 2 * DEPTH;  // as many bytes as a block of floats

  void multiply(const Product& p) {
    for (size_t t = 0; t < p.tiles.size(); t++) tile_of(p.tiles[t].rows)(p, t);
  }
};

// The same convolution of one more input channel a group, that is zero. convolve(p) does it.
inline void with_even_channels(const Panels<BFloat16, N>& panels, void (*convolve)(const GatherConv<BFloat16>&)) {
  const GatherConv<BFloat16>& p = panels.p;
  const int64_t C = p.in_channels, pixels = p.batch * volume(p.window.input) * p.groups, outs = p.out_channels;
  const Scratch<BFloat16> input(pixels * (C + 1)), weight(p.groups * panels.taps * (C + 1) * outs);
  torch::stable::parallel_for(0, pixels, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      copy_run(p.input + i * C, input.get() + i * (C + 1), C);
      zero_run(input.get() + i * (C + 1) + C, 1);
    }
  });
  zero_run(weight.get(), p.groups * panels.taps * (C + 1) * outs);
  GatherConv<BFloat16> even = p;
  even.in_channels = C + 1;
  even.input = input.get();
  const auto& [D, H, W] = panels.kernel;
  even.weight = {weight.get(), 0, 1, panels.taps * (C + 1), outs * panels.taps * (C + 1), {H * W * (C + 1), W * (C + 1), C + 1}};
  for (int64_t group = 0; group < p.groups; group++) {
    const Filters<BFloat16> filters = Phases<BFloat16, N>({panels}).filters_of(group);
    BFloat16* to = weight.get() + group * even.weight.group_step;
    for (int64_t out = 0; out < outs; out++)
      for (int64_t tap = 0; tap < panels.taps; tap++, to += C + 1)
        for (int64_t c = 0; c < C; c++) to[c] = filters.data[c * filters.in_step + filters.offset[tap] + out * filters.out_step];
  }
  convolve(even);
}

// A weight as panels of pairs: for each group and panel, [tap][pair of channels][column][2], filled up with zeros.
struct PackedPairs {
  int64_t panels, panel_step;
  Scratch<uint32_t> data;

  explicit PackedPairs(const Panels<BFloat16, N>& all)
      : panels(all.count), panel_step(all.depth / 2 * N), data(all.p.groups * panels * panel_step) {
    const WeightView<BFloat16>& view = all.p.weight;
    const bool aligned = reinterpret_cast<uintptr_t>(view.data) % sizeof(uint32_t) == 0 && (view.out_step | view.group_step) % 2 == 0;
    if (aligned && view.in_step == 1 && (view.step[0] | view.step[1] | view.step[2] | view.start) % 2 == 0)
      pack_pairs(all);
    else if (aligned && all.taps > 1 && view.in_step == all.taps && filters_are_runs(all))
      pack_filters(all);
    else
      pack_channels(all);
  }
  const uint32_t* panel(int64_t group, int64_t panel) const { return data.get() + (group * panels + panel) * panel_step; }

 private:
  uint32_t* room(int64_t group, int64_t panel, int64_t k) const { return data.get() + (group * panels + panel) * panel_step + k / 2 * N; }

  // Channels lie side by side: pairs are what is transposed.
  void pack_pairs(const Panels<BFloat16, N>& all) const {
    const GatherConv<BFloat16>& p = all.p;
    const WeightView<BFloat16>& v = p.weight;
    GatherConv<uint32_t> pairs{p.batch, p.groups, p.in_channels / 2, p.out_channels, p.window, p.output_extent, p.origin, p.spacing};
    pairs.weight = {reinterpret_cast<const uint32_t*>(v.data), v.start / 2, 1, v.out_step / 2, v.group_step / 2, {v.step[0] / 2, v.step[1] / 2, v.step[2] / 2}};
    pairs.every_phase = p.every_phase;
    Phases<uint32_t, N>({Panels<uint32_t, N>(pairs)}).pack_all([&](size_t, int64_t group, int64_t panel, int64_t k, const uint32_t* row) {
      copy_run(row, room(group, panel, 2 * k), N);
    });
  }

  static bool filters_are_runs(const Panels<BFloat16, N>& all) {
    const std::vector<int64_t> offset = Phases<BFloat16, N>({all}).filters_of(0).offset;
    for (int64_t tap = 0; tap < all.taps; tap++)
      if (offset[tap] != tap) return false;
    return !all.p.every_phase;
  }

  // Taps lie side by side: all that lies side by side is transposed, and of it a channel's element and the next one's, `taps` further on, are
  // made a pair.
  void pack_filters(const Panels<BFloat16, N>& all) const {
    constexpr int64_t MOST = 32;  // channels at a time
    const GatherConv<BFloat16>& p = all.p;
    const int64_t C = p.in_channels, taps = all.taps, chunks = ceil_div(C, MOST);
    torch::stable::parallel_for(0, p.groups * panels * chunks, 2, [&](int64_t begin, int64_t end) {
      const Scratch<uint32_t> chunk(MOST * taps / 2 * N);
      for (int64_t i = begin; i < end; i++) {
        const int64_t in = i % chunks * MOST, ins = std::min(MOST, C - in), panel = i / chunks % panels, group = i / chunks / panels, outs = all.columns(panel);
        const BFloat16* const from = p.weight.data + group * p.weight.group_step + all.column(panel) * p.weight.out_step + in * taps;
        if (outs < N) zero_run(chunk.get(), ins * taps / 2 * N);
        transpose_matrix(outs, ins * taps / 2, reinterpret_cast<const uint32_t*>(from), p.weight.out_step / 2, chunk.get(), N);
        for (int64_t c = 0; c < ins; c += 2) {
          for (int64_t tap = 0; tap < taps; tap++) {
            const int64_t first = c * taps + tap, second = first + taps;
            uint32_t* const to = room(group, panel, tap * C + in + c);
            for (int64_t j = 0; j < N; j += lanes<uint32_t>) {
              const vec<uint32_t> low = load(chunk.get() + first / 2 * N + j), high = load(chunk.get() + second / 2 * N + j);
              store(to + j, (first % 2 == 0 ? low & 0xffff : low >> 16) | (second % 2 == 0 ? high << 16 : high & 0xffff0000));
            }
          }
        }
      }
    });
  }

  // Any others, channel by channel: they come in turn.
  void pack_channels(const Panels<BFloat16, N>& all) const {
    Phases<BFloat16, N>({all}).pack_all([&](size_t, int64_t group, int64_t panel, int64_t k, const BFloat16* row) {
      uint32_t* const to = room(group, panel, k);
      for (int64_t j = 0; j < N; j += lanes<uint32_t>) store(to + j, k % 2 == 0 ? bits_of(row + j) : load(to + j) | bits_of(row + j) << 16);
    });
  }
};

// Brings the sums of a panel to their places in `count` rows, rounded, and with the bias and the activation of their channels.
__attribute__((target("avx512bf16"))) inline void finish(const GatherConv<BFloat16>& p, const float* sums, int64_t width, int64_t count, BFloat16* const* row,
                                                         int64_t to, int64_t channel, int64_t columns) {
  static_assert(N == 2 * lanes<float>);
  vec<float> bias[2] = {};
  for (int64_t j = 0; p.bias != nullptr && j < columns; j += lanes<float>) bias[j / lanes<float>] = load_some(p.bias + channel + j, columns - j);
  const auto value = [&](int64_t i, int j) __attribute__((always_inline)) {
    const vec<float> sum = load(sums + i * width + j * lanes<float>) + bias[j];
    return reinterpret_cast<__m512>(p.activation.rectifies ? rectified(sum, p.activation.most) : sum);
  };
  for (int64_t i = 0; i < count; i++) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(value(i, 1), value(i, 0));
    if (columns == N)
      std::memcpy(static_cast<void*>(row[i] + to), &rounded, sizeof rounded);
    else
      std::memcpy(static_cast<void*>(row[i] + to), &rounded, columns * sizeof(BFloat16));
  }
}

// The outputs of a block of positions, of the panels [panel_begin, panel_end). Where all of the depth is multiplied at once, one panel's sums
// take the place of another's.
template <class Multiplier>
void gather_block(Multiplier& multiplier, const Panels<BFloat16, N>& panels, const PackedPairs& weight, ColumnBlock<BFloat16>& block,
                  int64_t first, int64_t count, int64_t panel_begin, int64_t panel_end, float* sums) {
  const GatherConv<BFloat16>& p = panels.p;
  block.move_to(first, count);
  BFloat16* row[ROW_TILES * Multiplier::ROWS];
  locate_rows(p, p.output, first, count, row);
  const Tiles& tiles = block.tiles();
  std::vector<const BFloat16*> a;
  for (int64_t group = 0; group < p.groups; group++) {
    for (int64_t depth = 0, end = -1; end < panels.depth; depth = end) {
      end = block.end_of_runs(depth, panels.depth, Multiplier::LONGEST);
      const int64_t runs = block.runs_between(depth, end);
      a.resize(tiles.size() * runs);
      int64_t run = 0, length = 0, distance = 0;
      block.each_run(group, depth, end, [&](int64_t from, int64_t to, int64_t rows_apart, const auto& row_of) {
        for (size_t t = 0; t < tiles.size(); t++) a[t * runs + run] = row_of(tiles[t]);
        length = to - from;
        distance = rows_apart;
        run++;
      });
      const bool at_once = depth == 0 && end == panels.depth;
      const int64_t width = at_once ? N : (panel_end - panel_begin) * N;
      for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        float* const c = at_once ? sums : sums + (panel - panel_begin) * N;
        multiplier.multiply({tiles, a, runs, length / 2, distance, weight.panel(group, panel) + depth / 2 * N, weight.panel_step, c, width,
                             panels.columns(panel), depth == 0});
        if (end < panels.depth) continue;
        const int64_t channel = group * p.out_channels + panels.column(panel);
        finish(p, c, width, count, row, panels.shift(panel) * p.groups * p.out_channels + channel, channel, panels.columns(panel));
      }
    }
  }
}

template <class Multiplier>
void conv(const GatherConv<BFloat16>& p) {
  const int64_t total = p.batch * volume(p.window.output);
  if (total == 0 || p.out_channels == 0) return;
  const Panels<BFloat16, N> panels(p);
  if (p.in_channels % 2 == 1) return with_even_channels(panels, conv<Multiplier>);
  const PackedPairs weight(panels);
  const GatherBlocks work(p.window, total, panels.count, columns_as<BFloat16>(p.window, p.groups, p.in_channels), Multiplier::ROWS);
  torch::stable::parallel_for(0, work.blocks * work.cuts, 1, [&](int64_t begin, int64_t end) {
    Multiplier multiplier;
    ColumnBlock<BFloat16> block(p.window, p.groups, p.in_channels, p.input, Multiplier::LONGEST + LINE<BFloat16>, Multiplier::ROWS);
    const Scratch<float> sums(ROW_TILES * Multiplier::ROWS * (ceil_div(panels.count, work.cuts) + work.together) * N);
    work.each(begin, end, [&](int64_t first, int64_t count, int64_t panel_begin, int64_t panel_end) {
      gather_block(multiplier, panels, weight, block, first, count, panel_begin, panel_end, sums.get());
    });
  });
}

// Whether a group's channels fill a panel to some extent.
inline bool serves(const GatherConv<BFloat16>& p) {
  constexpr int64_t FEWEST = 16;
  return p.in_channels > 0 && (p.groups == 1 || std::min(p.in_channels, p.out_channels) >= FEWEST);
}
inline bool serves_by_vectors(const GatherConv<BFloat16>& p) { return __builtin_cpu_supports("avx512bf16") && serves(p) && p.in_channels % 2 == 0; }

}  // namespace paired

constexpr PairedKernels paired_table() {
  return {paired::conv<paired::ByVectors>, paired::serves_by_vectors, nullptr, [](const WeightGrad<BFloat16>&) { return false; }, false};
}

#else

constexpr PairedKernels paired_table() {
  return {nullptr, [](const GatherConv<BFloat16>&) { return false; }, nullptr, [](const WeightGrad<BFloat16>&) { return false; }, false};
}

#endif

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
