// Convolution of few input channels, as the first layer of a network is. A row of taps is a short run of a channels-last row, and
// the runs of neighbouring positions overlap at a constant distance: the micro-kernel reads them where they lie, in a padded copy
// of the input rows that a block of output rows needs. Nothing is packed.
namespace torchconv {
namespace TORCHCONV_ISA {

// Computes ROWS x TILE_COLUMNS as `tile` does, of `runs` runs of A that begin `run_step` apart, and of B, [runs * run][TILE_COLUMNS].
template <class T, int ROWS>
void run_tile(int64_t runs, int64_t run, const T* a, int64_t a_stride, int64_t run_step, const T* b, T* c, int64_t c_stride,
              int64_t columns, const T* start) {
  constexpr int V = TILE_VECTORS, L = lanes<T>;
  vec<T> sum[ROWS][V];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) sum[i][j] = load(start + j * L);
  }
  for (int64_t r = 0; r < runs; r++, a += run_step) {
    for (int64_t k = 0; k < run; k++, b += V * L) {
      vec<T> row[V];
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) row[j] = load(b + j * L);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        const T value = a[i * a_stride + k];
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) sum[i][j] += value * row[j];
      }
    }
  }
  T edge[V * L];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
    T* to = columns == V * L ? c + i * c_stride : edge;
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) store(to + j * L, sum[i][j]);
    if (to == edge) std::memcpy(c + i * c_stride, edge, columns * sizeof(T));
  }
}

template <class T>
using RunTile = void (*)(int64_t, int64_t, const T*, int64_t, int64_t, const T*, T*, int64_t, int64_t, const T*);

template <class T, int ROWS = TILE_ROWS>
RunTile<T> run_tile_of(int64_t rows) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return run_tile_of<T, ROWS - 1>(rows);
  }
  return run_tile<T, ROWS>;
}

// Rows of two dimensions, without groups, whose taps are neighbours; and of so few channels that packing would cost as much as it
// saves.
template <class T>
bool row_conv_serves(const GatherConv<T>& p) {
  const Window& w = p.window;
  return p.groups == 1 && p.in_channels > 0 && p.in_channels <= 4 && p.out_channels >= 8 && w.kernel[0] == 1 && w.stride[0] == 1 && w.padding[0] == 0 &&
         w.dilation[2] == 1 && volume(w.kernel) > 1 && w.kernel[2] <= 16 && p.spacing == Extent{1, 1, 1} && p.origin == Extent{0, 0, 0};
}

template <class T>
void row_conv(const GatherConv<T>& p, const Activations<const T>& input, const Activations<T>& output) {
  constexpr int64_t N = TILE_COLUMNS<T>, BLOCK = 8 * TILE_ROWS, PIECE = 65536 / sizeof(T);
  const Window& w = p.window;
  const int64_t C = p.in_channels, O = p.out_channels, taps = volume(w.kernel), panels = ceil_div(O, N);
  const int64_t reach = w.dilation[1] * (w.kernel[1] - 1) + 1, width = (w.output[2] - 1) * w.stride[2] + w.kernel[2], line = width * C;
  const int64_t rows = std::clamp<int64_t>((PIECE / line - reach) / w.stride[1] + 1, 1, w.output[1]), down = ceil_div(w.output[1], rows);
  const Scratch<T> weight(panels * taps * C * N), start(panels * N);  // weight: [panel][tap][in][TILE_COLUMNS]
  zero_run(weight.get(), panels * taps * C * N);
  zero_run(start.get(), panels * N);
  if (p.bias != nullptr) copy_run(p.bias, start.get(), O);
  const Filters<T> filters(p.weight, w.kernel, 0, C);
  for (int64_t o = 0; o < O; o++)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t c = 0; c < C; c++)
        weight.get()[((o / N * taps + tap) * C + c) * N + o % N] = filters.data[filters.offset[tap] + c * filters.in_step + o * filters.out_step];
  torch::stable::parallel_for(0, p.batch * w.output[0] * down, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> piece(((rows - 1) * w.stride[1] + reach) * line), block(BLOCK * panels * N);
    for (int64_t i = begin; i < end; i++) {
      const int64_t slice = i / down, n = slice / w.output[0], d = slice % w.output[0], y0 = i % down * rows;
      const int64_t count = std::min(rows, w.output[1] - y0);
      for (int64_t row = 0; row < (count - 1) * w.stride[1] + reach; row++) {
        T* to = piece.get() + row * line;
        const int64_t h = y0 * w.stride[1] - w.padding[1] + row, x = std::clamp<int64_t>(w.padding[2], 0, width);
        const int64_t last = h < 0 || h >= w.input[1] ? x : std::clamp(w.input[2] + w.padding[2], x, width);
        zero_run(to, x * C);
        const T* from = input.data + n * input.batch_step + d * input.step[0] + h * input.step[1] + (x - w.padding[2]) * input.step[2];
        for (int64_t j = x; j < last; j++, from += input.step[2])
          for (int64_t c = 0; c < C; c++) to[j * C + c] = from[c * input.channel_step];
        zero_run(to + last * C, (width - last) * C);
      }
      for (int64_t y = 0; y < count; y++) {
        T* const to = output.data + n * output.batch_step + d * output.step[0] + (y0 + y) * output.step[1];
        for (int64_t x = 0; x < w.output[2]; x += BLOCK) {
          const int64_t positions = std::min(BLOCK, w.output[2] - x);
          const bool direct = output.channel_step == 1;
          T* const at = direct ? to + x * output.step[2] : block.get();
          const int64_t stride = direct ? output.step[2] : panels * N;
          for (int64_t panel = 0; panel < panels; panel++) {
            for (int64_t t = 0; t < positions; t += TILE_ROWS) {
              const int64_t some = std::min<int64_t>(TILE_ROWS, positions - t);
              run_tile_of<T>(some)(w.kernel[1], w.kernel[2] * C, piece.get() + y * w.stride[1] * line + (x + t) * w.stride[2] * C,
                                   w.stride[2] * C, w.dilation[1] * line, weight.get() + panel * taps * C * N, at + t * stride + panel * N,
                                   stride, direct ? std::min(N, O - panel * N) : N, start.get() + panel * N);
            }
          }
          if (!direct) copy_matrix(O, positions, block.get(), 1, stride, to + x * output.step[2], output.channel_step, output.step[2]);
        }
      }
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
