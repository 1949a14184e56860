// One channel in, one out: there is no sum over channels to block for. Activations are channels-last, vectors run over the channels.
//
// A piece is what a block of output rows needs of one vector of channels, copied with its padding: [depth][row][column][lane].
// In it all taps of all positions exist, and neighbours are neighbours. The last vector of channels ends with the last channel,
// and may begin in the vector before: what both compute is the same.
namespace torchconv {
namespace TORCHCONV_ISA {

// Of a GatherConv or a WeightGrad.
template <class T, class P>
bool is_depthwise(const P& p) {
  return p.in_channels == 1 && p.out_channels == 1 && p.groups >= lanes<T>;
}

// Output rows [y, y + rows) of slice `depth` of a picture, and the channels from `channel` on.
struct DepthwiseBlock {
  int64_t batch, depth, y, rows, channel;
};

// How the work is cut into blocks, and where a piece has what.
template <class T>
struct DepthwiseBlocks {
  static constexpr int64_t PIECE = 65536 / sizeof(T);  // elements, about: it shares the L2 cache with what it is copied from

  const Window& w;
  const int64_t channels, vectors, taps = volume(w.kernel);
  int64_t span, width, height, rows, down;  // input columns of a window, and columns and rows of a piece; output rows of a block
  std::vector<int64_t> offset;              // of each tap in the piece

  DepthwiseBlocks(const Window& window, int64_t groups) : w(window), channels(groups), vectors(ceil_div(groups, lanes<T>)) {
    const auto reach = [&](int i) { return w.kernel[i] == 0 ? 0 : w.dilation[i] * (w.kernel[i] - 1) + 1; };
    span = reach(2);
    width = (w.output[2] - 1) * w.stride[2] + span;
    const int64_t fitting = PIECE / (lanes<T> * std::max<int64_t>(1, w.kernel[0] * width));
    rows = std::clamp<int64_t>((fitting - reach(1)) / w.stride[1] + 1, std::min<int64_t>(4, w.output[1]), w.output[1]);
    down = ceil_div(w.output[1], rows);
    rows = ceil_div(w.output[1], down);
    height = (rows - 1) * w.stride[1] + reach(1);
    for (int64_t kd = 0; kd < w.kernel[0]; kd++)
      for (int64_t kh = 0; kh < w.kernel[1]; kh++)
        for (int64_t kw = 0; kw < w.kernel[2]; kw++)
          offset.push_back(((kd * height + kh * w.dilation[1]) * width + kw * w.dilation[2]) * lanes<T>);
  }

  int64_t count(int64_t batch) const { return batch * w.output[0] * down * vectors; }

  // Neighbours share pixels.
  DepthwiseBlock block(int64_t index) const {
    const int64_t y = index / vectors % down * rows, slice = index / vectors / down;
    return {slice / w.output[0], slice % w.output[0], y, std::min(rows, w.output[1] - y),
            std::min(index % vectors * lanes<T>, channels - lanes<T>)};
  }

  Scratch<T> scratch() const { return Scratch<T>(std::max<int64_t>(1, w.kernel[0] * height * width * lanes<T>)); }

  void copy(const T* input, const DepthwiseBlock& at, T* to) const {
    constexpr int64_t L = lanes<T>;
    const int64_t begin = std::clamp<int64_t>(w.padding[2], 0, width), end = std::clamp(w.input[2] + w.padding[2], begin, width);
    for (int64_t kd = 0; kd < w.kernel[0]; kd++) {
      const int64_t d = at.depth * w.stride[0] - w.padding[0] + kd * w.dilation[0];
      for (int64_t row = 0; row < height; row++, to += width * L) {
        const int64_t h = at.y * w.stride[1] - w.padding[1] + row;
        if (d < 0 || d >= w.input[0] || h < 0 || h >= w.input[1]) {
          zero_run(to, width * L);
          continue;
        }
        const T* from = input + (((at.batch * w.input[0] + d) * w.input[1] + h) * w.input[2] - w.padding[2]) * channels + at.channel;
        zero_run(to, begin * L);
        for (int64_t x = begin; x < end; x++) store(to + x * L, load(from + x * channels));
        zero_run(to + end * L, (width - end) * L);
      }
    }
  }
};

// OUTS neighbouring positions: they share the load of each weight. `weight` is [tap][channel].
template <int OUTS, class T>
void depthwise_outs(const std::vector<int64_t>& offset, const T* piece, int64_t move, const T* weight, int64_t channels, vec<T> start,
                    T* to, int64_t spacing) {
  vec<T> sum[OUTS];
#pragma GCC unroll 8
  for (int o = 0; o < OUTS; o++) sum[o] = start;
  for (const int64_t tap : offset) {
    const vec<T> factor = load(weight);
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; o++) sum[o] += load(piece + tap + o * move) * factor;
    weight += channels;
  }
#pragma GCC unroll 8
  for (int o = 0; o < OUTS; o++) store(to + o * spacing, sum[o]);
}

template <class T>
using DepthwiseOuts = void (*)(const std::vector<int64_t>&, const T*, int64_t, const T*, int64_t, vec<T>, T*, int64_t);

constexpr int DEPTHWISE_OUTS = 8;

// depthwise_outs<outs> for a number known at run time, 1 to DEPTHWISE_OUTS.
template <class T, int OUTS = DEPTHWISE_OUTS>
DepthwiseOuts<T> depthwise_outs_of(int64_t outs) {
  if constexpr (OUTS > 1) {
    if (outs < OUTS) return depthwise_outs_of<T, OUTS - 1>(outs);
  }
  return depthwise_outs<OUTS, T>;
}

template <class T>
void depthwise_conv(const GatherConv<T>& p) {
  const Window& w = p.window;
  const int64_t C = p.groups;
  const DepthwiseBlocks<T> blocks(w, C);
  const Scratch<T> weight(std::max<int64_t>(1, blocks.taps * C));  // [tap][channel]
  for (int64_t tap = 0; tap < blocks.taps; tap++) {
    const int64_t kw = tap % w.kernel[2], kh = tap / w.kernel[2] % w.kernel[1], kd = tap / w.kernel[2] / w.kernel[1];
    const T* from = p.weight.data + p.weight.start + kd * p.weight.step[0] + kh * p.weight.step[1] + kw * p.weight.step[2];
    for (int64_t c = 0; c < C; c++) weight.get()[tap * C + c] = from[c * p.weight.group_step];
  }
  const int64_t move = w.stride[2] * lanes<T>, spacing = p.spacing[2] * C;
  const int64_t work = blocks.rows * w.output[2] * (blocks.taps + 1) * lanes<T>;
  torch::stable::parallel_for(0, blocks.count(p.batch), std::max<int64_t>(1, 16384 / work), [&](int64_t begin, int64_t end) {
    const Scratch<T> piece = blocks.scratch();
    for (int64_t i = begin; i < end; i++) {
      const DepthwiseBlock at = blocks.block(i);
      blocks.copy(p.input, at, piece.get());
      const vec<T> start = p.bias != nullptr ? load(p.bias + at.channel) : vec<T>{};
      const int64_t d = p.origin[0] + at.depth * p.spacing[0];
      for (int64_t y = 0; y < at.rows; y++) {
        const int64_t h = p.origin[1] + (at.y + y) * p.spacing[1];
        T* to = p.output + (((at.batch * p.output_extent[0] + d) * p.output_extent[1] + h) * p.output_extent[2] + p.origin[2]) * C + at.channel;
        const T* from = piece.get() + y * w.stride[1] * blocks.width * lanes<T>;
        const int64_t steps = ceil_div(w.output[2], DEPTHWISE_OUTS);
        for (int64_t step = 0; step < steps; step++) {
          const int64_t x = w.output[2] * step / steps, outs = w.output[2] * (step + 1) / steps - x;
          depthwise_outs_of<T>(outs)(blocks.offset, from + x * move, move, weight.get() + at.channel, C, start, to + x * spacing, spacing);
        }
      }
    }
  });
}

// sums[tap] += what TAPS taps gather from `count` positions of a row. Several positions at a time are enough chains of sums to
// hide the latency of FMA.
template <int TAPS, class T>
void depthwise_dots(const int64_t* offset, const T* piece, int64_t move, const T* grad, int64_t channels, int64_t count, T* sums) {
  constexpr int CHAINS = TAPS > 4 ? 1 : 2;
  vec<T> sum[TAPS][CHAINS] = {};
  int64_t x = 0;
  for (; x + CHAINS <= count; x += CHAINS) {
#pragma GCC unroll 2
    for (int i = 0; i < CHAINS; i++) {
      const vec<T> g = load(grad + (x + i) * channels);
#pragma GCC unroll 9
      for (int tap = 0; tap < TAPS; tap++) sum[tap][i] += g * load(piece + (x + i) * move + offset[tap]);
    }
  }
  for (; x < count; x++) {
    const vec<T> g = load(grad + x * channels);
#pragma GCC unroll 9
    for (int tap = 0; tap < TAPS; tap++) sum[tap][0] += g * load(piece + x * move + offset[tap]);
  }
#pragma GCC unroll 9
  for (int tap = 0; tap < TAPS; tap++) {
    vec<T> total = load(sums + tap * lanes<T>);
#pragma GCC unroll 2
    for (int i = 0; i < CHAINS; i++) total += sum[tap][i];
    store(sums + tap * lanes<T>, total);
  }
}

template <class T>
using DepthwiseDots = void (*)(const int64_t*, const T*, int64_t, const T*, int64_t, int64_t, T*);

constexpr int DEPTHWISE_TAPS = 9;

// depthwise_dots<taps> for a number known at run time, 1 to DEPTHWISE_TAPS.
template <class T, int TAPS = DEPTHWISE_TAPS>
DepthwiseDots<T> depthwise_dots_of(int64_t taps) {
  if constexpr (TAPS > 1) {
    if (taps < TAPS) return depthwise_dots_of<T, TAPS - 1>(taps);
  }
  return depthwise_dots<TAPS, T>;
}

// The most partial sums that the blocks of a vector of channels are cut into.
constexpr int64_t DEPTHWISE_SUMS = 16;

// Each vector of channels sums over its blocks: cut into as many partial sums as the problem (not the machine) asks for, added up
// in order.
template <class T>
void depthwise_weight_grad(const WeightGrad<T>& p) {
  constexpr int64_t L = lanes<T>;
  const Window& w = p.window;
  const int64_t C = p.groups;
  const DepthwiseBlocks<T> blocks(w, C);
  const int64_t vectors = blocks.vectors, taps = blocks.taps, each = w.output[1] == 0 ? 0 : blocks.count(p.batch) / vectors;
  const int64_t sums = std::clamp<int64_t>(2 * DEPTHWISE_SUMS / vectors, 1, std::clamp<int64_t>(each, 1, DEPTHWISE_SUMS));
  const Scratch<T> partial(sums * vectors * taps * L);  // [sum][vector][tap][lane]
  zero_run(partial.get(), sums * vectors * taps * L);
  torch::stable::parallel_for(0, sums * vectors, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> piece = blocks.scratch();
    for (int64_t i = begin; i < end; i++) {
      const int64_t vector = i % vectors, sum = i / vectors;
      for (int64_t b = each * sum / sums; b < each * (sum + 1) / sums; b++) {
        const DepthwiseBlock at = blocks.block(b * vectors + vector);
        blocks.copy(p.input, at, piece.get());
        const int64_t slice = at.batch * w.output[0] + at.depth;
        for (int64_t tap = 0; tap < taps; tap += DEPTHWISE_TAPS) {
          const auto dots = depthwise_dots_of<T>(std::min<int64_t>(DEPTHWISE_TAPS, taps - tap));
          for (int64_t y = 0; y < at.rows; y++)
            dots(blocks.offset.data() + tap, piece.get() + y * w.stride[1] * blocks.width * L, w.stride[2] * L,
                 p.grad_output + (slice * w.output[1] + at.y + y) * w.output[2] * C + at.channel, C, w.output[2],
                 partial.get() + (i * taps + tap) * L);
        }
      }
    }
  });
  for (int64_t vector = 0; vector < vectors; vector++) {
    const int64_t c = std::min(vector * L, C - L);
    for (int64_t tap = 0; tap < taps; tap++) {
      const int64_t kw = tap % w.kernel[2], kh = tap / w.kernel[2] % w.kernel[1], kd = tap / w.kernel[2] / w.kernel[1];
      T* to = p.grad_weight + p.view.start + kd * p.view.step[0] + kh * p.view.step[1] + kw * p.view.step[2] + c * p.view.group_step;
      vec<T> total{};
      for (int64_t sum = 0; sum < sums; sum++) total += load(partial.get() + ((sum * vectors + vector) * taps + tap) * L);
      for (int64_t i = 0; i < L; i++) to[i * p.view.group_step] = total[i];
    }
  }
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
