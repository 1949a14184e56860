// One channel in, one out: there is no sum over channels to block for. Activations are channels-last, vectors run over the channels.
//
// A block is up to OUTS<TAPS> neighbouring positions of an output row, and a chunk of channels. A row of taps meets a run of pixels
// there, each of which is loaded once for all the taps and positions that share it. Where pixels don't exist the runs are copied,
// with zeros in their place. The last vector of channels ends with the last channel, and may begin in the vector before: what
// both compute is the same.
namespace torchconv {
namespace TORCHCONV_ISA {

// Of a GatherConv or a WeightGrad.
template <class T, class P>
bool is_depthwise(const P& p) {
  return p.in_channels == 1 && p.out_channels == 1 && p.groups >= lanes<T>;
}

namespace depthwise {

// As many sums at a time as hide the latency of multiplying and adding. Long runs are worth more, where there are registers for them:
// short ones would make more blocks that reach over the edge.
template <int TAPS>
constexpr int OUTS = VECTOR_BYTES == 64 && TAPS > 3 ? 8 : 4;

// The runs of an output row or of one block: run r begins at run[r], its taps are tap[r] and those behind.
template <class T>
struct Runs {
  std::vector<const T*> run;
  std::vector<int64_t> tap;
  int64_t pixel, stride;  // between pixels; between positions, where that is not known at compile time
};

template <class T>
struct Geometry {
  static constexpr int64_t CHUNK = 8 * lanes<T>;  // channels of a block: a few cache lines of each pixel

  const Window& w;
  const int64_t channels, taps = volume(w.kernel), rows = w.output[0] * w.output[1];
  // Taps that share a run: those of a row of the kernel where there is code for its width, else each has its own.
  int64_t together, outs;  // and positions of a block
  int64_t begin, end;  // positions all of whose taps lie inside the picture's width

  Geometry(const Window& window, int64_t groups) : w(window), channels(groups) {
    const bool shared = w.dilation[2] == 1 && w.stride[2] <= 2 && (w.kernel[2] == 3 || w.kernel[2] == 5 || w.kernel[2] == 7);
    together = shared ? w.kernel[2] : 1;
    outs = together == 5 ? OUTS<5> : together == 7 ? OUTS<7> : OUTS<3>;
    const int64_t last = w.input[2] + w.padding[2] - w.dilation[2] * (w.kernel[2] - 1);  // behind the last first tap
    begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(w.padding[2], 0), w.stride[2]), 0, w.output[2]);
    end = last <= 0 ? begin : std::clamp(ceil_div(last, w.stride[2]), begin, w.output[2]);
  }

  int64_t pixels(int64_t positions) const { return (positions - 1) * w.stride[2] + together; }

  // The runs of an output row, from its first position on. Rows of taps outside the picture are left out.
  void find(const T* input, int64_t row, Runs<T>& runs) const {
    const int64_t h0 = row % w.output[1] * w.stride[1] - w.padding[1], slice = row / w.output[1];
    const int64_t d0 = slice % w.output[0] * w.stride[0] - w.padding[0], n = slice / w.output[0];
    runs.run.clear();
    runs.tap.clear();
    runs.pixel = channels;
    runs.stride = w.stride[2];
    for (int64_t kd = 0; kd < w.kernel[0]; kd++) {
      for (int64_t kh = 0; kh < w.kernel[1]; kh++) {
        const int64_t d = d0 + kd * w.dilation[0], h = h0 + kh * w.dilation[1];
        if (d < 0 || d >= w.input[0] || h < 0 || h >= w.input[1]) continue;
        for (int64_t kw = 0; kw < w.kernel[2]; kw += together) {
          runs.tap.push_back((kd * w.kernel[1] + kh) * w.kernel[2] + kw);
          runs.run.push_back(input + (((n * w.input[0] + d) * w.input[1] + h) * w.input[2] - w.padding[2] + kw * w.dilation[2]) * channels);
        }
      }
    }
  }

  // Room for the copies of a block.
  Scratch<T> scratch() const { return Scratch<T>(std::max<int64_t>(1, taps / together * pixels(outs) * CHUNK)); }

  // A row's runs from position `x` on, for `count` channels from `c` on, with zeros where pixels don't exist.
  void copy(const Runs<T>& row, int64_t x, int64_t positions, int64_t c, int64_t count, T* copies, Runs<T>& runs) const {
    runs.run.clear();
    runs.tap = row.tap;
    runs.pixel = count;
    runs.stride = w.stride[2];
    for (size_t r = 0; r < row.run.size(); r++) {
      runs.run.push_back(copies);
      const int64_t first = x * w.stride[2], column = first - w.padding[2] + row.tap[r] % w.kernel[2] * w.dilation[2];
      for (int64_t i = 0; i < pixels(positions); i++, copies += count) {
        if (column + i < 0 || column + i >= w.input[2])
          zero_run(copies, count);
        else
          copy_run(row.run[r] + (first + i) * channels + c, copies, count);
      }
    }
  }

  // Calls f(runs, offset in them, first position, positions) for all blocks of `count` channels from `c` on.
  template <class F>
  void for_each_block(const Runs<T>& row, int64_t c, int64_t count, T* copies, Runs<T>& edge, const F& f) const {
    for (int64_t x = 0; x < w.output[2]; x += outs) {
      const int64_t positions = std::min(outs, w.output[2] - x);
      if (begin <= x && x + positions <= end) {
        f(row, x * w.stride[2] * channels + c, x, positions);
      } else {
        copy(row, x, positions, c, count, copies, edge);
        f(edge, 0, x, positions);
      }
    }
  }
};

// Narrow pictures are mostly edge: better their rows are copied with their padding once than edge blocks at every row of taps.
template <class T>
bool is_mostly_edge(const Window& w, const Geometry<T>& g) {
  return w.padding[2] >= 0 && 4 * (w.output[2] - (g.end - g.begin)) > w.output[2];
}

// Elements of a picture that are kept in cache beside all else.
constexpr int64_t LARGEST_PICTURE = 1 << 16;

// The window over rows as wide as it reaches, with their padding in them.
inline Window padded_rows(const Window& w) {
  const int64_t reach = (w.output[2] - 1) * w.stride[2] + (w.kernel[2] - 1) * w.dilation[2] + 1;
  Window padded = w;
  padded.input[2] = std::max(reach, w.padding[2] + w.input[2]);
  padded.padding[2] = 0;
  return padded;
}

// Such a row of `count` channels, from one whose pixels have more.
template <class T>
void pad_row(const Window& w, int64_t width, const T* from, int64_t channels, int64_t count, T* to) {
  zero_run(to, w.padding[2] * count);
  for (int64_t x = 0; x < w.input[2]; x++) copy_run(from + x * channels, to + (w.padding[2] + x) * count, count);
  zero_run(to + (w.padding[2] + w.input[2]) * count, (width - w.padding[2] - w.input[2]) * count);
}

// The input of `p` in such rows, and p for it.
template <class T, class P>
P with_padded_rows(const P& p, Scratch<T>& copy) {
  P padded = p;
  padded.window = padded_rows(p.window);
  const int64_t C = p.groups, width = padded.window.input[2], rows = p.batch * p.window.input[0] * p.window.input[1];
  copy = Scratch<T>(rows * width * C);
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / (width * C)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      pad_row(p.window, width, p.input + row * p.window.input[2] * C, C, C, copy.get() + row * width * C);
  });
  padded.input = copy.get();
  return padded;
}

// A block's kernel for TAPS taps to a run, STRIDE (0 where it is not known at compile time) and COUNT positions.
template <template <class, int, int, int> class Kernel, class T, int TAPS, int STRIDE, int COUNT = OUTS<TAPS>>
auto kernel_for(int64_t outs) {
  if constexpr (COUNT > 1) {
    if (outs < COUNT) return kernel_for<Kernel, T, TAPS, STRIDE, COUNT - 1>(outs);
  }
  return &Kernel<T, TAPS, STRIDE, COUNT>::run;
}

template <template <class, int, int, int> class Kernel, class T>
auto kernel_for(const Geometry<T>& g, int64_t outs) {
  const bool one = g.w.stride[2] == 1;
  if (g.together == 3) return one ? kernel_for<Kernel, T, 3, 1>(outs) : kernel_for<Kernel, T, 3, 2>(outs);
  if (g.together == 5) return one ? kernel_for<Kernel, T, 5, 1>(outs) : kernel_for<Kernel, T, 5, 2>(outs);
  if (g.together == 7) return one ? kernel_for<Kernel, T, 7, 1>(outs) : kernel_for<Kernel, T, 7, 2>(outs);
  return kernel_for<Kernel, T, 1, 0>(outs);
}

// output = start + sum over the taps; weight is [tap][channels].
template <class T, int TAPS, int STRIDE, int COUNT>
struct Forward {
  static void run(const Runs<T>& runs, int64_t offset, int64_t count, const T* weight, int64_t channels, const T* start, T* to, int64_t spacing) {
    constexpr int PIXELS = STRIDE == 0 ? COUNT : (COUNT - 1) * STRIDE + TAPS;
    const int64_t next = (STRIDE == 0 ? runs.stride : 1) * runs.pixel;
    for (int64_t c = 0; c < count; c += lanes<T>) {
      c = std::min(c, count - lanes<T>);
      vec<T> sum[COUNT];
#pragma GCC unroll 8
      for (int o = 0; o < COUNT; o++) sum[o] = load(start + c);
      for (size_t r = 0; r < runs.run.size(); r++) {
        const T *in = runs.run[r] + offset + c, *k = weight + runs.tap[r] * channels + c;
        vec<T> pixel[PIXELS];
#pragma GCC unroll 21
        for (int i = 0; i < PIXELS; i++) pixel[i] = load(in + i * next);
#pragma GCC unroll 7
        for (int tap = 0; tap < TAPS; tap++) {
          const vec<T> factor = load(k + tap * channels);
#pragma GCC unroll 8
          for (int o = 0; o < COUNT; o++) sum[o] += pixel[o * (STRIDE == 0 ? 1 : STRIDE) + tap] * factor;
        }
      }
#pragma GCC unroll 8
      for (int o = 0; o < COUNT; o++) store(to + o * spacing + c, sum[o]);
    }
  }
};

// The filters and biases of `count` channels from `c` on, the filters as [tap][channel].
template <class T>
void read_filters(const GatherConv<T>& p, int64_t c, int64_t count, T* weight, T* start) {
  WeightView<T> view = p.weight;
  view.in_step = volume(p.window.kernel);  // of the only one
  view.out_step = view.group_step;
  Filters<T>(view, p.window.kernel, 0, 1).read(0, 1, c, count, weight, count);
  for (int64_t i = 0; i < count; i++) start[i] = p.bias != nullptr ? p.bias[c + i] : T(0);
}

// Where row `row` of the output begins.
template <class T>
T* output_row(const GatherConv<T>& p, int64_t row) {
  const Window& w = p.window;
  const int64_t h = p.origin[1] + row % w.output[1] * p.spacing[1], slice = row / w.output[1];
  const int64_t d = p.origin[0] + slice % w.output[0] * p.spacing[0], n = slice / w.output[0];
  return p.output + (((n * p.output_extent[0] + d) * p.output_extent[1] + h) * p.output_extent[2] + p.origin[2]) * p.groups;
}

template <class T>
void conv_by_rows(const GatherConv<T>& p) {
  const Window& w = p.window;
  const int64_t C = p.groups;
  const Geometry<T> geometry(w, C);
  const Scratch<T> weight(std::max<int64_t>(1, geometry.taps * C)), start(C);
  read_filters(p, 0, C, weight.get(), start.get());
  const int64_t spacing = p.spacing[2] * C, grain = std::max<int64_t>(1, 16384 / (C * (geometry.taps + 1) * w.output[2]));
  const auto whole = kernel_for<Forward>(geometry, geometry.outs), rest = kernel_for<Forward>(geometry, w.output[2] % geometry.outs);
  torch::stable::parallel_for(0, p.batch * geometry.rows, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> copies = geometry.scratch();
    Runs<T> runs, edge;
    for (int64_t row = begin; row < end; row++) {
      T* const line = output_row(p, row);
      geometry.find(p.input, row, runs);
      for (int64_t next = 0; next < C; next += geometry.CHUNK) {
        const int64_t c = std::min(next, C - lanes<T>), count = std::min(geometry.CHUNK, C - c);
        geometry.for_each_block(runs, c, count, copies.get(), edge, [&](const Runs<T>& from, int64_t offset, int64_t x, int64_t outs) {
          (outs == geometry.outs ? whole : rest)(from, offset, count, weight.get() + c, C, start.get() + c, line + x * spacing + c, spacing);
        });
      }
    }
  });
}

// A thread has channels of its own. It works in its own cache: their filters, and their pictures with the padding, are not another's.
template <class T>
void conv_by_channels(const GatherConv<T>& p) {
  constexpr int64_t L = lanes<T>, CHUNK = Geometry<T>::CHUNK;
  const Window &w = p.window, padded = padded_rows(w);
  const int64_t C = p.groups, spacing = p.spacing[2] * C, rows = w.input[0] * w.input[1], width = padded.input[2];
  const int64_t work = p.batch * volume(w.output) * (volume(w.kernel) + 1) * L;  // in a vector of channels
  torch::stable::parallel_for(0, C / L, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work)), [&](int64_t begin, int64_t end) {
    const int64_t behind = end == C / L ? C : end * L;
    const Scratch<T> weight(volume(w.kernel) * CHUNK), start(CHUNK), picture(rows * width * CHUNK);
    Runs<T> runs, none;
    for (int64_t next = begin * L; next < behind; next += CHUNK) {
      const int64_t c = std::min(next, behind - L), count = std::min(CHUNK, behind - c);
      const Geometry<T> geometry(padded, count);
      const auto whole = kernel_for<Forward>(geometry, geometry.outs), rest = kernel_for<Forward>(geometry, w.output[2] % geometry.outs);
      read_filters(p, c, count, weight.get(), start.get());
      for (int64_t n = 0; n < p.batch; n++) {
        for (int64_t row = 0; row < rows; row++)
          pad_row(w, width, p.input + (n * rows + row) * w.input[2] * C + c, C, count, picture.get() + row * width * count);
        for (int64_t row = 0; row < geometry.rows; row++) {
          T* const line = output_row(p, n * geometry.rows + row) + c;
          geometry.find(picture.get(), row, runs);
          geometry.for_each_block(runs, 0, count, nullptr, none, [&](const Runs<T>& from, int64_t offset, int64_t x, int64_t outs) {
            (outs == geometry.outs ? whole : rest)(from, offset, count, weight.get(), count, start.get(), line + x * spacing, spacing);
          });
        }
      }
    }
  });
}

template <class T>
void conv(const GatherConv<T>& p) {
  const Geometry<T> geometry(p.window, p.groups);
  if (!is_mostly_edge(p.window, geometry)) return conv_by_rows(p);
  if (volume(padded_rows(p.window).input) * geometry.CHUNK <= LARGEST_PICTURE) return conv_by_channels(p);
  Scratch<T> copy(0);
  conv_by_rows(with_padded_rows(p, copy));
}

// sums[tap][width] += grad * pixels, over a block's positions.
template <class T, int TAPS, int STRIDE, int COUNT>
struct Gradient {
  static void run(const Runs<T>& runs, int64_t offset, int64_t count, const T* grad, int64_t channels, T* sums, int64_t width) {
    constexpr int PIXELS = STRIDE == 0 ? COUNT : (COUNT - 1) * STRIDE + TAPS;
    const int64_t next = (STRIDE == 0 ? runs.stride : 1) * runs.pixel;
    for (int64_t c = 0; c < count; c += lanes<T>) {
      vec<T> g[COUNT];
#pragma GCC unroll 8
      for (int o = 0; o < COUNT; o++) g[o] = load(grad + o * channels + c);
      for (size_t r = 0; r < runs.run.size(); r++) {
        const T* in = runs.run[r] + offset + c;
        T* sum = sums + runs.tap[r] * width + c;
        vec<T> pixel[PIXELS];
#pragma GCC unroll 21
        for (int i = 0; i < PIXELS; i++) pixel[i] = load(in + i * next);
#pragma GCC unroll 7
        for (int tap = 0; tap < TAPS; tap++) {
          vec<T> total = load(sum + tap * width);
#pragma GCC unroll 8
          for (int o = 0; o < COUNT; o++) total += pixel[o * (STRIDE == 0 ? 1 : STRIDE) + tap] * g[o];
          store(sum + tap * width, total);
        }
      }
    }
  }
};

// Elements of the gradient that one partial sum runs over, at least; and the most partial sums.
constexpr int64_t SHORTEST_SUM = 1 << 14, SUMS = 16;

// Sums over the output rows, cut into as many partial sums as the problem (not the machine) asks for, added up in order.
template <class T>
void weight_grad(const WeightGrad<T>& p) {
  constexpr int64_t L = lanes<T>;
  const Window& w = p.window;
  const int64_t C = p.groups, whole = C / L * L;
  const Geometry<T> geometry(w, C);
  if (is_mostly_edge(w, geometry)) {
    Scratch<T> copy(0);
    return weight_grad(with_padded_rows(p, copy));
  }
  const int64_t taps = geometry.taps, rows = p.batch * geometry.rows, most = std::clamp<int64_t>(rows, 1, SUMS);
  const int64_t sums = std::clamp<int64_t>(rows * w.output[2] * C / SHORTEST_SUM, 1, most);
  // [sum][tap][channel], and behind the whole vectors the one that ends with the last channel.
  const int64_t width = whole == C ? C : whole + L, last = C - L;
  const Scratch<T> partial(sums * taps * width);
  zero_run(partial.get(), sums * taps * width);
  const auto kernel = kernel_for<Gradient>(geometry, geometry.outs), rest = kernel_for<Gradient>(geometry, w.output[2] % geometry.outs);
  torch::stable::parallel_for(0, sums, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> copies = geometry.scratch();
    Runs<T> runs, edge;
    for (int64_t sum = begin; sum < end; sum++) {
      T* const to = partial.get() + sum * taps * width;
      for (int64_t row = rows * sum / sums; row < rows * (sum + 1) / sums; row++) {
        const T* grad = p.grad_output + row * w.output[2] * C;
        geometry.find(p.input, row, runs);
        const auto add = [&](int64_t c, int64_t count, int64_t column) {
          geometry.for_each_block(runs, c, count, copies.get(), edge, [&](const Runs<T>& from, int64_t offset, int64_t x, int64_t outs) {
            (outs == geometry.outs ? kernel : rest)(from, offset, count, grad + x * C + c, C, to + column, width);
          });
        };
        for (int64_t c = 0; c < whole; c += geometry.CHUNK) add(c, std::min(geometry.CHUNK, whole - c), c);
        if (whole < C) add(last, L, whole);
      }
    }
  });
  const Filters<T> filters(p.view, w.kernel, 0, 1);
  for (int64_t tap = 0; tap < taps; tap++) {
    T* to = p.grad_weight + filters.offset[tap];
    for (int64_t c = 0; c < C; c++) {
      T total = 0;
      for (int64_t sum = 0; sum < sums; sum++) total += partial.get()[(sum * taps + tap) * width + (c < whole ? c : whole + c - last)];
      to[c * p.view.group_step] = total;
    }
  }
}

}  // namespace depthwise
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
