// Convolution of few channels by shifted planes (planes.h): vectors run along the positions instead of over the channels.
namespace torchconv {
namespace TORCHCONV_ISA {

// Output channels that share the loads of a run, and accumulators (of 32 registers, or 16).
constexpr int PLANE_OUTS = VECTOR_BYTES == 64 ? 8 : 4, PLANE_SUMS = 3 * PLANE_OUTS;

// Vectors of positions, or taps, that go with so many output channels in one tile.
constexpr int plane_width(int outs) { return std::min(8, PLANE_SUMS / outs); }

// sums[out][position] = start[out] + sum over k of weight[k][out] * pieces[offset[k] + position], for V vectors of positions.
template <class T, int OUTS, int V>
inline __attribute__((always_inline)) void plane_tile(int64_t depth, const T* pieces, const int64_t* offset, const T* weight,
                                                      const T* start, T* sums, int64_t room) {
  constexpr int L = lanes<T>;
  vec<T> sum[OUTS][V];
#pragma GCC unroll 8
  for (int o = 0; o < OUTS; o++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) sum[o][j] = vec<T>{} + start[o];
  for (int64_t k = 0; k < depth; k++) {
    const T* run = pieces + offset[k];
    vec<T> x[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) x[j] = load(run + j * L);
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; o++)
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) sum[o][j] += weight[k * OUTS + o] * x[j];
  }
#pragma GCC unroll 8
  for (int o = 0; o < OUTS; o++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) store(sums + o * room + j * L, sum[o][j]);
}

template <class T, int OUTS>
void plane_tiles(int64_t positions, int64_t depth, const T* pieces, const int64_t* offset, const T* weight, const T* start, T* sums,
                 int64_t room) {
  constexpr int64_t L = lanes<T>, V = plane_width(OUTS);
  int64_t i = 0;
  for (; i + (V - 1) * L < positions; i += V * L) plane_tile<T, OUTS, V>(depth, pieces + i, offset, weight, start, sums + i, room);
  for (; i < positions; i += L) plane_tile<T, OUTS, 1>(depth, pieces + i, offset, weight, start, sums + i, room);
}

// to[out * depth + k] += sum over positions of grad[out][position] * pieces[offset[k] + position], for TAPS values of k.
// `exists` is all ones, or zeros where an infinite input must not meet a position that doesn't exist.
template <class T, int OUTS, int TAPS>
inline __attribute__((always_inline)) void plane_dot(int64_t positions, const T* grad, int64_t room, const T* pieces,
                                                     const int64_t* offset, const T* exists, T* to, int64_t depth) {
  using Bits = decltype(vec<T>{} == vec<T>{});
  constexpr int L = lanes<T>, VECTORS = (OUTS * TAPS + L - 1) / L;
  vec<T> sum[VECTORS * L] = {};  // [out][tap]
  for (int64_t i = 0; i < positions; i += L) {
    const Bits mask = (Bits)load(exists + i);
    vec<T> x[TAPS];
#pragma GCC unroll 8
    for (int k = 0; k < TAPS; k++) x[k] = (vec<T>)((Bits)load(pieces + offset[k] + i) & mask);
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; o++) {
      const vec<T> g = load(grad + o * room + i);
#pragma GCC unroll 8
      for (int k = 0; k < TAPS; k++) sum[o * TAPS + k] += g * x[k];
    }
  }
  T total[VECTORS * L];
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; i++) store(total + i * L, sums_of_rows<T>(sum + i * L, std::make_integer_sequence<int, L>{}));
  for (int o = 0; o < OUTS; o++)
    for (int k = 0; k < TAPS; k++) to[o * depth + k] += total[o * TAPS + k];
}

template <class T, int OUTS>
void plane_dots(int64_t positions, const T* grad, int64_t room, const T* pieces, const int64_t* offset, const T* exists, T* to,
                int64_t depth) {
  constexpr int64_t TAPS = plane_width(OUTS);
  int64_t k = 0;
  for (; k + TAPS <= depth; k += TAPS) plane_dot<T, OUTS, TAPS>(positions, grad, room, pieces, offset + k, exists, to + k, depth);
  for (; k < depth; k++) plane_dot<T, OUTS, 1>(positions, grad, room, pieces, offset + k, exists, to + k, depth);
}

// f<T, outs> for a number of channels known at run time, 1 to PLANE_OUTS.
template <class T, int OUTS = PLANE_OUTS, class F>
void with_outs(int64_t outs, const F& f) {
  if constexpr (OUTS > 1) {
    if (outs < OUTS) return with_outs<T, OUTS - 1>(outs, f);
  }
  f(std::integral_constant<int, OUTS>{});
}

// Calls f(first, count) for the output channels, cut evenly into as few tiles as they need.
template <class T, class F>
void for_each_outs(int64_t channels, const F& f) {
  const int64_t tiles = ceil_div(channels, PLANE_OUTS);
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t first = channels * i / tiles, count = channels * (i + 1) / tiles - first;
    with_outs<T>(count, [&](auto outs) { f(first, outs); });
  }
}

template <class T>
void plane_conv(const GatherConv<T>& p, const Activations<const T>& input, const Activations<T>& output) {
  const Window& w = p.window;
  const int64_t lines = p.batch * p.groups * w.output[0] * w.output[1], O = p.out_channels;
  if (lines * w.output[2] * O == 0) return;
  const Planes<T> planes(w, p.in_channels, O, PIECES, ceil_div(lines, 2 * torch::stable::get_num_threads()));
  const int64_t depth = planes.taps * p.in_channels, step = p.spacing[2] * output.step[2];
  const auto& v = p.weight;
  Scratch<T> weight(p.groups * O * depth);  // [group][tile of outputs][channel, tap][output]
  torch::stable::parallel_for(0, p.groups, std::max<int64_t>(1, 16384 / (O * depth + 1)), [&](int64_t begin, int64_t end) {
    T* to = weight.get() + begin * O * depth;
    for (int64_t group = begin; group < end; group++)
      for_each_outs<T>(O, [&](int64_t first, auto outs) {
        for (int64_t c = 0; c < p.in_channels; c++)
          for (int64_t kd = 0; kd < w.kernel[0]; kd++)
            for (int64_t kh = 0; kh < w.kernel[1]; kh++)
              for (int64_t kw = 0; kw < w.kernel[2]; kw++)
                for (int64_t o = first; o < first + outs; o++)
                  *to++ = v.data[v.start + group * v.group_step + c * v.in_step + o * v.out_step + kd * v.step[0] + kh * v.step[1] +
                                 kw * v.step[2]];
      });
  });
  torch::stable::parallel_for(0, p.groups * planes.blocks(p.batch), grain_of(O * depth * planes.room), [&](int64_t begin, int64_t end) {
    const Scratch<T> pieces = planes.scratch(), sums(O * planes.room), start(O);
    for (int64_t i = begin; i < end; i++) {
      const int64_t group = i % p.groups;  // of channels-last activations the groups share the cache lines
      const PlaneBlock at = planes.block(i / p.groups);
      planes.copy(input, at, group * p.in_channels, pieces.get());
      for (int64_t o = 0; o < O; o++) start.get()[o] = p.bias == nullptr ? T(0) : p.bias[group * O + o];
      for_each_outs<T>(O, [&](int64_t first, auto outs) {
        plane_tiles<T, outs>((at.rows - 1) * planes.pitch + at.columns, depth, pieces.get(), planes.offset.get(),
                             weight.get() + (group * O + first) * depth, start.get() + first, sums.get() + first * planes.room, planes.room);
      });
      activate(p.activation, sums.get(), O * planes.room);
      T* to = output.data + at.batch * output.batch_step + group * O * output.channel_step +
              (p.origin[0] + at.slice * p.spacing[0]) * output.step[0];
      for (int64_t y = 0; y < at.rows; y++)
        copy_matrix(O, at.columns, sums.get() + y * planes.pitch, planes.room, 1,
                    to + (p.origin[1] + (at.y + y) * p.spacing[1]) * output.step[1] + p.origin[2] * output.step[2] + at.x * step,
                    output.channel_step, step);
    }
  });
}

template <class T>
void plane_weight_grad(const WeightGrad<T>& p, const Activations<const T>& input, const Activations<const T>& grad_output) {
  const Window& w = p.window;
  const int64_t O = p.out_channels, total = p.batch * volume(w.output);
  const Planes<T> planes(w, p.in_channels, O, 1024, w.output[1]);
  const int64_t depth = planes.taps * p.in_channels, blocks = planes.blocks(p.batch), size = p.groups * O * depth;
  if (size == 0) return;
  const int64_t sums = std::clamp<int64_t>(ceil_div(SUMS, p.groups), 1, std::max<int64_t>(1, std::min(blocks, total / SHORTEST_SUM)));
  Scratch<T> partial(sums * size);
  torch::stable::parallel_for(0, sums * p.groups, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> pieces = planes.scratch(), grad(O * planes.room), exists(planes.room);
    for (int64_t i = begin; i < end; i++) {
      const int64_t group = i % p.groups, sum = i / p.groups;
      T* out = partial.get() + i / p.groups * size + group * O * depth;
      zero_run(out, O * depth);
      for (int64_t b = blocks * sum / sums; b < blocks * (sum + 1) / sums; b++) {
        const PlaneBlock at = planes.block(b);
        planes.copy(input, at, group * p.in_channels, pieces.get());
        zero_run(grad.get(), O * planes.room);
        zero_run(exists.get(), planes.room);
        const T* from = grad_output.data + at.batch * grad_output.batch_step + group * O * grad_output.channel_step +
                        at.slice * grad_output.step[0] + at.y * grad_output.step[1] + at.x * grad_output.step[2];
        for (int64_t y = 0; y < at.rows; y++) {
          std::memset(static_cast<void*>(exists.get() + y * planes.pitch), 0xff, at.columns * sizeof(T));
          copy_matrix(O, at.columns, from + y * grad_output.step[1], grad_output.channel_step, grad_output.step[2],
                      grad.get() + y * planes.pitch, planes.room, 1);
        }
        for_each_outs<T>(O, [&](int64_t first, auto outs) {
          plane_dots<T, outs>((at.rows - 1) * planes.pitch + at.columns, grad.get() + first * planes.room, planes.room, pieces.get(),
                              planes.offset.get(), exists.get(), out + first * depth, depth);
        });
      }
    }
  });
  add_up(p, sums, partial.get(), 1, planes.taps);
}

// Depthwise, planes of more positions are blocks long enough.
constexpr int64_t DEPTHWISE_POSITIONS = 32 * 32;

// Whether channels are few, shifted planes multiply fewer vectors than panels of output channels would, which are full or not, and
// what is copied is not far more than what is computed.
template <class T>
bool planes_fit(const Window& w, int64_t in_channels, int64_t out_channels) {
  const double height = w.output[1], width = w.output[2], halo_height = PlaneAxis(w, 1).halo, halo_width = PlaneAxis(w, 2).halo;
  const double positions = height * width, computed = height * (width + halo_width);
  return (out_channels < TILE_COLUMNS<T> || in_channels < lanes<T>) && positions >= lanes<T> && (height + halo_height) * (width + halo_width) <= 4 * positions &&
         out_channels * computed / lanes<T> <= TILE_VECTORS * ceil_div(out_channels, TILE_COLUMNS<T>) * positions;
}

// One tap of a channels-last input is a matrix as it lies. Depthwise its channels are as good as positions, and for small pictures worth
// transposing to.
template <class T, template <class> class Convolution>
bool planes_serve(const Convolution<T>& p, bool channels_last) {
  const Window& w = p.window;
  if (is_depthwise<T>(p) ? channels_last || volume(w.output) < DEPTHWISE_POSITIONS : channels_last && volume(w.kernel) == 1) return false;
  return planes_fit<T>(w, p.in_channels, p.out_channels);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
