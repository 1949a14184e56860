// Shifted planes: the input of a block of output positions, so laid out that all its positions meet a tap in one run.
//
// A block of output positions needs a piece of each input plane. It is copied with its padding, rows `pitch` apart, one plane
// per phase of the stride. Position (y, x) of a block and any tap then meet at
//   piece[offset of (channel, tap) + y * pitch + x],
// so that a tap is one run of memory for all positions of the block, whatever the stride, the dilation and the padding.
// Between the rows lie `pitch - columns` positions that don't exist; they are computed, and never stored.
namespace torchconv {
namespace TORCHCONV_ISA {

// Elements of the pieces of a block, about: they stay in the L2 cache.
constexpr int64_t PIECES = 32768;

// Tap k is (k / phases) * reach positions into phase k % phases, which is every stride-th input from k % phases * dilation on.
struct PlaneAxis {
  int64_t phases = 1, reach, halo;

  PlaneAxis(const Window& w, int i) {
    while (phases < w.kernel[i] && phases * w.dilation[i] % w.stride[i] != 0) phases++;
    reach = phases * w.dilation[i] / w.stride[i];
    halo = w.kernel[i] <= phases ? 0 : (w.kernel[i] - 1) / phases * reach;
  }
};

// Output positions: of picture `batch`, a slice, and in it the rows and columns from (y, x) on.
struct PlaneBlock {
  int64_t batch, slice, y, x, rows, columns;
};

// How the positions are cut into blocks, and the pieces that a block needs.
template <class T>
struct Planes {
  const Window w;
  const PlaneAxis height{w, 1}, width{w, 2};
  const int64_t channels, taps = volume(w.kernel);
  int64_t rows, columns, pitch, plane, planes, piece;  // a piece is all planes of a channel
  int64_t down, across, room;                  // blocks; and positions of one, in whole vectors
  Scratch<int64_t> offset{channels * taps};

  // A block has no more than `most` positions, about, and `most_rows` rows, and its pieces no more than so many elements.
  Planes(const Window& window, int64_t in_channels, int64_t out_channels, int64_t most, int64_t most_rows, int64_t pieces = PIECES, bool closed = false)
      : w(window), channels(in_channels) {
    planes = w.kernel[0] * height.phases * width.phases;
    const int64_t share = std::min(most, pieces / std::clamp(std::max(channels * planes, out_channels), INT64_C(1), pieces));
    across = ceil_div(w.output[2], std::max<int64_t>(64, share / (height.halo + 4) - width.halo));
    columns = ceil_div(w.output[2], across);
    pitch = columns + width.halo;
    rows = std::clamp<int64_t>(std::min(share / pitch - height.halo, most_rows), 1, w.output[1]);
    down = ceil_div(w.output[1], rows);
    room = ceil_div(rows * pitch, lanes<T>) * lanes<T>;
    plane = (rows + height.halo) * pitch;
    piece = closed ? apart<T>(planes * plane + width.halo + lanes<T>) : planes * plane;
    int64_t* to = offset.get();
    for (int64_t c = 0; c < channels; c++)
      for (int64_t kd = 0; kd < w.kernel[0]; kd++)
        for (int64_t kh = 0; kh < w.kernel[1]; kh++)
          for (int64_t kw = 0; kw < w.kernel[2]; kw++)
            *to++ = c * piece + ((kd * height.phases + kh % height.phases) * width.phases + kw % width.phases) * plane +
                    kh / height.phases * height.reach * pitch + kw / width.phases * width.reach;
  }

  int64_t blocks(int64_t batch) const { return batch * w.output[0] * down * across; }

  PlaneBlock block(int64_t index) const {
    const int64_t x = index % across * columns, y = index / across % down * rows, slice = index / across / down;
    return {slice / w.output[0], slice % w.output[0], y, x, std::min(rows, w.output[1] - y), std::min(columns, w.output[2] - x)};
  }

  // The pieces of a block in which no vector of positions reads what isn't its channel's: behind what copy() writes they are zero.
  void close(const PlaneBlock& at, T* to) const {
    if (at.rows < rows) return zero_run(to, channels * piece);
    for (int64_t c = 0; c < channels; c++) zero_run(to + c * piece + planes * plane, piece - planes * plane);
  }

  // Vectors read past the positions of the last row.
  Scratch<T> scratch() const { return Scratch<T>(channels * piece + lanes<T>); }

  // The pieces of channels [first, first + channels).
  void copy(const Activations<const T>& from, const PlaneBlock& at, int64_t first, T* to) const {
    const int64_t step = w.stride[2] * from.step[2];
    T* plane_of = to;
    for (int64_t kd = 0; kd < w.kernel[0]; kd++) {
      const int64_t d = at.slice * w.stride[0] + kd * w.dilation[0] - w.padding[0];
      for (int64_t ph = 0; ph < height.phases; ph++) {
        for (int64_t pw = 0; pw < width.phases; pw++, plane_of += plane) {
          const int64_t x = at.x * w.stride[2] + pw * w.dilation[2] - w.padding[2];
          const int64_t begin = std::clamp<int64_t>(ceil_div(-x, w.stride[2]), 0, pitch);
          const int64_t end = std::clamp<int64_t>(ceil_div(w.input[2] - x, w.stride[2]), begin, pitch);
          const T* source = from.data + at.batch * from.batch_step + first * from.channel_step + d * from.step[0] +
                            (x + begin * w.stride[2]) * from.step[2];
          for (int64_t y = 0; y < at.rows + height.halo; y++) {
            const int64_t h = (at.y + y) * w.stride[1] + ph * w.dilation[1] - w.padding[1];
            const bool inside = 0 <= d && d < w.input[0] && 0 <= h && h < w.input[1] && begin < end;
            T* line = plane_of + y * pitch;
            for (int64_t c = 0; c < channels; c++) {
              zero_run(line + c * piece, inside ? begin : pitch);
              if (inside) zero_run(line + c * piece + end, pitch - end);
            }
            if (inside) copy_matrix(channels, end - begin, source + h * from.step[1], from.channel_step, step, line + begin, piece, 1);
          }
        }
      }
    }
  }
};

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
