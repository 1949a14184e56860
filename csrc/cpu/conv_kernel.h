// Convolution as blocked im2col: a block of the column matrix is packed, multiplied with packed weights, forgotten.
// Activations are channels-last, so that a tap's channels, and with dilation 1 a whole row of taps, are one run of memory.
namespace torchconv {
namespace TORCHCONV_ISA {

namespace dot {  // dot_kernel.h
template <class T>
bool serves(const GatherConv<T>& p);
template <class T>
void conv(const GatherConv<T>& p);
}  // namespace dot

constexpr int64_t ROW_TILES = 8;  // micro-tiles in a block of output positions: the packed block stays in the L2 cache
constexpr int64_t BLOCK_ROWS = ROW_TILES * TILE_ROWS;

// A position of the window, and the next one.
struct OutputPosition {
  int64_t batch;
  Extent place;

  OutputPosition(const Extent& size, int64_t index) {
    for (int i = RANK - 1; i >= 0; i--) {
      place[i] = index % size[i];
      index /= size[i];
    }
    batch = index;
  }
  void advance(const Extent& size) {
    for (int i = RANK - 1; i >= 0; i--) {
      if (++place[i] < size[i]) return;
      place[i] = 0;
    }
    batch++;
  }
};

// The window's corner in the input there.
struct Corner {
  int64_t batch, depth, height, width;
};

inline Corner corner_of(const Window& w, const OutputPosition& at) {
  const auto place = [&](int i) { return at.place[i] * w.stride[i] - w.padding[i]; };
  return {at.batch, place(0), place(1), place(2)};
}

inline Corner corner_of(const Window& w, int64_t position) { return corner_of(w, OutputPosition(w.output, position)); }

// Entries [begin, end) of one row of the column matrix: the taps' channels [first, first + channels) in the order (tap, channel).
// `input` has `pixel` channels in all. What lies in the padding is zero.
template <class T>
void pack_row(const Window& w, const T* input, int64_t pixel, int64_t first, int64_t channels, const Corner& at, int64_t begin,
              int64_t end, T* to) {
  const auto& [D, H, W] = w.input;
  if (begin == end) return;
  const int64_t run = w.kernel[2] * channels;
  const bool merged = w.dilation[2] == 1 && channels == pixel;
  for (int64_t row = begin / run; row * run < end; row++) {
    const int64_t lo = std::max(begin - row * run, INT64_C(0)), hi = std::min(end - row * run, run);
    T* out = to + row * run - begin;
    const int64_t d = at.depth + row / w.kernel[1] * w.dilation[0], h = at.height + row % w.kernel[1] * w.dilation[1];
    if (d < 0 || d >= D || h < 0 || h >= H) {
      zero_run(out + lo, hi - lo);
      continue;
    }
    const T* line = input + ((at.batch * D + d) * H + h) * W * pixel;
    if (merged) {
      const int64_t from = std::clamp(-at.width * channels, lo, hi), until = std::clamp((W - at.width) * channels, from, hi);
      zero_run(out + lo, from - lo);
      if (from < until) copy_run(line + at.width * channels + from, out + from, until - from);
      zero_run(out + until, hi - until);
      continue;
    }
    for (int64_t tap = lo / channels; tap * channels < hi; tap++) {
      const int64_t from = std::max(lo, tap * channels), until = std::min(hi, (tap + 1) * channels);
      const int64_t x = at.width + tap * w.dilation[2];
      if (x < 0 || x >= W)
        zero_run(out + from, until - from);
      else
        copy_run(line + x * pixel + first + from - tap * channels, out + from, until - from);
    }
  }
}

// A weight as the panels of B: for each group, each block of DEPTH rows of the column matrix, and each TILE_COLUMNS output
// channels, [depth][TILE_COLUMNS], filled up with zeros. Every panel takes the room of a full one.
template <class T>
struct PackedWeight {
  int64_t depth, blocks, panels, group_step;
  Scratch<T> data;

  PackedWeight(int64_t taps, int64_t groups, int64_t in_channels, int64_t out_channels)
      : depth(taps * in_channels),
        blocks(std::max<int64_t>(1, ceil_div(depth, DEPTH))),  // with no depth at all, one block that stores the bias
        panels(ceil_div(out_channels, TILE_COLUMNS<T>)),
        group_step(blocks * panels * DEPTH * TILE_COLUMNS<T> + LINE<T>),
        data(groups * group_step) {}

  T* panel(int64_t group, int64_t block, int64_t panel) const {
    return data.get() + group * group_step + (block * panels + panel) * DEPTH * TILE_COLUMNS<T>;
  }
};

// Input channels whose weights are read at a time: more where they are neighbours, as filters are pages apart.
template <class T>
int64_t channels_at_a_time(const GatherConv<T>& p) {
  return std::min<int64_t>(p.in_channels, p.weight.in_step == 1 ? 64 : 16);
}

// The rows of one panel for `ins` input channels from `in` on: row k goes to row_at(k).
template <class T, class F>
void pack_rows(const GatherConv<T>& p, int64_t group, int64_t panel, int64_t in, int64_t ins, T* chunk, const F& row_at) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const int64_t taps = volume(p.window.kernel), C = p.in_channels, out = panel * N, outs = std::min(N, p.out_channels - out);
  if (outs < N) zero_run(chunk, ins * taps * N);
  Filters<T>(p.weight, p.window.kernel, group, C).read(in, ins, out, outs, chunk, N);
  for (int64_t c = 0; c < ins; c++)
    for (int64_t tap = 0; tap < taps; tap++) copy_run(chunk + (c * taps + tap) * N, row_at(tap * C + in + c), N);
}

template <class T>
PackedWeight<T> pack_weight(const GatherConv<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const int64_t taps = volume(p.window.kernel), C = p.in_channels, step = channels_at_a_time(p), chunks = step == 0 ? 0 : ceil_div(C, step);
  PackedWeight<T> packed(taps, p.groups, C, p.out_channels);
  const int64_t grain = std::max<int64_t>(1, 16384 / (step * taps * N + 1));  // few are packed sooner than a thread wakes up
  torch::stable::parallel_for(0, p.groups * packed.panels * chunks, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> chunk(step * taps * N);
    for (int64_t i = begin; i < end; i++) {
      const int64_t in = i % chunks * step, panel = i / chunks % packed.panels, group = i / chunks / packed.panels;
      pack_rows(p, group, panel, in, std::min(step, C - in), chunk.get(),
                [&](int64_t k) { return packed.panel(group, k / DEPTH, panel) + k % DEPTH * N; });
    }
  });
  return packed;
}

// Whether the column matrix is the input as it lies, pixels of so many channels. Rows that are a multiple of a page apart are packed
// all the same: they would meet in the same sets of the L1 cache.
template <class T>
bool columns_in_place(const Window& w, int64_t pixel) {
  return volume(w.kernel) == 1 && w.stride == Extent{1, 1, 1} && w.padding == Extent{0, 0, 0} && w.input == w.output &&
         pixel * sizeof(T) % 4096 != 0;
}

// Whether the output's positions are the window's.
template <class T>
bool is_dense(const GatherConv<T>& p) {
  return p.spacing == Extent{1, 1, 1} && p.output_extent == p.window.output;
}

// Rows of the output for a block of positions, and of the panels [panel_begin, panel_end).
template <class T>
void gather_block(const GatherConv<T>& p, const PackedWeight<T>& weight, int64_t first, int64_t count, int64_t panel_begin,
                  int64_t panel_end, T* packed) {
  const Window& w = p.window;
  const int64_t in_pixel = p.groups * p.in_channels, out_pixel = p.groups * p.out_channels;
  const bool in_place = columns_in_place<T>(w, in_pixel);
  Corner corner[BLOCK_ROWS];
  T* row[BLOCK_ROWS];
  OutputPosition at(w.output, first);
  for (int64_t i = 0; i < count; i++, at.advance(w.output)) {
    if (!in_place) corner[i] = corner_of(w, at);
    int64_t place = at.batch;
    for (int d = 0; d < RANK; d++) place = place * p.output_extent[d] + p.origin[d] + at.place[d] * p.spacing[d];
    row[i] = p.output + place * out_pixel;
  }
  for (int64_t group = 0; group < p.groups; group++) {
    for (int64_t block = 0; block < weight.blocks; block++) {
      const int64_t begin = block * DEPTH, end = std::min<int64_t>(begin + DEPTH, weight.depth);
      const T* a = in_place ? p.input + first * in_pixel + group * p.in_channels + begin : packed;
      const int64_t a_stride = in_place ? in_pixel : PACKED_STRIDE<T>;
      for (int64_t i = 0; !in_place && i < count; i++)
        pack_row(w, p.input, in_pixel, group * p.in_channels, p.in_channels, corner[i], begin, end, packed + i * PACKED_STRIDE<T>);
      for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        const int64_t column = panel * TILE_COLUMNS<T>, columns = std::min<int64_t>(TILE_COLUMNS<T>, p.out_channels - column);
        T start[TILE_COLUMNS<T>] = {};
        if (p.bias != nullptr) std::memcpy(start, p.bias + group * p.out_channels + column, columns * sizeof(T));
        const T* b = weight.panel(group, block, panel);
        for (int64_t i = 0; i < count; i += TILE_ROWS) {
          const int rows = std::min<int64_t>(TILE_ROWS, count - i);
          T* c[TILE_ROWS];
          for (int r = 0; r < rows; r++) c[r] = row[i + r] + group * p.out_channels + column;
          const auto multiply = in_place ? tile_of<T, LayoutA::rows>(rows) : tile_of<T, LayoutA::packed>(rows);
          multiply(end - begin, a + i * a_stride, a_stride, b, TILE_COLUMNS<T>, c, columns, block == 0 ? start : nullptr, 0);
        }
      }
    }
  }
}

// Few positions whose columns lie in place: the weights are the larger operand. Each panel of them is packed where it is used.
constexpr int64_t FEW_POSITIONS = 256;

template <class T>
void gather_by_panels(const GatherConv<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const int64_t C = p.in_channels, O = p.out_channels, total = p.batch * volume(p.window.output), panels = ceil_div(O, N);
  const int64_t in_pixel = p.groups * C, out_pixel = p.groups * O, step = channels_at_a_time(p);
  torch::stable::parallel_for(0, p.groups * panels, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> weight(C * N), chunk(step * N);
    for (int64_t i = begin; i < end; i++) {
      const int64_t group = i / panels, panel = i % panels, columns = std::min(N, O - panel * N);
      for (int64_t in = 0; in < C; in += step)
        pack_rows(p, group, panel, in, std::min(step, C - in), chunk.get(), [&](int64_t k) { return weight.get() + k * N; });
      T start[N] = {};
      if (p.bias != nullptr) std::memcpy(start, p.bias + group * O + panel * N, columns * sizeof(T));
      for (int64_t in = 0; in < C; in += DEPTH) {
        for (int64_t t = 0; t < total; t += TILE_ROWS) {
          const int64_t rows = std::min<int64_t>(TILE_ROWS, total - t);
          T* c[TILE_ROWS];
          for (int64_t r = 0; r < rows; r++) c[r] = p.output + (t + r) * out_pixel + group * O + panel * N;
          tile_of<T, LayoutA::rows>(rows)(std::min<int64_t>(DEPTH, C - in), p.input + t * in_pixel + group * C + in, in_pixel,
                                          weight.get() + in * N, N, c, columns, in == 0 ? start : nullptr, 0);
        }
      }
    }
  });
}

template <class T>
void gather_conv(const GatherConv<T>& p) {
  const int64_t total = p.batch * volume(p.window.output);
  if (total == 0 || p.out_channels == 0) return;
  if (is_depthwise<T>(p)) return depthwise::conv(p);
  if (dot::serves(p)) return dot::conv(p);
  if (total <= FEW_POSITIONS && p.in_channels > 0 && columns_in_place<T>(p.window, p.groups * p.in_channels) && is_dense(p))
    return gather_by_panels(p);
  const PackedWeight<T> weight = pack_weight(p);
  // Blocks of as many micro-tiles each as can be. Small feature maps have few; their panels are shared out too. How the work is cut
  // never changes the order in which an output element is summed, so results do not depend on the number of threads.
  const int64_t tiles = ceil_div(total, TILE_ROWS), rows = ceil_div(tiles, ceil_div(tiles, ROW_TILES)) * TILE_ROWS;
  const int64_t blocks = ceil_div(total, rows), threads = torch::stable::get_num_threads();
  const int64_t cuts = std::min(weight.panels, ceil_div(4 * threads, blocks));
  torch::stable::parallel_for(0, blocks * cuts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> packed(BLOCK_ROWS * PACKED_STRIDE<T>);
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i / cuts * rows, cut = i % cuts;
      gather_block(p, weight, first, std::min(rows, total - first), weight.panels * cut / cuts, weight.panels * (cut + 1) / cuts,
                   packed.get());
    }
  });
}

// Positions that one partial sum of the weight gradient runs over, at least: enough to outweigh adding it up.
constexpr int64_t SHORTEST_SUM = 8 * DEPTH;
constexpr int64_t SUMS = 32;

// to[in][tap] = from[tap][in], for `taps` taps that lie `tap_step` apart. Taps are few: their vectors are transposed as if they
// were a square, and of each row of it all but the last overwrite what is behind the taps, which the next row then writes.
template <class T>
void interleave(int64_t taps, int64_t ins, const T* from, int64_t tap_step, T* to) {
  constexpr int64_t L = lanes<T>;
  int64_t in = 0;
  for (; taps <= L && in + L <= ins; in += L) {
    vec<T> row[L] = {};
    T square[L * L];
    for (int64_t tap = 0; tap < taps; tap++) row[tap] = load(from + tap * tap_step + in);
    butterfly<T, L / 2>(row, std::make_integer_sequence<int, L>{});
    for (int64_t i = 0; i < L; i++) store(square + i * L, row[i]);
    const int64_t whole = std::clamp<int64_t>((ins - in) - ceil_div(L, taps), 0, L);
    for (int64_t i = 0; i < whole; i++) store(to + (in + i) * taps, load(square + i * L));
    for (int64_t i = whole; i < L; i++) std::memcpy(to + (in + i) * taps, square + i * L, taps * sizeof(T));
  }
  for (; in < ins; in++)
    for (int64_t tap = 0; tap < taps; tap++) to[in * taps + tap] = from[tap * tap_step + in];
}

// The partial sums [sum][group][out][tap, in], added up in order: a tap and a channel are as far apart as the steps say.
template <class T>
void add_up(const WeightGrad<T>& p, int64_t sums, const T* partial, int64_t tap_step, int64_t in_step) {
  const Extent& kernel = p.window.kernel;
  const auto& v = p.view;
  const int64_t taps = volume(kernel), C = p.in_channels, K = taps * C, size = p.groups * p.out_channels * K;
  const bool one_run = v.in_step == taps && v.step[2] == 1 && v.step[1] == kernel[2] && v.step[0] == kernel[1] * kernel[2];
  torch::stable::parallel_for(0, p.groups * p.out_channels, std::max<int64_t>(1, 16384 / K), [&](int64_t begin, int64_t end) {
    const Scratch<T> total(K);
    for (int64_t i = begin; i < end; i++) {
      const T* from = partial + i * K;
      if (sums > 1) {
        for (int64_t k = 0; k < K; k++) {
          T sum = 0;
          for (int64_t s = 0; s < sums; s++) sum += from[s * size + k];
          total.get()[k] = sum;
        }
        from = total.get();
      }
      T* to = p.grad_weight + v.start + i / p.out_channels * v.group_step + i % p.out_channels * v.out_step;
      if (one_run && in_step == 1) {
        interleave(taps, C, from, tap_step, to);
        continue;
      }
      for (int64_t kd = 0; kd < kernel[0]; kd++)
        for (int64_t kh = 0; kh < kernel[1]; kh++)
          for (int64_t kw = 0; kw < kernel[2]; kw++, from += tap_step)
            copy_matrix(1, C, from, K, in_step, to + kd * v.step[0] + kh * v.step[1] + kw * v.step[2], K, v.in_step);
    }
  });
}

// The weight gradient is a product whose depth is the positions: grad_output^T [out][position] times the columns.
// The positions are cut into as many partial sums as the problem (not the machine) asks for, added up in order.
template <class T>
void weight_grad(const WeightGrad<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Window& w = p.window;
  const auto& v = p.view;
  const int64_t total = p.batch * volume(w.output), taps = volume(w.kernel), K = taps * p.in_channels, O = p.out_channels;
  const int64_t blocks = ceil_div(K, DEPTH), in_pixel = p.groups * p.in_channels, out_pixel = p.groups * O;
  if (p.groups * O * K == 0) return;
  if (is_depthwise<T>(p)) return depthwise::weight_grad(p);
  const int64_t sums = std::clamp<int64_t>(ceil_div(SUMS, p.groups * blocks), 1, std::max<int64_t>(1, total / SHORTEST_SUM));
  // A single sum of filters whose elements lie in the order of the columns is computed where it belongs.
  const bool direct = sums == 1 && taps == 1 && v.in_step == 1;
  const bool in_place = columns_in_place<T>(w, in_pixel) && p.in_channels % N == 0;
  const int64_t items = sums * p.groups * blocks, tiles = ceil_div(O, TILE_ROWS);
  const int64_t cuts = std::min(tiles, ceil_div(torch::stable::get_num_threads(), items));
  Scratch<T> partial(direct ? 0 : sums * p.groups * O * K);
  torch::stable::parallel_for(0, items * cuts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> packed(in_place ? 0 : DEPTH * PACKED_STRIDE<T>);
    const T zeros[N] = {};
    for (int64_t i = begin; i < end; i++) {
      const int64_t cut = i % cuts, block = i / cuts % blocks, group = i / cuts / blocks % p.groups, sum = i / cuts / blocks / p.groups;
      const int64_t k0 = block * DEPTH, k1 = std::min<int64_t>(k0 + DEPTH, K);
      const int64_t q0 = total * sum / sums, q1 = total * (sum + 1) / sums;
      const int64_t first = tiles * cut / cuts * TILE_ROWS, last = std::min(O, tiles * (cut + 1) / cuts * TILE_ROWS);
      T* out = direct ? p.grad_weight + v.start + group * v.group_step : partial.get() + (sum * p.groups + group) * O * K;
      const int64_t out_step = direct ? v.out_step : K;
      if (q0 == q1)
        for (int64_t o = first; o < last; o++) zero_run(out + o * out_step + k0, k1 - k0);
      for (int64_t q = q0; q < q1; q += DEPTH) {
        const int64_t depth = std::min<int64_t>(DEPTH, q1 - q);
        OutputPosition at(w.output, q);
        for (int64_t j = 0; !in_place && j < depth; j++, at.advance(w.output)) {
          T* to = packed.get() + j * PACKED_STRIDE<T>;
          pack_row(w, p.input, in_pixel, group * p.in_channels, p.in_channels, corner_of(w, at), k0, k1, to);
          // The last panel reads past k1 where that is not a multiple of its width; what it computes there is not stored.
          zero_run(to + (k1 - k0), std::min<int64_t>(N, PACKED_STRIDE<T> - (k1 - k0)));
        }
        const T* const b = in_place ? p.input + q * in_pixel + group * p.in_channels + k0 : packed.get();
        const int64_t b_stride = in_place ? in_pixel : PACKED_STRIDE<T>;
        for (int64_t k = k0; k < k1; k += N) {
          for (int64_t o = first; o < last; o += TILE_ROWS) {
            const int rows = std::min<int64_t>(TILE_ROWS, last - o);
            T* c[TILE_ROWS];
            for (int r = 0; r < rows; r++) c[r] = out + (o + r) * out_step + k;
            tile_of<T, LayoutA::columns>(rows)(depth, p.grad_output + q * out_pixel + group * O + o, out_pixel, b + (k - k0), b_stride, c,
                                               std::min<int64_t>(N, k1 - k), q == q0 ? zeros : nullptr, 0);
          }
        }
      }
    }
  });
  if (!direct) add_up(p, sums, partial.get(), p.in_channels, 1);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
