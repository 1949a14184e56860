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
// Of the two transformed operands, inputs [point][tile][in] and weight [point][in][out], the smaller one is kept whole and the
// other passes by in blocks that fit the L2 cache. Vectors run over the channels.
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

// One dimension of G g. Multiplied, not divided: division takes ten times as long.
template <class T>
inline __attribute__((always_inline)) void transform_weight(const vec<T> g[3], vec<T> to[IN]) {
  constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twentyfourth = T(1) / 24;
  const vec<T> outer = (g[0] + g[2]) * -sixth, inner = g[1] * sixth, near = g[0] * twentyfourth + g[2] * sixth, half = g[1] * twelfth;
  to[0] = g[0] * T(0.25);
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

// G g G^T for `depth` input channels from `channel` on and one panel of output channels from `first` on, filled up with zeros.
// Point i goes to to + i * step, as [depth][TILE_COLUMNS].
template <class T>
void weight_panel(const WinogradConv<T>& p, int64_t channel, int64_t depth, int64_t first, T* to, int64_t step) {
  constexpr int64_t L = lanes<T>, N = TILE_COLUMNS<T>, CHUNK = 64;
  const int64_t columns = std::min<int64_t>(N, p.out_channels - first);
  const Filters<T> filters(p.weight, {1, 3, 3}, 0, p.in_channels);
  T chunk[CHUNK][9][N] = {};
  for (int64_t k = 0; k < depth; k++) {
    if (k % CHUNK == 0) filters.read(channel + k, std::min(CHUNK, depth - k), first, columns, chunk[0][0], N);
    const auto& taps = chunk[k % CHUNK];
    for (int64_t o = 0; o < N; o += L) {
      vec<T> rows[IN][3];  // G g, then times G^T
#pragma GCC unroll 3
      for (int x = 0; x < 3; x++) {
        const vec<T> g[3] = {load(&taps[x][o]), load(&taps[3 + x][o]), load(&taps[6 + x][o])};
        vec<T> column[IN];
        transform_weight<T>(g, column);
#pragma GCC unroll 6
        for (int y = 0; y < IN; y++) rows[y][x] = column[y];
      }
#pragma GCC unroll 6
      for (int y = 0; y < IN; y++) {
        vec<T> row[IN];
        transform_weight<T>(rows[y], row);
#pragma GCC unroll 6
        for (int x = 0; x < IN; x++) store(to + (y * IN + x) * step + k * N + o, row[x]);
      }
    }
  }
}

// The 6x6 points of a FROM x FROM tile for `count` channels, where `transform` is one dimension of it (B^T d B with
// transform_input): pixel[] points at the tile's pixels, to + point * step receives the points.
template <int FROM, class T, class F>
void tile_points(const T* const pixel[FROM * FROM], int64_t first, int64_t count, T* to, int64_t step, const F& transform) {
  for (int64_t c = 0; c < count; c += lanes<T>) {
    vec<T> rows[IN][FROM];
#pragma GCC unroll 6
    for (int x = 0; x < FROM; x++) {
      vec<T> d[FROM], column[IN];
#pragma GCC unroll 6
      for (int y = 0; y < FROM; y++) d[y] = load_some(pixel[y * FROM + x] + first + c, count - c);
      transform(d, column);
#pragma GCC unroll 6
      for (int y = 0; y < IN; y++) rows[y][x] = column[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < IN; y++) {
      vec<T> row[IN];
      transform(rows[y], row);
#pragma GCC unroll 6
      for (int x = 0; x < IN; x++) store(to + (y * IN + x) * step + c, row[x]);
    }
  }
}

template <class T>
void input_tile(const T* const pixel[POINTS], int64_t first, int64_t count, T* to, int64_t step) {
  const auto transform = [](const vec<T> d[IN], vec<T> points[IN]) __attribute__((always_inline)) { transform_input(d, points); };
  tile_points<IN>(pixel, first, count, to, step, transform);
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

// Where the SIDE x SIDE pixels from (y0, x0) of picture n on lie; `outside` stands for those that don't exist.
template <int SIDE, class T>
void locate_pixels(T* picture, int64_t n, int64_t height, int64_t width, int64_t channels, int64_t y0, int64_t x0, T* outside,
                   T* pixel[SIDE * SIDE]) {
  for (int i = 0; i < SIDE * SIDE; i++) {
    const int64_t y = y0 + i / SIDE, x = x0 + i % SIDE;
    const bool inside = 0 <= y && y < height && 0 <= x && x < width;
    pixel[i] = inside ? picture + ((n * height + y) * width + x) * channels : outside;
  }
}

// The tiles of a problem, and the zeros that stand for its padding.
template <class T>
struct Tiles {
  const WinogradPictures& p;
  int64_t across, down, total;
  Scratch<T> zeros;

  explicit Tiles(const WinogradPictures& pictures)
      : p(pictures),
        across(ceil_div(p.out_width, OUT)),
        down(ceil_div(p.out_height, OUT)),
        total(p.batch * down * across),
        zeros(std::max(p.in_channels, p.out_channels)) {
    zero_run(zeros.get(), std::max(p.in_channels, p.out_channels));
  }
  // A tile's 6x6 inputs, and its 4x4 outputs.
  void inputs(const T* input, int64_t index, const T* pixel[POINTS]) const {
    locate_pixels<IN, const T>(input, picture(index), p.in_height, p.in_width, p.in_channels, y(index) - p.pad_height,
                               x(index) - p.pad_width, zeros.get(), pixel);
  }
  template <class U>
  void outputs(U* output, int64_t index, U* outside, U* pixel[OUT * OUT]) const {
    locate_pixels<OUT>(output, picture(index), p.out_height, p.out_width, p.out_channels, y(index), x(index), outside, pixel);
  }

 private:
  int64_t picture(int64_t index) const { return index / across / down; }
  int64_t y(int64_t index) const { return index / across % down * OUT; }
  int64_t x(int64_t index) const { return index % across * OUT; }
};

// One point: products[tile][column] += inputs[tile][depth] * weight[depth][column], for `tiles` tiles and one panel.
template <class T, LayoutA LAYOUT>
void multiply(int64_t tiles, int64_t depth, const T* inputs, const T* weight, T* products, int64_t product_stride, bool first) {
  constexpr int64_t N = TILE_COLUMNS<T>, STRIDE = LAYOUT == LayoutA::tight ? TIGHT_STRIDE : PACKED_STRIDE<T>;
  const T zeros[N] = {};
  const int64_t most = ceil_div(tiles, ceil_div(tiles, TILE_ROWS));  // 16 are 8 and 8, not 14 and 2
  for (int64_t t = 0; t < tiles; t += most) {
    const int rows = std::min<int64_t>(most, tiles - t);
    T* c[TILE_ROWS];
    for (int r = 0; r < rows; r++) c[r] = products + (t + r) * product_stride;
    tile_of<T, LAYOUT>(rows)(depth, inputs + t * STRIDE, 0, weight, N, c, N, first ? zeros : nullptr, 0);
  }
}

// Many tiles, few channels: the transformed weight is kept, and the tiles pass by in blocks that fit the L2 cache.
template <class T>
void conv_by_tiles(const WinogradConv<T>& p, const Tiles<T>& all) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const PackedWeight<T> weight(1, POINTS, p.in_channels, p.out_channels);
  const auto depth_of = [&](int64_t block) { return std::min<int64_t>(DEPTH, p.in_channels - block * DEPTH); };
  torch::stable::parallel_for(0, weight.blocks * weight.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t block = i / weight.panels, panel = i % weight.panels;
      weight_panel(p, block * DEPTH, depth_of(block), panel * N, weight.panel(0, block, panel), weight.group_step);
    }
  });
  const int64_t width = weight.panels * N;
  const int64_t room = INT64_C(1200000) / (POINTS * sizeof(T) * (std::min<int64_t>(p.in_channels, DEPTH) + width));
  const int64_t block_tiles = std::clamp<int64_t>(room / TILE_ROWS * TILE_ROWS, 2 * TILE_ROWS, LARGEST_BLOCK);
  torch::stable::parallel_for(0, ceil_div(all.total, block_tiles), 1, [&](int64_t begin, int64_t end) {
    const int64_t input_step = block_tiles * PACKED_STRIDE<T> + LINE<T>, product_step = block_tiles * width + LINE<T>;
    const Scratch<T> inputs(POINTS * input_step), products(POINTS * product_step);
    for (int64_t i = begin; i < end; i++) {
      const int64_t count = std::min(block_tiles, all.total - i * block_tiles);
      for (int64_t block = 0; block < weight.blocks; block++) {
        for (int64_t t = 0; t < count; t++) {
          const T* pixel[POINTS];
          all.inputs(p.input, i * block_tiles + t, pixel);
          input_tile(pixel, block * DEPTH, depth_of(block), inputs.get() + t * PACKED_STRIDE<T>, input_step);
        }
        for (int64_t point = 0; point < POINTS; point++)
          for (int64_t panel = 0; panel < weight.panels; panel++)
            multiply<T, LayoutA::packed>(count, depth_of(block), inputs.get() + point * input_step, weight.panel(point, block, panel),
                                         products.get() + point * product_step + panel * N, width, block == 0);
      }
      for (int64_t t = 0; t < count; t++) {
        T* pixel[OUT * OUT];
        all.outputs(p.output, i * block_tiles + t, static_cast<T*>(nullptr), pixel);
        output_tile(products.get() + t * width, product_step, p.bias, 0, p.out_channels, pixel);
      }
    }
  });
}

// What the L2 cache holds: a panel of the weight, so deep, and the products of so many tiles with it, at all points.
constexpr int64_t PANEL_DEPTH = TIGHT_STRIDE, PANEL_TILES = 70 / TILE_ROWS * TILE_ROWS;

// Few tiles, many channels: the transformed input is kept, and the weight passes by. Transformed it is four times as large: each part
// of it is made where it is used, and forgotten, again for each block of tiles.
template <class T>
void conv_by_panels(const WinogradConv<T>& p, const Tiles<T>& all) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const int64_t depths = ceil_div(p.in_channels, PANEL_DEPTH), panels = ceil_div(p.out_channels, N);
  const auto depth_of = [&](int64_t i) { return std::min(PANEL_DEPTH, p.in_channels - i * PANEL_DEPTH); };
  const int64_t input_step = all.total * PANEL_DEPTH + LINE<T>;
  const Scratch<T> inputs(depths * POINTS * input_step);
  torch::stable::parallel_for(0, all.total, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const T* pixel[POINTS];
      all.inputs(p.input, t, pixel);
      for (int64_t i = 0; i < depths; i++)
        input_tile(pixel, i * PANEL_DEPTH, depth_of(i), inputs.get() + i * POINTS * input_step + t * PANEL_DEPTH, input_step);
    }
  });
  const int64_t blocks = ceil_div(all.total, PANEL_TILES), most = ceil_div(all.total, blocks);
  torch::stable::parallel_for(0, panels * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t weight_step = PANEL_DEPTH * N + LINE<T>, product_step = most * N + LINE<T>;
    const Scratch<T> weight(POINTS * weight_step), products(POINTS * product_step);
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * most, count = std::min(most, all.total - first);
      const int64_t channel = item / blocks * N, channels = std::min(N, p.out_channels - channel);
      for (int64_t i = 0; i < depths; i++) {
        weight_panel(p, i * PANEL_DEPTH, depth_of(i), channel, weight.get(), weight_step);
        const T* a = inputs.get() + i * POINTS * input_step + first * PANEL_DEPTH;
        for (int64_t point = 0; point < POINTS; point++)
          multiply<T, LayoutA::tight>(count, depth_of(i), a + point * input_step, weight.get() + point * weight_step,
                                      products.get() + point * product_step, N, i == 0);
      }
      for (int64_t t = 0; t < count; t++) {
        T* pixel[OUT * OUT];
        all.outputs(p.output, first + t, static_cast<T*>(nullptr), pixel);
        output_tile(products.get() + t * N, product_step, p.bias, channel, channels, pixel);
      }
    }
  });
}

// The larger of the two transformed operands is not held whole.
template <class T>
void conv(const WinogradConv<T>& p) {
  const Tiles<T> tiles(p);
  if (tiles.total == 0 || p.out_channels == 0) return;
  tiles.total < p.out_channels ? conv_by_panels(p, tiles) : conv_by_tiles(p, tiles);
}

}  // namespace winograd
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
