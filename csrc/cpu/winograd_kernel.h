// Convolution by Winograd's tiles, of kernels with three or five taps along one dimension or two (winograd_transforms.h). Summed over the input channels, the elementwise product of a point
// becomes a matrix product [tiles][in] x [in][out]. Of the two transformed operands, inputs [point][tile][in] and weight
// [point][in][out], the smaller one is kept whole and the other passes by in blocks that fit the L2 cache. Vectors run over the
// channels. In three dimensions the sum is over the kernel's depth, too: the channels of its taps are like more input channels.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace winograd {

// Tiles of a block, at least and at most.
constexpr int64_t LEAST_BLOCK = 14 / TILE_ROWS * TILE_ROWS, LARGEST_BLOCK = 4 * TILE_ROWS;

// G g G^T at one tap of the kernel's depth, for `depth` input channels from `channel` on and one panel of output channels from `first` on,
// filled up with zeros. Point i goes to to + i * step, as [depth][TILE_COLUMNS]. Panels of the weight that are kept are all that is read.
template <class F, class S>
void weight_panel(const WinogradConv<S>& p, int64_t tap, int64_t channel, int64_t depth, int64_t first, wide<S>* to, int64_t step) {
  using T = wide<S>;
  constexpr int64_t L = lanes<T>, N = TILE_COLUMNS<T>, CHUNK = 16;
  const int64_t columns = std::min<int64_t>(N, p.out_channels - first);
  WeightView<T> view = p.weight;
  view.start += tap * view.step[0];
  const Filters<T> filters(view, {1, F::Y::TAPS, F::X::TAPS}, 0, p.in_channels);
  T chunk[CHUNK][F::TAPS][N];
  if (columns < N) std::memset(chunk, 0, sizeof chunk);
  const T* kept = p.weight.packed;
  if (kept != nullptr) kept += ((first / N * p.kernel_depth + tap) * F::TAPS * p.in_channels + channel) * N;
  const int64_t tap_step = kept == nullptr ? N : p.in_channels * N;
  for (int64_t k = 0; k < depth; k++) {
    if (kept == nullptr && k % CHUNK == 0) {
      filters.read(channel + k, std::min(CHUNK, depth - k), first, columns, chunk[0][0], N);
      if (k + CHUNK < depth) filters.prefetch(channel + k + CHUNK, std::min(CHUNK, depth - k - CHUNK), first, columns);
    }
    const T* const taps = kept == nullptr ? chunk[k % CHUNK][0] : kept + k * N;
    for (int64_t o = 0; o < N; o += L) {
      vec<T> rows[F::Y::IN][F::X::TAPS];  // G g, then times G^T
#pragma GCC unroll 5
      for (int x = 0; x < F::X::TAPS; x++) {
        vec<T> g[F::Y::TAPS], column[F::Y::IN];
#pragma GCC unroll 5
        for (int y = 0; y < F::Y::TAPS; y++) g[y] = load(taps + (y * F::X::TAPS + x) * tap_step + o);
        F::Y::template weight<T>(g, column);
#pragma GCC unroll 8
        for (int y = 0; y < F::Y::IN; y++) rows[y][x] = column[y];
      }
#pragma GCC unroll 8
      for (int y = 0; y < F::Y::IN; y++) {
        vec<T> row[F::X::IN];
        F::X::template weight<T>(rows[y], row);
#pragma GCC unroll 8
        for (int x = 0; x < F::X::IN; x++) store(to + (y * F::X::IN + x) * step + k * N + o, row[x]);
      }
    }
  }
}

// No sum is longer: the transforms make much of its error.
constexpr int64_t SUM = 64;

// One point: products[tile][column] += inputs[tile][depth] * weight[depth][column], for `tiles` tiles and the columns of a panel, or of two,
// `pair` apart.
template <class T, LayoutA LAYOUT>
void multiply(int64_t tiles, int64_t depth, const T* inputs, const T* weight, int64_t pair, T* products, int64_t product_stride, int64_t columns, bool first) {
  constexpr int64_t N = TILE_COLUMNS<T>, STRIDE = LAYOUT == LayoutA::tight ? TIGHT_STRIDE : PACKED_STRIDE<T>;
  const T zeros[BROAD_COLUMNS<T>] = {};
  const bool broad = columns > N;
  for_each_tile(tiles, broad ? BROAD_ROWS : TILE_ROWS, [&](int64_t t, int64_t rows) {
    const bool far = LAYOUT == LayoutA::packed && t == 0;
    const auto multiply = broad ? tile_of<T, LayoutA::rows>(rows, columns, far) : tile_of<T, LAYOUT>(rows, columns, far);
    T* c[TILE_ROWS];
    for (int r = 0; r < rows; r++) c[r] = products + (t + r) * product_stride;
    for (int64_t k = 0; k < depth; k += SUM)
      multiply(std::min(SUM, depth - k), inputs + t * STRIDE + k, STRIDE, weight + k * N, N, pair, c, columns, first && k == 0 ? zeros : nullptr, 0);
  });
}

// Many tiles, few channels: the transformed weight is kept, and the tiles pass by in blocks that fit the L2 cache.
template <class F, class S>
void conv_by_tiles(const WinogradConv<S>& p, const Tiles<F, S>& all) {
  using T = wide<S>;
  constexpr int64_t N = TILE_COLUMNS<T>, POINTS = F::POINTS;
  const int64_t of_tap = ceil_div(p.in_channels, DEPTH);  // blocks
  const PackedWeight<T> weight(p.kernel_depth * of_tap * DEPTH, DEPTH, POINTS, ceil_div(p.out_channels, TILE_COLUMNS<T>));
  const auto channel_of = [&](int64_t block) { return block % of_tap * DEPTH; };
  const auto depth_of = [&](int64_t block) { return std::min<int64_t>(DEPTH, p.in_channels - channel_of(block)); };
  torch::stable::parallel_for(0, weight.blocks * weight.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t block = i / weight.panels, panel = i % weight.panels;
      weight_panel<F>(p, block / of_tap, channel_of(block), depth_of(block), panel * N, weight.room(0, block, panel), weight.group_step);
    }
  });
  const int64_t width = weight.panels * N;
  const int64_t room = INT64_C(1000000) / (POINTS * sizeof(T) * (std::min<int64_t>(p.in_channels, DEPTH) + width));
  const int64_t most = std::clamp<int64_t>(room / TILE_ROWS * TILE_ROWS, LEAST_BLOCK, LARGEST_BLOCK), threads = torch::stable::get_num_threads();
  const int64_t block_tiles = ceil_div(all.total, ceil_div(all.total, most * threads) * threads);  // as many blocks for each thread
  torch::stable::parallel_for(0, ceil_div(all.total, block_tiles), 1, [&](int64_t begin, int64_t end) {
    const int64_t input_step = apart<T>(block_tiles * PACKED_STRIDE<T>), product_step = apart<T>(block_tiles * width);
    const Scratch<T> inputs(POINTS * input_step), products(POINTS * product_step);
    for (int64_t i = begin; i < end; i++) {
      const int64_t count = std::min(block_tiles, all.total - i * block_tiles);
      for (int64_t block = 0; block < weight.blocks; block++) {
        for (int64_t t = 0; t < count; t++) {
          const TileInput<F, S> tile(p, all, i * block_tiles + t, block / of_tap);
          tile.transform(channel_of(block), depth_of(block), inputs.get() + t * PACKED_STRIDE<T>, input_step, PACKED_STRIDE<T>);
        }
        for (int64_t point = 0; point < POINTS; point++)
          for (int64_t column = 0, columns; column < width; column += columns) {
            columns = BROAD_ROWS > 0 && width - column > N ? BROAD_COLUMNS<T> : N;
            multiply<T, LayoutA::packed>(count, depth_of(block), inputs.get() + point * input_step, weight.panel(point, block, column / N), DEPTH * N,
                                         products.get() + point * product_step + column, width, columns, block == 0);
          }
      }
      for (int64_t t = 0; t < count; t++) {
        const TileOutput<F, S> tile(p, all, i * block_tiles + t);
        tile.write(products.get() + t * width, product_step, width, 0, p.out_channels);
      }
    }
  });
}

// A panel of the weight is so deep.
constexpr int64_t PANEL_DEPTH = TIGHT_STRIDE;

// Tiles whose products with a panel fill three quarters of the L2 cache. Fewer would ask for the panel to be transformed more often.
template <class T>
int64_t panel_tiles(int64_t points) { return std::max<int64_t>(TILE_ROWS, l2_cache() * 3 / 4 / (points * TILE_COLUMNS<T> * static_cast<int64_t>(sizeof(T)))); }

// Few tiles, many channels: the transformed input is kept, and the weight passes by. Transformed it is four times as large: each part
// of it is made where it is used, and forgotten, again for each block of tiles.
template <class F, class S>
void conv_by_panels(const WinogradConv<S>& p, const Tiles<F, S>& all) {
  using T = wide<S>;
  constexpr int64_t N = TILE_COLUMNS<T>, POINTS = F::POINTS;
  const int64_t of_tap = ceil_div(p.in_channels, PANEL_DEPTH), depths = p.kernel_depth * of_tap, panels = ceil_div(p.out_channels, N);
  const auto channel_of = [&](int64_t i) { return i % of_tap * PANEL_DEPTH; };
  const auto depth_of = [&](int64_t i) { return std::min(PANEL_DEPTH, p.in_channels - channel_of(i)); };
  const int64_t input_step = apart<T>(all.total * PANEL_DEPTH);
  const Scratch<T> inputs(depths * POINTS * input_step);
  torch::stable::parallel_for(0, all.total, grain_of(POINTS * p.in_channels), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      for (int64_t tap = 0, i = 0; tap < p.kernel_depth; tap++)
        for (const TileInput<F, S> tile(p, all, t, tap); i < (tap + 1) * of_tap; i++)
          tile.transform(channel_of(i), depth_of(i), inputs.get() + i * POINTS * input_step + t * PANEL_DEPTH, input_step, PANEL_DEPTH);
    }
  });
  const int64_t blocks = ceil_div(all.total, panel_tiles<T>(POINTS)), most = ceil_div(all.total, blocks);
  torch::stable::parallel_for(0, panels * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t weight_step = apart<T>(PANEL_DEPTH * N), product_step = apart<T>(most * N);
    const Scratch<T> weight(POINTS * weight_step), products(POINTS * product_step);
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * most, count = std::min(most, all.total - first);
      const int64_t channel = item / blocks * N, channels = std::min(N, p.out_channels - channel);
      for (int64_t i = 0; i < depths; i++) {
        weight_panel<F>(p, i / of_tap, channel_of(i), depth_of(i), channel, weight.get(), weight_step);
        const T* a = inputs.get() + i * POINTS * input_step + first * PANEL_DEPTH;
        for (int64_t point = 0; point < POINTS; point++)
          multiply<T, LayoutA::tight>(count, depth_of(i), a + point * input_step, weight.get() + point * weight_step, 0,
                                      products.get() + point * product_step, N, N, i == 0);
      }
      for (int64_t t = 0; t < count; t++) {
        const TileOutput<F, S> tile(p, all, first + t);
        tile.write(products.get() + t * N, product_step, N, channel, channels);
      }
    }
  });
}

// Elements of a transformed weight that the L2 cache doesn't hold.
constexpr int64_t LARGE_WEIGHT = 1 << 19;

// The larger of the two transformed operands is not held whole; nor is a weight of half its size, if each block of tiles would fetch it from
// beyond the L2 cache.
template <class F, class S>
void conv_by(const WinogradConv<S>& p) {
  const Tiles<F, S> tiles(p);
  if (tiles.total == 0 || p.out_channels == 0) return;
  const bool large = F::POINTS * p.in_channels * p.out_channels >= LARGE_WEIGHT;
  tiles.total < (large ? 2 : 1) * p.out_channels ? conv_by_panels(p, tiles) : conv_by_tiles(p, tiles);
}

template <class F>
int64_t multiplications(const WinogradPictures& p) {
  return tiles_along(p.out_height, p.dilation_height, F::Y::OUT) * tiles_along(p.out_width, p.dilation_width, F::X::OUT) * F::POINTS;
}

// The larger tiles where they save a sixteenth of the products and more: not where much of them juts out of the picture. With few
// channels the transforms are most of the work, and theirs are no cheaper.
template <class SMALL, class LARGE, class S>
void conv_by_either(const WinogradConv<S>& p) {
  const bool many_channels = std::min(p.in_channels, p.out_channels) >= 32;
  many_channels && 16 * multiplications<LARGE>(p) <= 15 * multiplications<SMALL>(p) ? conv_by<LARGE>(p) : conv_by<SMALL>(p);
}

template <class S>
void conv(const WinogradConv<S>& p) {
  if (SHARED_SIGNS<wide<S>> && p.output_signs != nullptr) {
    const int64_t outputs = p.batch * p.out_height * p.out_width * p.out_channels / (p.pooled ? 4 : 1);
    std::memset(p.output_signs, 0, outputs / 8);
  }
  if (p.taps == 5)
    p.line ? conv_by_either<Both<One, F2of5>, Both<One, F4of5>>(p) : conv_by_either<Both<F2of5, F2of5>, Both<F4of5, F4of5>>(p);
  else
    p.line ? conv_by_either<Both<One, F4>, Both<One, F6>>(p) : conv_by_either<Both<F4, F4>, Both<F6, F6>>(p);
}

}  // namespace winograd
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
