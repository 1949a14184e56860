// The weight gradient, likewise by blocks of the column matrix.
namespace torchconv {
namespace TORCHCONV_ISA {

// Positions that one partial sum of the weight gradient runs over, at least: enough to outweigh adding it up.
constexpr int64_t SHORTEST_SUM = 8 * DEPTH;
constexpr int64_t SUMS = 32;

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

// Whether so many positions see nothing but padding by the rows [k0, k1) of the column matrix, if these are of one tap.
inline bool see_padding(const Window& w, int64_t channels, int64_t first, int64_t count, int64_t k0, int64_t k1) {
  const int64_t tap = k0 / channels;
  if (w.padding == Extent{0, 0, 0} || tap != (k1 - 1) / channels) return false;
  const int64_t kd = tap / w.kernel[2] / w.kernel[1], kh = tap / w.kernel[2] % w.kernel[1], kw = tap % w.kernel[2];
  OutputPosition position(w.output, first);
  for (int64_t i = 0; i < count; i++, position.advance(w.output)) {
    const Corner at = corner_of(w, position);
    const auto inside = [&](int axis, int64_t place) { return 0 <= place && place < w.input[axis]; };
    if (inside(0, at.depth + kd * w.dilation[0]) && inside(1, at.height + kh * w.dilation[1]) && inside(2, at.width + kw * w.dilation[2])) return false;
  }
  return true;
}

// The weight gradient is a product whose depth is the positions: grad_output^T [out][position] times the columns.
// The positions are cut into as many partial sums as the problem (not the machine) asks for, added up in order.
template <class T>
void weight_grad_by_blocks(const WeightGrad<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Window& w = p.window;
  const auto& v = p.view;
  const int64_t total = p.batch * volume(w.output), taps = volume(w.kernel), K = taps * p.in_channels, O = p.out_channels;
  const int64_t in_pixel = p.groups * p.in_channels, out_pixel = p.groups * O;
  const bool in_place = columns_in_place<T>(w, in_pixel) && p.in_channels % lanes<T> == 0;
  // Blocks are even: 160 are 96 and 64, not 128 and 32. Of few positions that lie in place, one has so much more of each: long runs of the
  // gradient are written at a time.
  const int64_t even = ceil_div(ceil_div(K, ceil_div(K, DEPTH)), N) * N;
  const int64_t width = in_place ? std::max<int64_t>(even, DEPTH * DEPTH / std::max<int64_t>(total, 1) / N * N) : even, blocks = ceil_div(K, width);
  const int64_t wanted = std::clamp<int64_t>(ceil_div(SUMS, p.groups * blocks), 1, std::max<int64_t>(1, total / SHORTEST_SUM));
  const int64_t sums = wanted == 1 ? 1 : ceil_div(wanted, 2) * 2;  // an even number, as that of threads mostly is
  // A single sum of filters whose elements lie in the order of the columns is computed where it belongs.
  const bool direct = sums == 1 && taps == 1 && v.in_step == 1;
  const int64_t items = sums * p.groups * blocks, tiles = ceil_div(O, TILE_ROWS), most = ceil_div(O, tiles);
  const int64_t cuts = cuts_of(items, tiles, in_place ? 0.1 : 0.3);
  // What comes from memory, and lies so far apart that it meets in few of the cache's sets, is fetched by lines sooner than by tiles.
  constexpr int64_t FAR_APART = 2048;  // bytes
  const bool from_far = out_pixel * static_cast<int64_t>(sizeof(T)) >= FAR_APART && total * out_pixel * static_cast<int64_t>(sizeof(T)) > 4 * l2_cache();
  Scratch<T> partial(direct ? 0 : sums * p.groups * O * K);
  torch::stable::parallel_for(0, items * cuts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> packed(in_place ? 0 : DEPTH * PACKED_STRIDE<T>), near(from_far ? DEPTH * apart<T>(most * tiles) : 0);
    const T zeros[N] = {};
    for (int64_t i = begin; i < end; i++) {
      const int64_t cut = i % cuts, block = i / cuts % blocks, group = i / cuts / blocks % p.groups, sum = i / cuts / blocks / p.groups;
      const int64_t k0 = block * width, k1 = std::min<int64_t>(k0 + width, K);
      const int64_t q0 = total * sum / sums, q1 = total * (sum + 1) / sums;
      const int64_t first = tiles * cut / cuts * most, last = std::min(O, tiles * (cut + 1) / cuts * most);
      T* out = direct ? p.grad_weight + v.start + group * v.group_step : partial.get() + (sum * p.groups + group) * O * K;
      const int64_t out_step = direct ? v.out_step : K;
      if (q0 == q1)
        for (int64_t o = first; o < last; o++) zero_run(out + o * out_step + k0, k1 - k0);
      for (int64_t q = q0; q < q1; q += DEPTH) {
        const int64_t depth = std::min<int64_t>(DEPTH, q1 - q);
        if (!in_place && see_padding(w, p.in_channels, q, depth, k0, k1)) {
          for (int64_t o = first; q == q0 && o < last; o++) zero_run(out + o * out_step + k0, k1 - k0);
          continue;
        }
        OutputPosition at(w.output, q);
        for (int64_t j = 0; !in_place && j < depth; j++, at.advance(w.output)) {
          T* to = packed.get() + j * PACKED_STRIDE<T>;
          pack_row(w, p.input, in_pixel, group * p.in_channels, p.in_channels, corner_of(w, at), k0, k1, to);
          // The last panel reads past k1 where that is not a multiple of its width; what it computes there is not stored.
          zero_run(to + (k1 - k0), std::min<int64_t>(N, PACKED_STRIDE<T> - (k1 - k0)));
        }
        const T* a = p.grad_output + q * out_pixel + group * O;
        if (from_far) {
          copy_matrix(depth, last - first, a + first, out_pixel, 1, near.get() + first, apart<T>(most * tiles), 1);
          a = near.get();
        }
        const int64_t a_stride = from_far ? apart<T>(most * tiles) : out_pixel;
        const T* const b = in_place ? p.input + q * in_pixel + group * p.in_channels + k0 : packed.get();
        const int64_t b_stride = in_place ? in_pixel : PACKED_STRIDE<T>;
        const auto multiply = [&](int64_t k, int64_t o) {
          const int64_t columns = std::min<int64_t>(N, k1 - k);
          const int rows = std::min(most, last - o);
          T* c[TILE_ROWS];
          for (int r = 0; r < rows; r++) c[r] = out + (o + r) * out_step + k;
          const bool far = k + columns == k1 && !from_far;
          tile_of<T, LayoutA::columns>(rows, columns, far)(depth, a + o, a_stride, b + (k - k0), b_stride, 0, c, columns, q == q0 ? zeros : nullptr, 0);
        };
        if (width > DEPTH) {
          for (int64_t o = first; o < last; o += most)
            for (int64_t k = k0; k < k1; k += N) multiply(k, o);
        } else {
          for (int64_t k = k0; k < k1; k += N)
            for (int64_t o = first; o < last; o += most) multiply(k, o);
        }
      }
    }
  });
  if (!direct) add_up(p, sums, partial.get(), p.in_channels, 1);
}

template <class T>
void weight_grad(const WeightGrad<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Window& w = p.window;
  WeightGrad<T> product = p;
  if (p.groups * p.out_channels * volume(w.kernel) * p.in_channels == 0) return;
  if (is_depthwise<T>(p)) return depthwise::weight_grad(p);
  // Of one tap, both operands are alike: the columns are the one that fills their panels better.
  const bool alike = volume(w.kernel) == 1 && w.stride == Extent{1, 1, 1} && w.padding == Extent{0, 0, 0};
  if (alike && ceil_div(p.in_channels, N) * p.out_channels > ceil_div(p.out_channels, N) * p.in_channels) {
    std::swap(product.in_channels, product.out_channels);
    std::swap(product.input, product.grad_output);
    std::swap(product.view.in_step, product.view.out_step);
  }
  weight_grad_by_blocks(product);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
