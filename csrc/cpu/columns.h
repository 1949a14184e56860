// What a position of the window sees of channels-last activations: a row of the column matrix. A tap's channels, and with dilation 1 a
// whole row of taps, are one run of memory.
namespace torchconv {
namespace TORCHCONV_ISA {

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

// Whether each position sees the pixel in its place, and nothing else.
inline bool sees_pixels(const Window& w) {
  return volume(w.kernel) == 1 && w.stride == Extent{1, 1, 1} && w.padding == Extent{0, 0, 0} && w.input == w.output;
}

// Rows that far apart would meet in the same sets of the L1 cache.
template <class E>
bool collide(int64_t distance) {
  return distance * sizeof(E) % 4096 == 0;
}

// Whether the column matrix is used as the input lies, pixels of so many channels.
template <class T>
bool columns_in_place(const Window& w, int64_t pixel) {
  return sees_pixels(w) && !collide<T>(pixel);
}

// Whether the output's positions are the window's.
template <class T>
bool is_dense(const GatherConv<T>& p) {
  return p.spacing == Extent{1, 1, 1} && p.output_extent == p.window.output;
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
