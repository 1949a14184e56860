// One channel in, one out: there is no sum over channels to block for. Activations are channels-last, vectors run over the channels.
//
// A block is up to OUTS<TAPS> neighbouring positions of an output row, and a chunk of channels. A row of taps meets a run of pixels
// there, each of which is loaded once for all the taps and positions that share it. A chunk is narrow and goes down a band of rows before
// the next one does, so that the rows that windows share are read from the L1 cache. The last vector of channels ends with the last
// channel, and may begin in the vector before: what both compute is the same.
namespace torchconv {
namespace TORCHCONV_ISA {

// Of a GatherConv or a WeightGrad.
template <class T, class P>
bool is_depthwise(const P& p) {
  return p.in_channels == 1 && p.out_channels == 1 && p.groups >= lanes<wide<T>>;
}

namespace depthwise {

// As many sums at a time as hide the latency of multiplying and adding. Long runs are worth more, where there are registers for them:
// short ones would make more blocks that reach over the edge.
template <int TAPS>
constexpr int OUTS = VECTOR_BYTES == 64 && TAPS > 3 ? 8 : 4;

// The runs that an output row meets: run r begins with pixel `column[r]` of an input row, at run[r], which needn't exist; its taps are
// tap[r] and those behind.
template <class T>
struct Runs {
  std::vector<const T*> run;
  std::vector<int64_t> tap, column;
};

// Some neighbouring positions of an output row, from `x` on.
template <class T>
struct Block {
  const Runs<T>& runs;
  int64_t x, stride, pixel, width;  // `pixel` and `stride` between pixels and between positions; `width` of an input row
};

// Pixel `i` of a block's run, a step apart; zero where it doesn't exist, if the block reaches over an edge.
template <class T, int STRIDE, bool EDGE>
struct RunOf {
  const T* in;
  int64_t column, step, pixel, width;

  RunOf(const Block<T>& block, size_t run, int64_t c)
      : in(block.runs.run[run] + block.x * block.stride * block.pixel + c),
        column(block.runs.column[run] + block.x * block.stride),
        step(STRIDE == 0 ? block.stride : 1),
        pixel(step * block.pixel),
        width(block.width) {}
  Values<T> operator[](int i) const {
    if (EDGE && static_cast<uint64_t>(column + i * step) >= static_cast<uint64_t>(width)) return Values<T>{};
    return load_values(in + i * pixel);
  }
};

template <class T>
struct Geometry {
  static constexpr int64_t BAND_BYTES = 32 << 10;  // of the input under a band of rows and a chunk

  const Window& w;
  const int64_t channels, taps = volume(w.kernel), rows = w.output[0] * w.output[1];
  // Taps that share a run: those of a row of the kernel where there is code for its width, else each has its own.
  int64_t together, outs;  // and positions of a block
  int64_t begin, end;      // positions all of whose taps lie inside the picture's width
  int64_t chunk, band;     // channels of a block, and output rows

  Geometry(const Window& window, int64_t groups) : w(window), channels(groups) {
    const bool shared = w.dilation[2] == 1 && w.stride[2] <= 2 && (w.kernel[2] == 3 || w.kernel[2] == 5 || w.kernel[2] == 7);
    together = shared ? w.kernel[2] : 1;
    outs = together == 5 ? OUTS<5> : together == 7 ? OUTS<7> : OUTS<3>;
    const int64_t last = w.input[2] + w.padding[2] - w.dilation[2] * (w.kernel[2] - 1);  // behind the last first tap
    begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(w.padding[2], 0), w.stride[2]), 0, w.output[2]);
    end = last <= 0 ? begin : std::clamp(ceil_div(last, w.stride[2]), begin, w.output[2]);
    const bool few = w.kernel[0] * w.kernel[1] <= 3;  // rows of taps: then whole pixels, as they come from memory, are worth more
    chunk = few ? groups : 2 * lanes<wide<T>>;
    const int64_t lines = BAND_BYTES / (std::max<int64_t>(1, w.input[2]) * std::min(chunk, groups) * static_cast<int64_t>(sizeof(T)));
    band = few ? 1 : std::clamp<int64_t>((lines - w.dilation[1] * (w.kernel[1] - 1)) / w.stride[1], 1, std::max<int64_t>(1, w.output[1]));
  }

  // The runs of an output row, from its first position on. Rows of taps outside the picture are left out.
  void find(const T* input, int64_t row, Runs<T>& runs) const {
    const int64_t h0 = row % w.output[1] * w.stride[1] - w.padding[1], slice = row / w.output[1];
    const int64_t d0 = slice % w.output[0] * w.stride[0] - w.padding[0], n = slice / w.output[0];
    runs.run.clear();
    runs.tap.clear();
    runs.column.clear();
    for (int64_t kd = 0; kd < w.kernel[0]; kd++) {
      for (int64_t kh = 0; kh < w.kernel[1]; kh++) {
        const int64_t d = d0 + kd * w.dilation[0], h = h0 + kh * w.dilation[1];
        if (d < 0 || d >= w.input[0] || h < 0 || h >= w.input[1]) continue;
        for (int64_t kw = 0; kw < w.kernel[2]; kw += together) {
          runs.tap.push_back((kd * w.kernel[1] + kh) * w.kernel[2] + kw);
          runs.column.push_back(kw * w.dilation[2] - w.padding[2]);
          runs.run.push_back(input + (((n * w.input[0] + d) * w.input[1] + h) * w.input[2] + runs.column.back()) * channels);
        }
      }
    }
  }

  // Calls f(row, block, first channel, channels, whether it reaches over an edge, positions) for the blocks of output rows
  // [row_begin, row_end) and of `count` channels from `first` on.
  template <class F>
  void for_each_block(const T* input, int64_t row_begin, int64_t row_end, int64_t first, int64_t count, std::vector<Runs<T>>& runs, const F& f) const {
    const int64_t behind = first + count;
    runs.resize(band);
    for (int64_t row = row_begin, some; row < row_end; row += some) {
      some = std::min(band, row_end - row);
      for (int64_t i = 0; i < some; i++) find(input, row + i, runs[i]);
      for (int64_t next = first; next < behind; next += chunk) {
        const int64_t c = std::max(first, std::min(next, behind - lanes<wide<T>>));
        for (int64_t i = 0; i < some; i++) {
          for (int64_t x = 0; x < w.output[2]; x += outs) {
            const int64_t positions = std::min(outs, w.output[2] - x);
            f(row + i, Block<T>{runs[i], x, w.stride[2], channels, w.input[2]}, c, std::min(chunk, behind - c), x < begin || x + positions > end, positions);
          }
        }
      }
    }
  }
};

// A block's kernel for TAPS taps to a run, STRIDE (0 where it is not known at compile time) and COUNT positions.
template <template <class, int, int, int, bool> class Kernel, class T, bool EDGE, int TAPS, int STRIDE, int COUNT = OUTS<TAPS>>
auto kernel_for(int64_t outs) {
  if constexpr (COUNT > 1) {
    if (outs < COUNT) return kernel_for<Kernel, T, EDGE, TAPS, STRIDE, COUNT - 1>(outs);
  }
  return &Kernel<T, TAPS, STRIDE, COUNT, EDGE>::run;
}

template <template <class, int, int, int, bool> class Kernel, class T, bool EDGE>
auto kernel_for(const Geometry<T>& g, int64_t outs) {
  const bool one = g.w.stride[2] == 1;
  if (g.together == 3) return one ? kernel_for<Kernel, T, EDGE, 3, 1>(outs) : kernel_for<Kernel, T, EDGE, 3, 2>(outs);
  if (g.together == 5) return one ? kernel_for<Kernel, T, EDGE, 5, 1>(outs) : kernel_for<Kernel, T, EDGE, 5, 2>(outs);
  if (g.together == 7) return one ? kernel_for<Kernel, T, EDGE, 7, 1>(outs) : kernel_for<Kernel, T, EDGE, 7, 2>(outs);
  return kernel_for<Kernel, T, EDGE, 1, 0>(outs);
}

// The kernels of a convolution's blocks: all of its rows are cut alike.
template <template <class, int, int, int, bool> class Kernel, class T>
struct KernelsFor {
  using Run = decltype(&Kernel<T, 1, 0, 1, false>::run);
  Run whole[2], rest[2];  // inside, and at an edge
  int64_t outs;

  explicit KernelsFor(const Geometry<T>& g) : outs(g.outs) {
    const int64_t last = g.w.output[2] % outs;
    whole[0] = kernel_for<Kernel, T, false>(g, outs);
    whole[1] = kernel_for<Kernel, T, true>(g, outs);
    rest[0] = kernel_for<Kernel, T, false>(g, last);
    rest[1] = kernel_for<Kernel, T, true>(g, last);
  }
  Run of(int64_t positions, bool edge) const { return (positions == outs ? whole : rest)[edge]; }
};

// output = start + sum over the taps; weight is [tap][width].
template <class T, int TAPS, int STRIDE, int COUNT, bool EDGE>
struct Forward {
  static void run(const Block<T>& block, int64_t first, int64_t count, const wide<T>* weight, int64_t width, const wide<T>* start,
                  const Activation<wide<T>>& activation, T* to, int64_t spacing) {
    constexpr int PIXELS = STRIDE == 0 ? COUNT : (COUNT - 1) * STRIDE + TAPS;
    for (int64_t c = 0; c < count; c += lanes<wide<T>>) {
      c = std::min(c, count - lanes<wide<T>>);
      Values<T> sum[COUNT];
#pragma GCC unroll 8
      for (int o = 0; o < COUNT; o++) sum[o] = load(start + c);
      for (size_t r = 0; r < block.runs.run.size(); r++) {
        const RunOf<T, STRIDE, EDGE> run(block, r, first + c);
        const wide<T>* k = weight + block.runs.tap[r] * width + c;
        Values<T> pixel[PIXELS];
#pragma GCC unroll 21
        for (int i = 0; i < PIXELS; i++) pixel[i] = run[i];
#pragma GCC unroll 7
        for (int tap = 0; tap < TAPS; tap++) {
          const Values<T> factor = load(k + tap * width);
#pragma GCC unroll 8
          for (int o = 0; o < COUNT; o++) sum[o] += pixel[o * (STRIDE == 0 ? 1 : STRIDE) + tap] * factor;
        }
      }
#pragma GCC unroll 8
      for (int o = 0; o < COUNT; o++) store_values(to + o * spacing + c, activation.rectifies ? rectified(sum[o], activation.most) : sum[o]);
    }
  }
};

// The filters and biases of `count` channels from `c` on, the filters as [tap][channel].
template <class T>
void read_filters(const GatherConv<T>& p, int64_t c, int64_t count, wide<T>* weight, wide<T>* start) {
  constexpr int64_t L = lanes<wide<T>>;
  const int64_t taps = volume(p.window.kernel);
  WeightView<T> view = p.weight;
  view.in_step = taps;  // of the only one
  view.out_step = view.group_step;
  const Filters<T> filters(view, p.window.kernel, 0, 1);
  if constexpr (std::is_same_v<T, wide<T>>) {
    filters.read(0, 1, c, count, weight, count);
  } else {
    const Scratch<T> narrow(taps * count);
    filters.read(0, 1, c, count, narrow.get(), count);
    for (int64_t i = 0; i < taps * count; i += L) store_some(weight + i, load_some(narrow.get() + i, taps * count - i), taps * count - i);
  }
  for (int64_t i = 0; i < count; i++) start[i] = p.bias != nullptr ? static_cast<wide<T>>(p.bias[c + i]) : 0;
}

// Where row `row` of the output begins.
template <class T>
T* output_row(const GatherConv<T>& p, int64_t row) {
  const Window& w = p.window;
  const int64_t h = p.origin[1] + row % w.output[1] * p.spacing[1], slice = row / w.output[1];
  const int64_t d = p.origin[0] + slice % w.output[0] * p.spacing[0], n = slice / w.output[0];
  return p.output + (((n * p.output_extent[0] + d) * p.output_extent[1] + h) * p.output_extent[2] + p.origin[2]) * p.groups;
}

// Channels, cut between vectors into parts; the last vector is as long as it is.
template <class T>
struct Parts {
  int64_t channels, count;
  int64_t begin(int64_t part) const { return part == count ? channels : channels / lanes<wide<T>> * part / count * lanes<wide<T>>; }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
};

// Rows that are enough to share them out evenly. Where there are fewer, a thread has channels of its own: their filters are not another's.
constexpr int64_t MANY_ROWS = 16;

template <class T>
void conv(const GatherConv<T>& p) {
  const int64_t C = p.groups, spacing = p.spacing[2] * C, threads = torch::stable::get_num_threads();
  const Geometry<T> geometry(p.window, C);
  const KernelsFor<Forward, T> kernels(geometry);
  const int64_t rows = p.batch * geometry.rows, row_work = C * (geometry.taps + 1) * p.window.output[2];
  const Parts<T> parts{C, rows * row_work < 32768 || rows >= MANY_ROWS * threads ? 1 : std::min<int64_t>(threads, C / lanes<wide<T>>)};
  torch::stable::parallel_for(0, parts.count * rows, std::max<int64_t>(1, 16384 * parts.count / std::max<int64_t>(1, row_work)), [&](int64_t begin, int64_t end) {
    const int64_t most = ceil_div(C, parts.count) + 2 * lanes<wide<T>>;
    const Scratch<wide<T>> weight(std::max<int64_t>(1, geometry.taps * most)), start(most);
    std::vector<Runs<T>> runs;
    for (int64_t i = begin, behind; i < end; i = behind) {
      const int64_t part = i / rows, first = parts.begin(part), count = parts.size(part);
      behind = std::min(end, (part + 1) * rows);
      read_filters(p, first, count, weight.get(), start.get());
      geometry.for_each_block(p.input, i - part * rows, behind - part * rows, first, count, runs,
                              [&](int64_t row, const Block<T>& block, int64_t c, int64_t some, bool edge, int64_t positions) {
                                kernels.of(positions, edge)(block, c, some, weight.get() + c - first, count, start.get() + c - first, p.activation,
                                                            output_row(p, row) + block.x * spacing + c, spacing);
                              });
    }
  });
}

// sums[tap][width] += grad * pixels, over a block's positions.
template <class T, int TAPS, int STRIDE, int COUNT, bool EDGE>
struct Gradient {
  static void run(const Block<T>& block, int64_t first, int64_t count, const T* grad, wide<T>* sums, int64_t width) {
    constexpr int PIXELS = STRIDE == 0 ? COUNT : (COUNT - 1) * STRIDE + TAPS;
    for (int64_t c = 0; c < count; c += lanes<wide<T>>) {
      Values<T> g[COUNT];
#pragma GCC unroll 8
      for (int o = 0; o < COUNT; o++) g[o] = load_values(grad + o * block.pixel + c);
      for (size_t r = 0; r < block.runs.run.size(); r++) {
        const RunOf<T, STRIDE, EDGE> run(block, r, first + c);
        wide<T>* sum = sums + block.runs.tap[r] * width + c;
        Values<T> pixel[PIXELS];
#pragma GCC unroll 21
        for (int i = 0; i < PIXELS; i++) pixel[i] = run[i];
#pragma GCC unroll 7
        for (int tap = 0; tap < TAPS; tap++) {
          Values<T> total = load(sum + tap * width);
#pragma GCC unroll 8
          for (int o = 0; o < COUNT; o++) total += pixel[o * (STRIDE == 0 ? 1 : STRIDE) + tap] * g[o];
          store(sum + tap * width, total);
        }
      }
    }
  }
};

// Channels that a partial sum is of, elements of the gradient that it runs over, at least, and the most partial sums of a channel.
constexpr int64_t SUM_VECTORS = 32, SHORTEST_SUM = 1 << 14, SUMS = 16;

// Sums over the output rows, cut into as many partial sums as the problem (not the machine) asks for, added up in order.
template <class T>
void weight_grad(const WeightGrad<T>& p) {
  constexpr int64_t L = lanes<wide<T>>;
  const Window& w = p.window;
  const int64_t C = p.groups;
  const Geometry<T> geometry(w, C);
  const KernelsFor<Gradient, T> kernels(geometry);
  const Parts<T> parts{C, ceil_div(C / L, SUM_VECTORS)};
  const int64_t taps = geometry.taps, rows = p.batch * geometry.rows;
  const int64_t sums = std::clamp<int64_t>(rows * w.output[2] * C / SHORTEST_SUM / parts.count, 1, std::clamp<int64_t>(rows, 1, ceil_div(SUMS, parts.count)));
  // [sum][tap][channel] of each part. Its channels are whole vectors, and one more, of the last ones, behind them where those aren't.
  const int64_t width = (ceil_div(C / L, parts.count) + 1) * L, size = taps * width;
  const Scratch<wide<T>> partial(parts.count * sums * size);
  torch::stable::parallel_for(0, parts.count * sums, 1, [&](int64_t begin, int64_t end) {
    std::vector<Runs<T>> runs;
    for (int64_t i = begin; i < end; i++) {
      const int64_t part = i / sums, sum = i % sums, first = parts.begin(part), count = parts.size(part), whole = count / L * L;
      wide<T>* const to = partial.get() + i * size;
      zero_run(to, size);
      const auto add = [&](int64_t from, int64_t channels, int64_t column) {
        geometry.for_each_block(p.input, rows * sum / sums, rows * (sum + 1) / sums, from, channels, runs,
                                [&](int64_t row, const Block<T>& block, int64_t c, int64_t some, bool edge, int64_t positions) {
                                  const T* const grad = p.grad_output + (row * w.output[2] + block.x) * C + c;
                                  kernels.of(positions, edge)(block, c, some, grad, to + column + c - from, width);
                                });
      };
      add(first, whole, 0);
      if (whole < count) add(C - L, L, whole);
    }
  });
  const Filters<T> filters(p.view, w.kernel, 0, 1);
  for (int64_t part = 0; part < parts.count; part++) {
    const int64_t first = parts.begin(part), count = parts.size(part), whole = count / L * L;
    wide<T>* const total = partial.get() + part * sums * size;
    for (int64_t sum = 1; sum < sums; sum++)
      for (int64_t i = 0; i < size; i += L) store(total + i, load(total + i) + load(total + sum * size + i));
    for (int64_t tap = 0; tap < taps; tap++) {
      T* const to = p.grad_weight + filters.offset[tap] + first * p.view.group_step;
      const wide<T>* const from = total + tap * width;
      for (int64_t c = 0; c < count; c++) to[c * p.view.group_step] = static_cast<T>(from[c < whole ? c : whole + L - (count - c)]);
    }
  }
}

}  // namespace depthwise
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
