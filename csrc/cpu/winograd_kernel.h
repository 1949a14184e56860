// Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray 2016, arXiv:1509.09308, equations 8 and 16):
//
//   Y = A^T [ (G g G^T) * (B^T d B) ] A        (* is elementwise)
//
// computes a 4x4 tile of outputs from a 6x6 tile d of inputs with 36 products instead of 144. Summed over the input channels,
// each of the 36 elementwise products becomes a matrix product [tiles][in] x [in][out]. With the points 0, 1, -1, 2, -2, inf:
//
//          4  0 -5  0  1  0           1/4    0     0            1  1  1  1  1  0
//          0 -4 -4  1  1  0          -1/6  -1/6  -1/6    A^T =  0  1 -1  2 -2  0
//   B^T =  0  4 -4 -1  1  0     G =  -1/6   1/6  -1/6           0  1  1  4  4  0
//          0 -2 -1  2  1  0          1/24  1/12   1/6           0  1 -1  8 -8  1
//          0  2 -1 -2  1  0          1/24 -1/12   1/6
//          0  4  0 -5  0  1            0     0     1
//
// A block of tiles goes through all three steps while its transforms stay in the L2 cache. Vectors run over the channels.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace winograd {

constexpr int OUT = 4, IN = 6, POINTS = IN * IN;
constexpr int64_t LARGEST_BLOCK = 4 * TILE_ROWS;

// One dimension of B^T d.
template <class V>
inline __attribute__((always_inline)) void transform_input(const V d[IN], V to[IN]) {
  const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], twice = 2 * (d[3] - d[1]);
  to[0] = 4 * d[0] - 5 * d[2] + d[4];
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = far + twice;
  to[4] = far - twice;
  to[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// One dimension of G g.
template <class V>
inline __attribute__((always_inline)) void transform_weight(const V g[3], V to[IN]) {
  const V outer = (g[0] + g[2]) / -6, inner = g[1] / 6, near = g[0] / 24 + g[2] / 6, half = g[1] / 12;
  to[0] = g[0] / 4;
  to[1] = outer - inner;
  to[2] = outer + inner;
  to[3] = near + half;
  to[4] = near - half;
  to[5] = g[2];
}

// One dimension of A^T m.
template <class V>
inline __attribute__((always_inline)) void transform_output(const V m[IN], V to[OUT]) {
  const V sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  to[0] = m[0] + sum1 + sum2;
  to[1] = difference1 + 2 * difference2;
  to[2] = sum1 + 4 * sum2;
  to[3] = difference1 + 8 * difference2 + m[5];
}

template <class T>
inline __attribute__((always_inline)) vec<T> load_some(const T* from, int64_t count) {
  if (count >= lanes<T>) return load(from);
  T part[lanes<T>] = {};
  std::memcpy(part, from, count * sizeof(T));
  return load(part);
}

template <class T>
inline __attribute__((always_inline)) void store_some(T* to, vec<T> value, int64_t count) {
  if (count >= lanes<T>) return store(to, value);
  T part[lanes<T>];
  store(part, value);
  std::memcpy(to, part, count * sizeof(T));
}

// The transformed weight as panels of B: [point][block of DEPTH input channels][panel of output channels][depth][TILE_COLUMNS].
template <class T>
PackedWeight<T> pack_weight(const WinogradConv<T>& p) {
  constexpr int64_t L = lanes<T>, N = TILE_COLUMNS<T>;
  PackedWeight<T> packed(1, POINTS, p.in_channels, p.out_channels);
  const auto& v = p.weight;
  torch::stable::parallel_for(0, packed.blocks * packed.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t block = i / packed.panels, panel = i % packed.panels, first = panel * N;
      const int64_t columns = std::min<int64_t>(N, p.out_channels - first);
      for (int64_t k = 0; k < std::min<int64_t>(DEPTH, p.in_channels - block * DEPTH); k++) {
        const T* from = v.data + v.start + (block * DEPTH + k) * v.in_step + first * v.out_step;
        T taps[9][N] = {};
        for (int64_t o = 0; o < columns; o++)
          for (int tap = 0; tap < 9; tap++) taps[tap][o] = from[o * v.out_step + tap / 3 * v.step[1] + tap % 3 * v.step[2]];
        for (int64_t o = 0; o < N; o += L) {
          vec<T> rows[IN][3];  // G g, then times G^T
          for (int x = 0; x < 3; x++) {
            const vec<T> g[3] = {load(&taps[x][o]), load(&taps[3 + x][o]), load(&taps[6 + x][o])};
            vec<T> column[IN];
            transform_weight(g, column);
            for (int y = 0; y < IN; y++) rows[y][x] = column[y];
          }
          for (int y = 0; y < IN; y++) {
            vec<T> row[IN];
            transform_weight(rows[y], row);
            for (int x = 0; x < IN; x++) store(packed.panel(y * IN + x, block, panel) + k * N + o, row[x]);
          }
        }
      }
    }
  });
  return packed;
}

// B^T d B of one tile for `count` channels: pixel[] points at the tile's pixels, to + point * step receives the points.
template <class T>
void input_tile(const T* const pixel[POINTS], int64_t first, int64_t count, T* to, int64_t step) {
  for (int64_t c = 0; c < count; c += lanes<T>) {
    vec<T> rows[IN][IN];
#pragma GCC unroll 6
    for (int x = 0; x < IN; x++) {
      vec<T> d[IN], column[IN];
#pragma GCC unroll 6
      for (int y = 0; y < IN; y++) d[y] = load_some(pixel[y * IN + x] + first + c, count - c);
      transform_input(d, column);
#pragma GCC unroll 6
      for (int y = 0; y < IN; y++) rows[y][x] = column[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < IN; y++) {
      vec<T> row[IN];
      transform_input(rows[y], row);
#pragma GCC unroll 6
      for (int x = 0; x < IN; x++) store(to + (y * IN + x) * step + c, row[x]);
    }
  }
}

// A^T m A + bias of one tile, for `count` output channels: pixel[] points at the tile's outputs, null where it juts out.
template <class T>
void output_tile(const T* from, int64_t step, const T* bias, int64_t first, int64_t count, T* const pixel[OUT * OUT]) {
  for (int64_t c = 0; c < count; c += lanes<T>) {
    vec<T> rows[OUT][IN];
#pragma GCC unroll 6
    for (int x = 0; x < IN; x++) {
      vec<T> m[IN], column[OUT];
#pragma GCC unroll 6
      for (int y = 0; y < IN; y++) m[y] = load(from + (y * IN + x) * step + c);
      transform_output(m, column);
#pragma GCC unroll 4
      for (int y = 0; y < OUT; y++) rows[y][x] = column[y];
    }
    const vec<T> shift = bias != nullptr ? load_some(bias + first + c, count - c) : vec<T>{};
#pragma GCC unroll 4
    for (int y = 0; y < OUT; y++) {
      vec<T> row[OUT];
      transform_output(rows[y], row);
#pragma GCC unroll 4
      for (int x = 0; x < OUT; x++)
        if (pixel[y * OUT + x] != nullptr) store_some(pixel[y * OUT + x] + first + c, row[x] + shift, count - c);
    }
  }
}

// Where a tile lies: its 6x6 inputs (`zeros` in the padding) and its 4x4 outputs (null beyond the picture).
template <class T>
struct TilePixels {
  const T* in[POINTS];
  T* out[OUT * OUT];

  void locate(const WinogradConv<T>& p, int64_t index, int64_t across, int64_t down, const T* zeros) {
    const int64_t x0 = index % across * OUT, y0 = index / across % down * OUT, n = index / across / down;
    for (int i = 0; i < POINTS; i++) {
      const int64_t y = y0 - p.pad_height + i / IN, x = x0 - p.pad_width + i % IN;
      const bool inside = 0 <= y && y < p.in_height && 0 <= x && x < p.in_width;
      in[i] = inside ? p.input + ((n * p.in_height + y) * p.in_width + x) * p.in_channels : zeros;
    }
    for (int i = 0; i < OUT * OUT; i++) {
      const int64_t y = y0 + i / OUT, x = x0 + i % OUT;
      const bool inside = y < p.out_height && x < p.out_width;
      out[i] = inside ? p.output + ((n * p.out_height + y) * p.out_width + x) * p.out_channels : nullptr;
    }
  }
};

template <class T>
void conv(const WinogradConv<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const int64_t down = ceil_div(p.out_height, OUT), across = ceil_div(p.out_width, OUT), total = p.batch * down * across;
  if (total == 0 || p.out_channels == 0) return;
  const PackedWeight<T> weight = pack_weight(p);
  const Scratch<T> zeros(p.in_channels);
  zero_run(zeros.get(), p.in_channels);
  // A block's transforms should fill the L2 cache (1 MB and more), and no less than two micro-tiles should share a panel.
  const int64_t room = INT64_C(1200000) / (POINTS * sizeof(T) * (std::min<int64_t>(p.in_channels, DEPTH) + p.out_channels));
  const int64_t block_tiles = std::clamp<int64_t>(room / TILE_ROWS * TILE_ROWS, 2 * TILE_ROWS, LARGEST_BLOCK);
  const int64_t blocks = ceil_div(total, block_tiles), threads = torch::stable::get_num_threads();
  const int64_t cuts = std::min(weight.panels, ceil_div(4 * threads, blocks));
  torch::stable::parallel_for(0, blocks * cuts, 1, [&](int64_t begin, int64_t end) {
    const int64_t width = ceil_div(weight.panels, cuts) * N;
    Scratch<T> inputs(POINTS * block_tiles * PACKED_STRIDE<T>), products(POINTS * block_tiles * width);
    std::vector<TilePixels<T>> tiles(block_tiles);
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i / cuts * block_tiles, count = std::min(block_tiles, total - first);
      const int64_t panel0 = weight.panels * (i % cuts) / cuts, panel1 = weight.panels * (i % cuts + 1) / cuts;
      for (int64_t t = 0; t < count; t++) tiles[t].locate(p, first + t, across, down, zeros.get());
      for (int64_t block = 0; block < weight.blocks; block++) {
        const int64_t channel = block * DEPTH, depth = std::min<int64_t>(DEPTH, p.in_channels - channel);
        for (int64_t t = 0; t < count; t++)
          input_tile(tiles[t].in, channel, depth, inputs.get() + t * PACKED_STRIDE<T>, block_tiles * PACKED_STRIDE<T>);
        const T none[N] = {};
        for (int64_t point = 0; point < POINTS; point++) {
          for (int64_t panel = panel0; panel < panel1; panel++) {
            for (int64_t t = 0; t < count; t += TILE_ROWS) {
              const int rows = std::min<int64_t>(TILE_ROWS, count - t);
              T* c[TILE_ROWS];
              for (int r = 0; r < rows; r++) c[r] = products.get() + (point * block_tiles + t + r) * width + (panel - panel0) * N;
              tile_of<T, LayoutA::packed>(rows)(depth, inputs.get() + (point * block_tiles + t) * PACKED_STRIDE<T>, 0,
                                                weight.panel(point, block, panel), N, c, N, block == 0 ? none : nullptr);
            }
          }
        }
      }
      const int64_t channel = panel0 * N, channels = std::min(panel1 * N, p.out_channels) - channel;
      for (int64_t t = 0; t < count; t++)
        output_tile(products.get() + t * width, block_tiles * width, p.bias, channel, channels, tiles[t].out);
    }
  });
}

}  // namespace winograd
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
