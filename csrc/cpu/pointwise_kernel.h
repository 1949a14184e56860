// Pointwise convolution (one tap) of contiguous activations: a picture's planes are the matrix of columns as they lie, and
//   output[out][position] = bias[out] + sum over in of weight[out][in] * input[in][position]
// needs neither a transposition of the activations nor one of the weights, which are the larger operand where pictures are small.
// Vectors run along the positions. With a stride or padding the planes are gathered on the way.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace pointwise {

constexpr int64_t PANELS = 8;                       // of positions, in a block
constexpr int64_t ROWS = 32 * TILE_ROWS;            // of sums, which stay in the L2 cache
constexpr int64_t WIDTH = (TILE_ROWS + 7) / 8 * 8;  // room for a column of filters

// Elements [0, depth) of `rows` filters: [row][in] at PACKED_STRIDE or, where the filters lie side by side, [in][row] at WIDTH.
template <class T>
void read_filters(const T* from, int64_t out_step, int64_t in_step, int64_t rows, int64_t depth, T* to) {
  if (out_step == 1)
    copy_matrix(depth, rows, from, in_step, 1, to, WIDTH, 1);
  else
    copy_matrix(rows, depth, from, out_step, in_step, to, PACKED_STRIDE<T>, 1);
}

// They come from far, and in short runs.
template <class T>
void prefetch_filters(const T* from, int64_t out_step, int64_t in_step, int64_t rows, int64_t depth) {
  const int64_t lines = out_step == 1 ? depth : rows, line_step = out_step == 1 ? in_step : out_step, length = out_step == 1 ? rows : depth;
  for (int64_t i = 0; i < lines; i++)
    for (int64_t j = 0; j < length; j += LINE<T>) __builtin_prefetch(from + i * line_step + j, 0, 2);
}

// Output positions that lie in one row, or in one picture where its rows follow each other: the first one, and how many.
struct Run {
  int64_t batch;
  Extent at;
  int64_t count;
};

// Calls f(index, run) for positions [first, first + count) of all pictures; a run doesn't go beyond a multiple of `longest`.
template <class F>
void for_each_run(const Window& w, bool whole_pictures, int64_t first, int64_t count, int64_t longest, const F& f) {
  const auto& [D, H, W] = w.output;
  for (int64_t i = 0; i < count;) {
    const int64_t position = first + i, length = whole_pictures ? D * H * W : W;
    const Run run{position / (D * H * W), {position / (H * W) % D, position / W % H, position % W},
                  std::min({count - i, length - position % length, longest - i % longest})};
    f(i, run);
    i += run.count;
  }
}

// Whether positions follow each other at one distance.
inline bool is_flat(const Extent& size, const Extent& step) {
  return (size[1] == 1 || step[1] == size[2] * step[2]) && (size[0] == 1 || step[0] == size[1] * size[2] * step[2]);
}

// `channels` input channels from `channel` on at `count` positions, as panels [in][TILE_COLUMNS]; what lies in the padding is zero.
template <class T>
void read_planes(const Window& w, const Activations<const T>& input, int64_t channel, int64_t channels, int64_t first, int64_t count, T* panels) {
  constexpr int64_t N = TILE_COLUMNS<T>, PANEL = DEPTH * N;
  const bool whole_pictures =
      w.stride == Extent{1, 1, 1} && w.input == w.output && w.padding == Extent{0, 0, 0} && is_flat(w.input, input.step);
  for_each_run(w, whole_pictures, first, count, N, [&](int64_t index, const Run& run) {
    T* to = panels + index / N * PANEL + index % N;
    Extent at;
    for (int i = 0; i < RANK; i++) at[i] = run.at[i] * w.stride[i] - w.padding[i];
    int64_t begin = 0, end = run.count;
    if (!whole_pictures) {
      const bool inside = 0 <= at[0] && at[0] < w.input[0] && 0 <= at[1] && at[1] < w.input[1];
      begin = std::clamp<int64_t>(ceil_div(-at[2], w.stride[2]), 0, run.count);
      end = inside ? std::clamp<int64_t>(ceil_div(w.input[2] - at[2], w.stride[2]), begin, run.count) : begin;
      for (int64_t c = 0; end - begin < run.count && c < channels; c++) {
        zero_run(to + c * N, begin);
        zero_run(to + c * N + end, run.count - end);
      }
    }
    const T* from = input.data + run.batch * input.batch_step + channel * input.channel_step + at[0] * input.step[0] + at[1] * input.step[1] +
                    (at[2] + begin * w.stride[2]) * input.step[2];
    copy_matrix(channels, end - begin, from, input.channel_step, w.stride[2] * input.step[2], to + begin, N, 1);
  });
  const int64_t rest = ceil_div(count, N) * N - count;
  for (int64_t c = 0; rest > 0 && c < channels; c++) zero_run(panels + count / N * PANEL + c * N + count % N, rest);
}

template <class T>
void conv(const GatherConv<T>& p, const Activations<const T>& input, const Activations<T>& output) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Window& w = p.window;
  const auto& v = p.weight;
  const int64_t picture = volume(w.output), O = p.out_channels, tiles = ceil_div(O, TILE_ROWS);
  const int64_t depth = volume(w.kernel) * p.in_channels;  // a phase of a strided convolution's input gradient may have no tap
  if (p.batch * picture * O == 0) return;
  // Where positions lie in the output as they do in a block they are summed there. A block holds several of very small pictures.
  const bool dense = is_dense(p) && is_flat(w.output, output.step);
  const bool in_place = dense && output.step[2] == 1 && (p.batch == 1 || picture >= PANELS * N);
  const int64_t pictures = in_place ? p.batch : 1, positions = p.batch * picture / pictures;
  const int64_t panels = ceil_div(positions, N), chunks = ceil_div(panels, PANELS), room = ceil_div(panels, chunks) * N;
  const int64_t stride = apart<T>(room);
  torch::stable::parallel_for(0, p.groups * pictures * chunks * tiles, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> planes(DEPTH * room), scratch(in_place ? 0 : std::min(O, ROWS) * stride);
    const Scratch<T> filters(std::max<int64_t>(TILE_ROWS * PACKED_STRIDE<T>, DEPTH * WIDTH));
    T start[TILE_ROWS * N];
    while (begin < end) {
      const int64_t group = begin / tiles / chunks / pictures, index = begin / tiles / chunks % pictures, chunk = begin / tiles % chunks;
      const int64_t first = index * positions + chunk * room, count = std::min(room, positions - chunk * room);
      const int64_t out = begin % tiles * TILE_ROWS, outs = std::min({O - out, (end - begin) * TILE_ROWS, ROWS});
      begin += ceil_div(outs, TILE_ROWS);
      T* const sums = in_place ? output.data + index * output.batch_step + (group * O + out) * output.channel_step + chunk * room : scratch.get();
      const int64_t sums_step = in_place ? output.channel_step : stride;
      for (int64_t in = 0; in == 0 || in < depth; in += DEPTH) {
        const int64_t ins = std::min<int64_t>(DEPTH, depth - in);
        read_planes(w, input, group * p.in_channels + in, ins, first, count, planes.get());
        const T* const filter = v.data + v.start + group * v.group_step + out * v.out_step + in * v.in_step;
        for (int64_t o = 0; o < outs; o += TILE_ROWS) {
          const int64_t rows = std::min<int64_t>(TILE_ROWS, outs - o), next = o + TILE_ROWS;
          read_filters(filter + o * v.out_step, v.out_step, v.in_step, rows, ins, filters.get());
          if (next < outs) prefetch_filters(filter + next * v.out_step, v.out_step, v.in_step, std::min<int64_t>(TILE_ROWS, outs - next), ins);
          for (int64_t r = 0; in == 0 && r < rows; r++) std::fill_n(start + r * N, N, p.bias == nullptr ? T(0) : p.bias[group * O + out + o + r]);
          const auto multiply = v.out_step == 1 ? tile_of<T, LayoutA::columns>(rows) : tile_of<T, LayoutA::packed>(rows);
          for (int64_t j = 0; j < count; j += N) {
            T* c[TILE_ROWS];
            for (int64_t r = 0; r < rows; r++) c[r] = sums + (o + r) * sums_step + j;
            multiply(ins, filters.get(), WIDTH, planes.get() + j * DEPTH, N, 0, c, in_place ? std::min(N, count - j) : N, in == 0 ? start : nullptr, N);
          }
        }
      }
      for (int64_t o = 0; o < outs; o++) activate(p.activation, sums + o * sums_step, count);
      if (in_place) continue;
      for_each_run(w, dense, first, count, room, [&](int64_t index, const Run& run) {
        T* to = output.data + run.batch * output.batch_step + (group * O + out) * output.channel_step;
        for (int i = 0; i < RANK; i++) to += (p.origin[i] + run.at[i] * p.spacing[i]) * output.step[i];
        copy_matrix(outs, run.count, sums + index, stride, 1, to, output.channel_step, p.spacing[2] * output.step[2]);
      });
    }
  });
}

}  // namespace pointwise

template <class T>
bool pointwise_conv_serves(const GatherConv<T>& p, bool channels_last) {
  return !channels_last && volume(p.window.kernel) <= 1 && !is_depthwise<T>(p);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
