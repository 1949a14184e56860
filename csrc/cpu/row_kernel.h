// Convolution of few input channels, as the first layer of a network is, and its weight gradient. A row of taps is a short run of a
// channels-last row, and the runs of neighbouring positions overlap at a constant distance: the micro-kernels read them where they
// lie, in a padded copy of the input rows that a block of output rows needs. Nothing is packed.
namespace torchconv {
namespace TORCHCONV_ISA {

// Whether the taps are rows of neighbours in two dimensions, without groups; and of so few channels that packing would cost as much
// as it saves. Half a panel of output channels is filled.
template <class T>
bool rows_serve(const Window& w, int64_t groups, int64_t in_channels, int64_t out_channels) {
  return groups == 1 && in_channels > 0 && in_channels <= 4 && 2 * out_channels >= TILE_COLUMNS<T> && w.kernel[0] == 1 && w.stride[0] == 1 && w.padding[0] == 0 &&
         w.dilation[2] == 1 && volume(w.kernel) > 1 && w.kernel[2] <= 16;
}

// Output rows from `y` on, of a slice of a picture.
struct RowBlock {
  int64_t batch, slice, y, rows;
};

// How the output rows are cut into blocks, and the padded input rows that a block needs, [row][column][channel].
template <class T>
struct InputRows {
  const Window& w;
  const int64_t channels, reach, width, line;  // rows that an output row sees; columns and elements of an input row
  int64_t rows, down;

  InputRows(const Window& window, int64_t in_channels, int64_t most)
      : w(window),
        channels(in_channels),
        reach(w.dilation[1] * (w.kernel[1] - 1) + 1),
        width((w.output[2] - 1) * w.stride[2] + w.kernel[2]),
        line(width * channels) {
    constexpr int64_t PIECE = 65536 / sizeof(T);
    rows = std::clamp<int64_t>((PIECE / line - reach) / w.stride[1] + 1, 1, std::min(most, w.output[1]));
    down = ceil_div(w.output[1], rows);
  }
  int64_t blocks(int64_t batch) const { return batch * w.output[0] * down; }
  Scratch<T> scratch() const { return Scratch<T>(((rows - 1) * w.stride[1] + reach) * line); }
  RowBlock block(int64_t i) const {
    const int64_t y = i % down * rows;
    return {i / down / w.output[0], i / down % w.output[0], y, std::min(rows, w.output[1] - y)};
  }
  // Where the first position of the block's row `y` begins.
  const T* row(const T* piece, int64_t y) const { return piece + y * w.stride[1] * line; }

  void copy(const Activations<const T>& input, const RowBlock& at, T* to) const {
    for (int64_t row = 0; row < (at.rows - 1) * w.stride[1] + reach; row++, to += line) {
      const int64_t h = at.y * w.stride[1] - w.padding[1] + row, x = std::clamp<int64_t>(w.padding[2], 0, width);
      const int64_t last = h < 0 || h >= w.input[1] ? x : std::clamp(w.input[2] + w.padding[2], x, width);
      zero_run(to, x * channels);
      const T* from = input.data + at.batch * input.batch_step + at.slice * input.step[0] + h * input.step[1] + (x - w.padding[2]) * input.step[2];
      if ((channels == 1 || input.channel_step == 1) && input.step[2] == channels) {
        if (x < last) std::memcpy(to + x * channels, from, (last - x) * channels * sizeof(T));
      } else {
        for (int64_t j = x; j < last; j++, from += input.step[2])
          for (int64_t c = 0; c < channels; c++) to[j * channels + c] = from[c * input.channel_step];
      }
      zero_run(to + last * channels, (width - last) * channels);
    }
  }
};

// Computes ROWS x V vectors as `tile` does, of `runs` runs of A that begin `run_step` apart, and of B, [runs * run][columns].
// STEP is the distance of A's rows where it is known: every broadcast is a load with an immediate offset then.
template <class T, int V, int ROWS, int STEP>
void run_tile(int64_t runs, int64_t run, const T* a, int64_t a_step, int64_t run_step, const T* b, T* c, int64_t c_stride,
              int64_t columns, const T* start) {
  constexpr int L = lanes<T>;
  vec<T> sum[ROWS][V];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) sum[i][j] = load(start + j * L);
  }
  for (int64_t r = 0; r < runs; r++, a += run_step) {
    for (int64_t k = 0; k < run; k++, b += V * L) {
      const T* column = a + k;
      asm("" : "+r"(column));  // or g++ keeps what the next columns share in registers, which there are too few of
      vec<T> row[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) row[j] = load(b + j * L);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        const T value = column[i * (STEP > 0 ? STEP : a_step)];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) sum[i][j] += value * row[j];
      }
    }
  }
  T edge[V * L];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
    T* to = columns == V * L ? c + i * c_stride : edge;
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) store(to + j * L, sum[i][j]);
    if (to == edge) std::memcpy(c + i * c_stride, edge, columns * sizeof(T));
  }
}

template <class T>
using RunTile = void (*)(int64_t, int64_t, const T*, int64_t, int64_t, const T*, T*, int64_t, int64_t, const T*);

template <class T, int V, int ROWS>
RunTile<T> run_tile_of(int64_t rows, int64_t step) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return run_tile_of<T, V, ROWS - 1>(rows, step);
  }
  switch (step) {
    case 1: return run_tile<T, V, ROWS, 1>;    // every grey pixel
    case 3: return run_tile<T, V, ROWS, 3>;    // every coloured one
    case 6: return run_tile<T, V, ROWS, 6>;    // every second
    case 12: return run_tile<T, V, ROWS, 12>;  // every fourth
    default: return run_tile<T, V, ROWS, 0>;
  }
}

template <class T>
bool row_conv_serves(const GatherConv<T>& p) {
  return rows_serve<T>(p.window, p.groups, p.in_channels, p.out_channels) && p.spacing == Extent{1, 1, 1} && p.origin == Extent{0, 0, 0};
}

// In tiles of ROWS x V vectors.
template <class T, int ROWS, int V>
void row_conv_by(const GatherConv<T>& p, const Activations<const T>& input, const Activations<T>& output) {
  constexpr int64_t N = V * lanes<T>, BLOCK = 8 * TILE_ROWS;
  const Window& w = p.window;
  const int64_t C = p.in_channels, O = p.out_channels, taps = volume(w.kernel), panels = ceil_div(O, N), step = w.stride[2] * C;
  const InputRows<T> rows(w, C, w.output[1]);
  const Scratch<T> weight(panels * taps * C * N), start(panels * N);  // weight: [panel][tap][in][N]
  zero_run(weight.get(), panels * taps * C * N);
  zero_run(start.get(), panels * N);
  if (p.bias != nullptr) copy_run(p.bias, start.get(), O);
  const Filters<T> filters(p.weight, w.kernel, 0, C);
  for (int64_t o = 0; o < O; o++)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t c = 0; c < C; c++)
        weight.get()[((o / N * taps + tap) * C + c) * N + o % N] = filters.data[filters.offset[tap] + c * filters.in_step + o * filters.out_step];
  torch::stable::parallel_for(0, rows.blocks(p.batch), 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> piece = rows.scratch(), block(BLOCK * panels * N);
    for (int64_t i = begin; i < end; i++) {
      const RowBlock at = rows.block(i);
      rows.copy(input, at, piece.get());
      for (int64_t y = 0; y < at.rows; y++) {
        T* const to = output.data + at.batch * output.batch_step + at.slice * output.step[0] + (at.y + y) * output.step[1];
        for (int64_t x = 0; x < w.output[2]; x += BLOCK) {
          const int64_t positions = std::min(BLOCK, w.output[2] - x);
          const bool direct = output.channel_step == 1;
          T* const first = direct ? to + x * output.step[2] : block.get();
          const int64_t stride = direct ? output.step[2] : panels * N;
          for (int64_t panel = 0; panel < panels; panel++) {
            for_each_tile(positions, ROWS, [&](int64_t t, int64_t some) {
              run_tile_of<T, V, ROWS>(some, step)(w.kernel[1], w.kernel[2] * C, rows.row(piece.get(), y) + (x + t) * step, step, w.dilation[1] * rows.line,
                                         weight.get() + panel * taps * C * N, first + t * stride + panel * N, stride,
                                         direct ? std::min(N, O - panel * N) : N, start.get() + panel * N);
            });
          }
          for (int64_t i = 0; i < positions; i++) activate(p.activation, first + i * stride, O);
          if (!direct) copy_matrix(O, positions, block.get(), 1, stride, to + x * output.step[2], output.channel_step, output.step[2]);
        }
      }
    }
  });
}

template <class T>
void row_conv(const GatherConv<T>& p, const Activations<const T>& input, const Activations<T>& output) {
  if constexpr (BROAD_ROWS > 0) {
    if (p.out_channels % BROAD_COLUMNS<T> == 0) return row_conv_by<T, BROAD_ROWS, 2 * TILE_VECTORS>(p, input, output);
  }
  row_conv_by<T, TILE_ROWS, TILE_VECTORS>(p, input, output);
}

// sums[ROWS][TILE_COLUMNS] += a[position][row] * grad[position][column] over a row of positions, which begin a_step and grad_step apart.
template <class T, int ROWS>
void row_dots(int64_t positions, const T* a, int64_t a_step, const T* grad, int64_t grad_step, T* sums, int64_t sums_step) {
  constexpr int V = TILE_VECTORS, L = lanes<T>;
  vec<T> sum[ROWS][V];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) sum[i][j] = vec<T>{};  // sums of short sums err less than a long one
  }
  for (int64_t x = 0; x < positions; x++, a += a_step, grad += grad_step) {
    vec<T> g[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) g[j] = load(grad + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) sum[i][j] += a[i] * g[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) store(sums + i * sums_step + j * L, load(sums + i * sums_step + j * L) + sum[i][j]);
  }
}

template <class T>
using RowDots = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t);

template <class T, int ROWS = TILE_ROWS>
RowDots<T> row_dots_of(int64_t rows) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return row_dots_of<T, ROWS - 1>(rows);
  }
  return row_dots<T, ROWS>;
}

template <class T>
bool row_weight_grad_serves(const WeightGrad<T>& p) {
  return rows_serve<T>(p.window, p.groups, p.in_channels, p.out_channels);
}

// The product is [tap, in][position] x [position][out], of which the first factor is never made. The blocks of rows are cut into as
// many partial sums as the problem (not the machine) asks for, added up in order.
template <class T>
void row_weight_grad(const WeightGrad<T>& p, const Activations<const T>& input, const Activations<const T>& grad_output) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Window& w = p.window;
  const auto& v = p.view;
  const int64_t C = p.in_channels, O = p.out_channels, run = w.kernel[2] * C, K = w.kernel[1] * run, wide = ceil_div(O, N) * N;
  const InputRows<T> rows(w, C, 8);
  const int64_t blocks = rows.blocks(p.batch), sums = std::clamp<int64_t>(blocks, 1, SUMS), tile = ceil_div(run, ceil_div(run, TILE_ROWS));
  const bool direct = grad_output.channel_step == 1 && wide == O;  // a vector may not reach beyond the last pixel
  const Scratch<T> partial(sums * K * wide);
  torch::stable::parallel_for(0, sums, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> piece = rows.scratch(), line(direct ? 0 : w.output[2] * wide);
    if (!direct) zero_run(line.get(), w.output[2] * wide);
    for (int64_t s = begin; s < end; s++) {
      T* const sum = partial.get() + s * K * wide;
      zero_run(sum, K * wide);
      for (int64_t i = blocks * s / sums; i < blocks * (s + 1) / sums; i++) {
        const RowBlock at = rows.block(i);
        rows.copy(input, at, piece.get());
        for (int64_t y = 0; y < at.rows; y++) {
          const T* grad = grad_output.data + at.batch * grad_output.batch_step + at.slice * grad_output.step[0] + (at.y + y) * grad_output.step[1];
          if (!direct) copy_matrix(O, w.output[2], grad, grad_output.channel_step, grad_output.step[2], line.get(), 1, wide);
          for (int64_t kh = 0; kh < w.kernel[1]; kh++) {
            const T* const a = rows.row(piece.get(), y) + kh * w.dilation[1] * rows.line;
            for (int64_t k = 0; k < run; k += tile)
              for (int64_t o = 0; o < O; o += N)
                row_dots_of<T>(std::min(tile, run - k))(w.output[2], a + k, w.stride[2] * C, (direct ? grad : line.get()) + o,
                                                        direct ? grad_output.step[2] : wide, sum + (kh * run + k) * wide + o, wide);
          }
        }
      }
    }
  });
  for (int64_t k = 0; k < K; k++) {
    T* const total = partial.get() + k * wide;
    for (int64_t s = 1; s < sums; s++)
      for (int64_t o = 0; o < O; o++) total[o] += total[s * K * wide + o];
    T* const to = p.grad_weight + v.start + k % C * v.in_step + k / run * v.step[1] + k % run / C * v.step[2];
    for (int64_t o = 0; o < O; o++) to[o * v.out_step] = total[o];
  }
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
