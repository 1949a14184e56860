// The weight gradient by Winograd's tiles. The forward pass is, for each tile, Y = A^T [ (G g G^T) * (B^T d B) ] A
// (winograd_kernel.h); it is linear in g, and what its transposition makes of a gradient of Y is, summed over the tiles,
//
//   grad_g = G^T [ sum over tiles of (A grad_Y A^T) * (B^T d B) ] G        (* is elementwise)
//
// For all pairs of channels, each of the 36 points is a matrix product whose depth is the tiles, [out][tiles] x [tiles][in].
// F is F(4x4, 3x3), F(2x2, 5x5), or one dimension of them with 6 points: the larger tiles would err too much.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace winograd {

// Both operands of a chunk of tiles, [point][tile][channels].
template <class F, class S>
struct WeightGradPoints {
  using T = wide<S>;
  int64_t in_stride, out_stride, in_step, out_step;  // from one tile to the next, and from one point to the next
  Scratch<T> inputs, grads;

  static int64_t stride(int64_t channels) { return apart<T>(ceil_div(channels, TILE_COLUMNS<T>) * TILE_COLUMNS<T>); }

  WeightGradPoints(const WinogradPictures& p, int64_t tiles)
      : in_stride(stride(p.in_channels)),
        out_stride(stride(p.out_channels)),
        in_step(apart<T>(tiles * in_stride)),
        out_step(apart<T>(tiles * out_stride)),
        inputs(F::POINTS * in_step),
        grads(F::POINTS * out_step) {
    // What lies beyond the last channel is multiplied, and never stored; it must not be slow numbers.
    if (p.in_channels % TILE_COLUMNS<T> != 0) zero_run(inputs.get(), F::POINTS * in_step);
  }

  // Those of the tiles [first, first + count), at one tap of the kernel's depth.
  void transform(const WinogradWeightGrad<S>& p, const Tiles<F, S>& all, int64_t tap, int64_t first, int64_t count) const {
    using Y = typename F::Y;
    using X = typename F::X;
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const S *input[F::POINTS], *grad[F::OUTS];
        all.inputs(p.input, first + t, tap, input);
        all.outputs(p.grad_output, first + t, static_cast<const S*>(all.zeros.get()), grad);
        tile_points<OfInput<Y>, OfInput<X>>(input, all.next(p.in_channels), 0, p.in_channels, inputs.get() + t * in_stride, in_step, in_stride);
        tile_points<OfGradOutput<Y>, OfGradOutput<X>>(grad, all.next(p.out_channels), 0, p.out_channels, grads.get() + t * out_stride, out_step, out_stride);
      }
    });
  }

  // sums[out][in] += grads[tile][out] * inputs[tile][in] at one point, for `outs` and `ins` channels from (out, in) on.
  void multiply(int64_t point, int64_t count, int64_t out, int64_t outs, int64_t in, int64_t ins, T* sums, int64_t stride, bool first) const {
    constexpr int64_t N = TILE_COLUMNS<T>;
    const T zeros[BROAD_COLUMNS<T>] = {};
    const T *a = grads.get() + point * out_step + out, *b = inputs.get() + point * in_step + in;
    for (int64_t t = 0; t < count; t += DEPTH) {
      const int64_t depth = std::min<int64_t>(DEPTH, count - t);
      for (int64_t k = 0, columns; k < ins; k += columns) {
        columns = BROAD_ROWS > 0 && ins - k > N ? BROAD_COLUMNS<T> : N;
        for_each_tile(outs, columns > N ? BROAD_ROWS : TILE_ROWS, [&](int64_t o, int64_t rows) {
          T* c[TILE_ROWS];
          for (int r = 0; r < rows; r++) c[r] = sums + (o + r) * stride + k;
          tile_of<T, LayoutA::columns>(rows, columns)(depth, a + t * out_stride + o, out_stride, b + t * in_stride + k, in_stride, N, c, columns,
                                                      first && t == 0 ? zeros : nullptr, 0);
        });
      }
    }
  }
};

// G^T m G of one output channel and `count` input channels from `in` on; point i of them is at sums + i * step. `more` adds it to what
// is there.
template <class F, class S>
void finish_weight_grad(const WinogradWeightGrad<S>& p, int64_t out, int64_t in, int64_t count, const wide<S>* sums, int64_t step, bool more) {
  using T = wide<S>;
  using Y = typename F::Y;
  using X = typename F::X;
  constexpr int64_t L = lanes<T>;
  const auto& v = p.view;
  int64_t offset[F::TAPS];
  for (int tap = 0; tap < F::TAPS; tap++) offset[tap] = v.start + tap / X::TAPS * v.step[1] + tap % X::TAPS * v.step[2];
  for (int64_t c = 0; c < count; c += L) {
    vec<T> rows[Y::TAPS][X::IN];
#pragma GCC unroll 6
    for (int x = 0; x < X::IN; x++) {
      vec<T> m[Y::IN], column[Y::TAPS];
#pragma GCC unroll 6
      for (int y = 0; y < Y::IN; y++) m[y] = load(sums + (y * X::IN + x) * step + c);
      Y::template grad_weight<T>(m, column);
#pragma GCC unroll 5
      for (int y = 0; y < Y::TAPS; y++) rows[y][x] = column[y];
    }
    T taps[F::TAPS][L];
#pragma GCC unroll 5
    for (int y = 0; y < Y::TAPS; y++) {
      vec<T> row[X::TAPS];
      X::template grad_weight<T>(rows[y], row);
#pragma GCC unroll 5
      for (int x = 0; x < X::TAPS; x++) store(taps[y * X::TAPS + x], row[x]);
    }
    T* to = p.grad_weight + out * v.out_step + (in + c) * v.in_step;
    const int64_t some = std::min(L, count - c);
    if (v.in_step == 1 && !more) {
      for (int tap = 0; tap < F::TAPS; tap++) copy_run(taps[tap], to + offset[tap], some);
    } else {
      for (int64_t i = 0; i < some; i++)
        for (int tap = 0; tap < F::TAPS; tap++) {
          T& sum = to[i * v.in_step + offset[tap]];
          sum = more ? sum + taps[tap][i] : taps[tap][i];
        }
    }
  }
}

// Elements of a chunk's operands, about. What two threads transform, each then reads of the other.
constexpr int64_t CHUNK = 1 << 20, LINE_CHUNK = CHUNK / 2;
// Input channels of a block, and the output channels whose sums with them fill half of the L2 cache until they are finished.
constexpr int64_t IN_BLOCK = 64;
template <class T>
int64_t out_block(int64_t points) { return std::max<int64_t>(TILE_ROWS, l2_cache() / 2 / (points * IN_BLOCK * static_cast<int64_t>(sizeof(T)))); }

// The sums over a chunk of tiles of a block of channels are finished before they leave the cache, and added to those of the chunks
// `before`.
template <class F, class S>
void weight_grad_by_blocks(const WinogradWeightGrad<S>& p, const WeightGradPoints<F, S>& points, int64_t tiles, bool before) {
  using T = wide<S>;
  const int64_t blocks = ceil_div(p.in_channels, IN_BLOCK), each_thread = ceil_div(torch::stable::get_num_threads(), std::max<int64_t>(1, blocks));
  const int64_t out_blocks = std::min(p.out_channels, std::max(ceil_div(p.out_channels, out_block<T>(F::POINTS)), each_thread));
  torch::stable::parallel_for(0, out_blocks * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t step = apart<T>(ceil_div(p.out_channels, out_blocks) * IN_BLOCK);
    const Scratch<T> sums(F::POINTS * step);
    for (int64_t i = begin; i < end; i++) {
      const int64_t out = p.out_channels * (i / blocks) / out_blocks, in = i % blocks * IN_BLOCK;  // blocks as even as they can be
      const int64_t outs = p.out_channels * (i / blocks + 1) / out_blocks - out, ins = std::min(IN_BLOCK, p.in_channels - in);
      for (int64_t point = 0; point < F::POINTS; point++)
        points.multiply(point, tiles, out, outs, in, ins, sums.get() + point * step, IN_BLOCK, true);
      for (int64_t o = 0; o < outs; o++)
        finish_weight_grad<F>(p, out + o, in, ins, sums.get() + o * IN_BLOCK, step, before);
    }
  });
}

// The gradient of the filters at one tap of the kernel's depth, which `p` sees.
template <class F, class S>
void weight_grad_of_tap(const WinogradWeightGrad<S>& p, const Tiles<F, S>& all, int64_t tap) {
  using T = wide<S>;
  constexpr int64_t N = TILE_COLUMNS<T>, ROWS = 4 * TILE_ROWS, POINTS = F::POINTS;
  const int64_t room = (p.line ? LINE_CHUNK : CHUNK) / POINTS / (p.in_channels + p.out_channels);
  const int64_t chunks = std::max<int64_t>(1, ceil_div(all.total, std::max<int64_t>(room, 64)));
  const int64_t most = ceil_div(all.total, chunks);
  const WeightGradPoints<F, S> points(p, most);
  // The sums of all channels, where they are more than the operands, would cost more memory, and more time to read and to write for
  // each chunk, than adding up what is finished.
  if (chunks == 1 || POINTS * p.in_channels * p.out_channels > 4 * CHUNK) {
    for (int64_t first = 0; first < all.total; first += most) {
      const int64_t count = std::min(most, all.total - first);
      points.transform(p, all, tap, first, count);
      weight_grad_by_blocks(p, points, count, first > 0);
    }
    return;
  }
  const int64_t width = ceil_div(p.in_channels, N) * N, step = apart<T>(p.out_channels * width), blocks = ceil_div(p.out_channels, ROWS);
  const Scratch<T> sums(POINTS * step);
  for (int64_t first = 0; first < all.total; first += most) {
    const int64_t count = std::min(most, all.total - first);
    points.transform(p, all, tap, first, count);
    torch::stable::parallel_for(0, POINTS * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t point = i / blocks, out = i % blocks * ROWS, outs = std::min(ROWS, p.out_channels - out);
        points.multiply(point, count, out, outs, 0, width, sums.get() + point * step + out * width, width, first == 0);
      }
    });
  }
  torch::stable::parallel_for(0, p.out_channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t out = begin; out < end; out++) finish_weight_grad<F>(p, out, 0, p.in_channels, sums.get() + out * width, step, false);
  });
}

template <class F, class S>
void weight_grad_by(const WinogradWeightGrad<S>& p) {
  const Tiles<F, S> all(p);
  for (int64_t tap = 0; tap < p.kernel_depth; tap++) {
    auto of_tap = p;
    of_tap.view.start += tap * p.view.step[0];
    weight_grad_of_tap(of_tap, all, tap);
  }
}

template <class S>
void weight_grad(const WinogradWeightGrad<S>& p) {
  if (p.taps == 5)
    p.line ? weight_grad_by<Both<One, F2of5>>(p) : weight_grad_by<Both<F2of5, F2of5>>(p);
  else
    p.line ? weight_grad_by<Both<One, F4>>(p) : weight_grad_by<Both<F4, F4>>(p);
}

}  // namespace winograd
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
