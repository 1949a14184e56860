// A tile of Winograd's: its inputs transformed, its products transformed back, where they lie in the pictures (winograd_transforms.h).
// A fused block's ReLU and pooling are undone and done on the way: of an input by the bits or positions that the block kept, of an
// output before it is written. Vectors run over the channels.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace winograd {

// One dimension of what is made of a tile of inputs, and of one of the output's gradient.
template <class F>
struct OfInput {
  static constexpr int FROM = F::IN, TO = F::IN;
  template <class V>
  static inline __attribute__((always_inline)) void apply(const V d[FROM], V to[TO]) { F::input(d, to); }
};
template <class F>
struct OfGradOutput {
  static constexpr int FROM = F::OUT, TO = F::IN;
  template <class V>
  static inline __attribute__((always_inline)) void apply(const V y[FROM], V to[TO]) { F::grad_output(y, to); }
};

// The points of a tile for `count` channels, where load(i, c) has pixel i's vector at channel c, and Y and X are what is done in the two
// dimensions (B^T d B of the input): to + point * step receives the points. The next tile's go to to + `along`, which is fetched ahead, as
// so many places at once are beyond the processor's own guess.
template <class Y, class X, class T, class Load>
inline __attribute__((always_inline)) void transform_tile(const Load& load, int64_t count, T* to, int64_t step, int64_t along) {
  for (int64_t c = 0; c < count; c += lanes<T>) {
    vec<T> rows[Y::TO][X::FROM];
#pragma GCC unroll 8
    for (int x = 0; x < X::FROM; x++) {
      vec<T> d[Y::FROM], column[Y::TO];
#pragma GCC unroll 8
      for (int y = 0; y < Y::FROM; y++) d[y] = load(y * X::FROM + x, c);
      Y::apply(d, column);
#pragma GCC unroll 8
      for (int y = 0; y < Y::TO; y++) rows[y][x] = column[y];
    }
#pragma GCC unroll 8
    for (int y = 0; y < Y::TO; y++) {
      vec<T> row[X::TO];
      X::apply(rows[y], row);
#pragma GCC unroll 8
      for (int x = 0; x < X::TO; x++) {
        T* const place = to + (y * X::TO + x) * step + c;
        store(place, row[x]);
        __builtin_prefetch(place + along, 1, 3);
      }
    }
  }
}

// The same of the tile whose pixels pixel[] points at. The next tile's are probably `across` further on, and fetched ahead as well.
template <class Y, class X, class S>
void tile_points(const S* const pixel[Y::FROM * X::FROM], int64_t across, int64_t first, int64_t count, wide<S>* to, int64_t step, int64_t along) {
  const auto load = [&](int i, int64_t c) __attribute__((always_inline)) {
    const S* const place = pixel[i] + first + c;
    __builtin_prefetch(place + across, 0, 3);
    return load_some(place, count - c);
  };
  transform_tile<Y, X>(load, count, to, step, along);
}

// A^T m A of one tile, for `count` of the output channels: use(y, c, row) receives row y of its outputs from channel c on, rows in turn. The next
// tile's products are at from + `along`.
template <class F, class T, class Use>
inline __attribute__((always_inline)) void output_rows(const T* from, int64_t step, int64_t along, int64_t count, const Use& use) {
  for (int64_t c = 0; c < count; c += lanes<T>) {
    vec<T> rows[F::Y::OUT][F::X::IN];
#pragma GCC unroll 8
    for (int x = 0; x < F::X::IN; x++) {
      vec<T> m[F::Y::IN], column[F::Y::OUT];
#pragma GCC unroll 8
      for (int y = 0; y < F::Y::IN; y++) {
        const T* const place = from + (y * F::X::IN + x) * step + c;
        m[y] = load(place);
        __builtin_prefetch(place + along, 0, 3);
      }
      F::Y::output(m, column);
#pragma GCC unroll 6
      for (int y = 0; y < F::Y::OUT; y++) rows[y][x] = column[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < F::Y::OUT; y++) {
      vec<T> row[F::X::OUT];
      F::X::output(rows[y], row);
      use(y, c, row);
    }
  }
}

// The tiles of a problem, whose activations are of type S, and the zeros that stand for its padding. The outputs of one are as far apart
// as the kernel's taps, and those between them belong to the tiles that follow.
template <class F, class S>
struct Tiles {
  const WinogradPictures& p;
  int64_t across, down, total;
  Scratch<S> zeros;

  explicit Tiles(const WinogradPictures& pictures)
      : p(pictures),
        across(tiles_along(p.out_width, p.dilation_width, F::X::OUT)),
        down(tiles_along(p.out_height, p.dilation_height, F::Y::OUT)),
        total(p.batch * p.out_depth * down * across),
        zeros(std::max(p.in_channels, p.out_channels)) {
    zero_run(zeros.get(), std::max(p.in_channels, p.out_channels));
  }
  int64_t picture(int64_t index) const { return index / across / down; }
  int64_t y(int64_t index) const { return first(index / across % down, p.dilation_height, F::Y::OUT); }
  int64_t x(int64_t index) const { return first(index % across, p.dilation_width, F::X::OUT); }
  // How far, in elements, a pixel of the next tile is from the same one of this.
  int64_t next(int64_t channels) const {
    const int64_t pixels = p.dilation_width > 1 ? 1 : F::X::OUT;
    return (p.turned ? pixels * p.out_height : pixels) * channels;
  }

  // Where a tile's inputs lie at a tap of the kernel's depth, and its outputs; `outside` stands for those that don't exist.
  void inputs(const S* input, int64_t index, int64_t tap, const S* pixel[F::POINTS]) const {
    const int64_t z = picture(index) % p.out_depth + tap * p.dilation_depth - p.pad_depth;
    const int64_t from = 0 <= z && z < p.in_depth ? picture(index) / p.out_depth * p.in_depth + z : NOWHERE;
    locate<F::Y::IN, F::X::IN>(input, from, p.in_height, p.in_width, p.in_channels, y(index) - p.pad_height, x(index) - p.pad_width,
                               static_cast<const S*>(zeros.get()), pixel);
  }
  template <class U>
  void outputs(U* output, int64_t index, U* outside, U* pixel[F::OUTS]) const {
    locate<F::Y::OUT, F::X::OUT>(output, picture(index), p.out_height, p.out_width, p.out_channels, y(index), x(index), outside, pixel);
  }
  // The outputs of 2x2 windows over the outputs, which cover them.
  void pooled_outputs(S* output, int64_t index, S* pixel[F::OUTS / 4]) const {
    locate<F::Y::OUT / 2, F::X::OUT / 2>(output, picture(index), p.out_height / 2, p.out_width / 2, p.out_channels, y(index) / 2, x(index) / 2,
                                         static_cast<S*>(nullptr), pixel);
  }

 private:
  static constexpr int64_t NOWHERE = -1;

  // The first output of the tile that is number `tile` along a dimension.
  static int64_t first(int64_t tile, int64_t dilation, int64_t outs) { return tile / dilation * dilation * outs + tile % dilation; }

  template <int HEIGHT, int WIDTH, class U>
  void locate(U* pictures, int64_t picture, int64_t height, int64_t width, int64_t channels, int64_t y0, int64_t x0, U* outside,
              U* pixel[HEIGHT * WIDTH]) const {
    for (int i = 0; i < HEIGHT * WIDTH; i++) {
      const int64_t y = y0 + i / WIDTH * p.dilation_height, x = x0 + i % WIDTH * p.dilation_width;
      const bool inside = picture != NOWHERE && 0 <= y && y < height && 0 <= x && x < width;
      pixel[i] = inside ? pictures + (picture * height * width + (p.turned ? x * height + y : y * width + x)) * channels : outside;
    }
  }
};

// The signs of one vector (rectify_kernel.h), that of element `at` first: whole bytes, or half of one.
template <class T>
inline __attribute__((always_inline)) vec<Lane<T>> load_signs(const uint8_t* signs, int64_t at) {
  constexpr int L = lanes<T>;
  uint64_t bits = 0;
  std::memcpy(&bits, signs + at / 8, (L + 7) / 8);
  return lanes_of<T>(L < 8 ? bits >> at % 8 : bits, std::make_integer_sequence<int, L>{});
}

// Panels of so few channels end within a byte, and threads share it: all signs are zero before.
template <class T>
constexpr bool SHARED_SIGNS = TILE_COLUMNS<T> % 8 != 0;

// Else the vector before it, if it begins the same byte, has been stored.
template <class T>
inline __attribute__((always_inline)) void store_signs(uint8_t* signs, int64_t at, uint64_t bits) {
  constexpr int L = lanes<T>;
  if constexpr (SHARED_SIGNS<T>) {
    __atomic_fetch_or(signs + at / 8, static_cast<uint8_t>(bits << at % 8), __ATOMIC_RELAXED);
  } else {
    if (L < 8 && at % 8 != 0) bits = signs[at / 8] | bits << at % 8;
    std::memcpy(signs + at / 8, &bits, (L + 7) / 8);
  }
}

// The inputs of one tile, at one tap of the kernel's depth.
template <class F, class S>
class TileInput {
  using T = wide<S>;
  using Y = OfInput<typename F::Y>;
  using X = OfInput<typename F::X>;

 public:
  TileInput(const WinogradConv<S>& p, const Tiles<F, S>& all, int64_t index, int64_t tap) : p_(p), next_(all.next(p.in_channels)) {
    if (p.input_positions == nullptr) all.inputs(p.input, index, tap, pixel_);
    if (p.input_positions == nullptr && p.input_signs == nullptr) return;
    const int64_t scale = p.input_positions == nullptr ? 1 : 2, height = p.in_height / scale, width = p.in_width / scale;
    for (int i = 0; i < F::POINTS; i++) {
      const int64_t y = all.y(index) - p.pad_height + i / X::FROM, x = all.x(index) - p.pad_width + i % X::FROM;
      const bool inside = 0 <= y && y < p.in_height && 0 <= x && x < p.in_width;
      kept_[i] = inside ? ((all.picture(index) * height + y / scale) * width + x / scale) * p.in_channels : 0;
      if (scale == 1) continue;
      pixel_[i] = inside ? p.input + kept_[i] : all.zeros.get();
      tap_[i] = y % 2 * 2 + x % 2;
    }
  }

  // transform_tile, of `count` channels from `first` on.
  void transform(int64_t first, int64_t count, T* to, int64_t step, int64_t along) const {
    if (p_.input_positions != nullptr) {
      const auto unpooled = [&](int i, int64_t c) __attribute__((always_inline)) {
        const S* const place = pixel_[i] + first + c;
        __builtin_prefetch(place + next_ / 2, 0, 3);
        return load_positions<T>(p_.input_positions + kept_[i] + first + c) == tap_[i] ? load_values(place) : vec<T>{};
      };
      transform_tile<Y, X>(unpooled, count, to, step, along);
    } else if (p_.input_signs != nullptr) {
      const auto masked = [&](int i, int64_t c) __attribute__((always_inline)) {
        const S* const place = pixel_[i] + first + c;
        __builtin_prefetch(place + next_, 0, 3);
        return load_signs<T>(p_.input_signs, kept_[i] + first + c) ? load_values(place) : vec<T>{};
      };
      transform_tile<Y, X>(masked, count, to, step, along);
    } else {
      tile_points<Y, X>(pixel_, next_, first, count, to, step, along);
    }
  }

 private:
  const WinogradConv<S>& p_;
  const int64_t next_;
  const S* pixel_[F::POINTS];
  int64_t kept_[F::POINTS];  // its first element's place among the signs or positions
  Lane<T> tap_[F::POINTS];
};

// The outputs of one tile.
template <class F, class S>
class TileOutput {
  using T = wide<S>;

 public:
  TileOutput(const WinogradConv<S>& p, const Tiles<F, S>& all, int64_t index) : p_(p), next_(all.next(p.out_channels)) {
    if (F::Y::OUT % 2 == 0 && p.pooled)
      all.pooled_outputs(p.output, index, pixel_);
    else
      all.outputs(p.output, index, static_cast<S*>(nullptr), pixel_);
  }

  // A^T m A + bias, of `count` channels from `first` on, as output_rows says.
  void write(const T* from, int64_t step, int64_t along, int64_t first, int64_t count) const {
    constexpr int OUT = F::X::OUT;
    const auto biased = [&](vec<T> value, int64_t c) __attribute__((always_inline)) {
      return p_.bias == nullptr ? value : value + load_some(p_.bias + first + c, count - c);
    };
    if (F::Y::OUT % 2 == 0 && p_.pooled) {
      vec<T> above[OUT];
      output_rows<F>(from, step, along, count, [&](int y, int64_t c, const vec<T> row[OUT]) __attribute__((always_inline)) {
        if (y % 2 == 0) {
#pragma GCC unroll 6
          for (int x = 0; x < OUT; x++) above[x] = biased(row[x], c);
          return;
        }
#pragma GCC unroll 3
        for (int x = 0; x < OUT; x += 2) {
          S* const pixel = pixel_[y / 2 * (OUT / 2) + x / 2];
          if (pixel == nullptr) continue;
          Best<T> best(0);
          best.keep(above[x], 0);
          best.keep(above[x + 1], 1);
          best.keep(biased(row[x], c), 2);
          best.keep(biased(row[x + 1], c), 3);
          write_rectified(pixel + first + c, best.value, count - c);
          if (p_.output_positions != nullptr) store_positions<T>(p_.output_positions + (pixel + first + c - p_.output), best.position);
        }
      });
    } else {
      output_rows<F>(from, step, along, count, [&](int y, int64_t c, const vec<T> row[OUT]) __attribute__((always_inline)) {
#pragma GCC unroll 6
        for (int x = 0; x < OUT; x++) {
          S* const pixel = pixel_[y * OUT + x];
          if (pixel == nullptr) continue;
          __builtin_prefetch(pixel + first + c + next_, 1, 3);
          const vec<T> value = biased(row[x], c);
          if (p_.activation.rectifies)
            write_rectified(pixel + first + c, value, count - c);
          else
            store_some(pixel + first + c, value, count - c);
        }
      });
    }
  }

 private:
  // As rectify() (rectify_kernel.h).
  inline __attribute__((always_inline)) void write_rectified(S* to, vec<T> value, int64_t count) const {
    store_some(to, rectified(value, p_.activation.most), count);
    if (p_.output_signs != nullptr) store_signs<T>(p_.output_signs, to - p_.output, bits_of<T>(~(value <= 0)));
  }

  const WinogradConv<S>& p_;
  const int64_t next_;
  S* pixel_[F::OUTS];
};

}  // namespace winograd
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
