// The column matrix of a block of output positions, as the micro-kernel reads it: its rows at a constant distance from each other.
namespace torchconv {
namespace TORCHCONV_ISA {

constexpr int64_t ROW_TILES = 8;  // micro-tiles in a block: a packed one stays in the L2 cache
constexpr int64_t BLOCK_ROWS = ROW_TILES * TILE_ROWS;  // of gemm.h's tiles; others have other heights

// With one tap, rows are the input's pixels as they lie. Positions next to each other in a picture see, in each line of the kernel, what
// lies a stride apart: those rows too are in place, in the input's lines or, where the kernel reaches beyond these, in copies of them
// with zeros at the ends; a tile in the midst of a wide line sees the input itself. All others are packed.
enum class ColumnsAs { pixels, lines, packed };

// Elements that a tap, or a line of taps, has at least, and positions a line, for lines to be worth their short sums and small tiles:
// of lines of seven positions, as a last stage's pictures have, packing costs less than tiles of three and four rows lose.
constexpr int64_t SHORTEST_RUN = 32, SHORTEST_LINE = 12;
constexpr int64_t SHORTEST_RUN_OF_PAIRS = 8;  // of bfloat16, whose short sums stay in registers

// Whether a line of taps is one run, channels in their order.
inline bool taps_are_run(const Window& w, int64_t groups) { return groups == 1 && w.dilation[2] == 1; }

template <class E>
ColumnsAs columns_as(const Window& w, int64_t groups, int64_t channels) {
  const int64_t pixel = groups * channels;
  if (columns_in_place<E>(w, pixel)) return ColumnsAs::pixels;
  const bool pictures = w.kernel[0] == 1 && w.input[0] == 1 && w.output[0] == 1 && w.padding[0] == 0;
  const bool copied_for_one_tap = volume(w.kernel) <= 1 && collide<E>(w.stride[2] * pixel);
  const int64_t run = taps_are_run(w, groups) ? w.kernel[2] * channels : channels;
  const int64_t shortest = std::is_same_v<E, BFloat16> ? SHORTEST_RUN_OF_PAIRS : SHORTEST_RUN;
  return pictures && !copied_for_one_tap && volume(w.kernel) > 0 && run >= shortest && w.output[2] >= SHORTEST_LINE ? ColumnsAs::lines
                                                                                                                    : ColumnsAs::packed;
}

template <class E>
class ColumnBlock {
 public:
  // Rows of the block, which are positions: where they begin, and which line of the block's, and place in it, that is.
  struct Tile {
    int64_t first, rows, line, x;
  };

  // Packed rows are `distance` apart; micro-tiles have `height` of them.
  ColumnBlock(const Window& window, int64_t group_count, int64_t channel_count, const E* activations, int64_t distance, int64_t height = TILE_ROWS)
      : w(window),
        tile_rows(height),
        block_rows(ROW_TILES * height),
        channels(channel_count),
        pixel(group_count * channels),
        input(activations),
        as(columns_as<E>(w, group_count, channels)),
        packed_distance(distance),
        width(seen_by(w.output[2])),
        copied(w.padding[2] > 0 || width - w.padding[2] > w.input[2] || collide<E>(w.stride[2] * pixel)),
        pitch(copied && collide<E>(w.stride[2] * pixel) ? pixel + LINE<E> : pixel),
        runs(taps_are_run(w, group_count) && pitch == pixel),
        inner_begin(ceil_div(std::max<int64_t>(w.padding[2], 0), w.stride[2])),
        inner_end((std::max(w.input[2] + w.padding[2] - (w.kernel[2] - 1) * w.dilation[2], INT64_C(0)) + w.stride[2] - 1) / w.stride[2]) {
    if (as == ColumnsAs::packed) copies.emplace(block_rows * packed_distance);
    if (as != ColumnsAs::lines) return;
    const int64_t most = block_rows / w.output[2] + 2, pictures = most / w.output[1] + 2;
    const int64_t fresh = shares_lines() ? std::min(w.kernel[1], w.stride[1] / w.dilation[1]) : w.kernel[1];  // of a line that isn't a picture's first
    const int64_t pixels = std::min(width, seen_by(block_rows));
    if (copied) copies.emplace((most * fresh + pictures * w.kernel[1]) * pixels * pitch);
    zeros.emplace(pixels * pitch);
    zero_run(zeros->get(), pixels * pitch);
  }

  bool packed() const { return as == ColumnsAs::packed; }
  // The block's positions, in tiles of at most `height` rows or, broad ones, BROAD_ROWS.
  const std::vector<Tile>& tiles() const { return tall; }
  const std::vector<Tile>& broad_tiles() const { return broad; }

  // The positions [first, first + count).
  void move_to(int64_t from, int64_t count) {
    first = from;
    tall.clear();
    broad.clear();
    if (as != ColumnsAs::lines) {
      add_tiles(0, count, 0, 0);
      OutputPosition at(w.output, first);
      corners.clear();
      for (int64_t i = 0; packed() && i < count; i++, at.advance(w.output)) corners.push_back(corner_of(w, at));
      return;
    }
    const int64_t across = w.output[2];
    for (int64_t i = 0, some; i < count; i += some) {
      const int64_t x = (first + i) % across;
      some = std::min(across - x, count - i);
      add_tiles(i, some, (first + i) / across - first / across, x);
    }
    find_lines(count);
  }

  // Where to end, from a place in the depth that this gave before, that the runs between are of one length: several short ones, or a part of
  // a long one of about `most`, in vectors.
  int64_t end_of_runs(int64_t begin, int64_t depth, int64_t most) const {
    const int64_t run = run_of(depth);
    if (run <= most) return run == 0 ? depth : std::min(depth, begin + most / run * run);
    const int64_t part = ceil_div(ceil_div(run, ceil_div(run, most)), LINE<E>) * LINE<E>;
    return std::min({depth, begin + part, (begin / run + 1) * run});
  }
  int64_t runs_between(int64_t begin, int64_t end) const { return as == ColumnsAs::lines ? ceil_div(end, run_of(end)) - begin / run_of(end) : 1; }

  // use(from, to, distance, row_of) for runs of the depth [begin, end) of a group: there the row of a tile's first position begins at
  // row_of(tile), and the next ones' are `distance` apart.
  template <class F>
  void each_run(int64_t group, int64_t begin, int64_t end, const F& use) const {
    const int64_t channel = group * channels;
    if (as == ColumnsAs::pixels)
      return use(begin, end, pixel, [&](const Tile& t) { return input + (first + t.first) * pixel + channel + begin; });
    if (packed()) {
      for (size_t i = 0; i < corners.size(); i++)
        pack_row(w, input, pixel, channel, channels, corners[i], begin, end, copies->get() + i * packed_distance);
      return use(begin, end, packed_distance, [&](const Tile& t) { return copies->get() + t.first * packed_distance; });
    }
    const int64_t taps = w.kernel[2], run = run_of(end);
    for (int64_t k = begin, next; k < end; k = next) {
      next = std::min(end, (k / run + 1) * run);
      const int64_t line = k / channels / taps, place = runs ? k % run : k / run % taps * w.dilation[2] * pitch + channel + k % run;
      use(k, next, w.stride[2] * pitch, [&](const Tile& t) { return seen_from(t, lines[t.line * w.kernel[1] + line]) + t.x * w.stride[2] * pitch + place; });
    }
  }

  // Of a run of the depth that begins at k: whether a tile's positions see nothing but padding.
  auto sees_padding(int64_t k) const {
    const bool by_lines = as == ColumnsAs::lines;  // else there may be no taps at all
    const int64_t line = by_lines ? k / channels / w.kernel[2] : 0, tap = by_lines ? k / channels % w.kernel[2] : 0;
    const int64_t x = tap * w.dilation[2] - w.padding[2];
    return [this, by_lines, line, x](const Tile& t) {
      if (!by_lines) return false;
      if (!inside[t.line * w.kernel[1] + line]) return true;
      const int64_t first = t.x * w.stride[2] + x;
      return !runs && (first >= w.input[2] || first + (t.rows - 1) * w.stride[2] < 0);
    };
  }

 private:
  // A line of the input, or of copies of it, from where the kernel's first place is at the line's first position: as tiles near its ends
  // see it, and others.
  struct Line {
    const E *left, *middle, *right;
  };
  const E* seen_from(const Tile& t, const Line& line) const { return t.x < inner_begin ? line.left : t.x + t.rows > inner_end ? line.right : line.middle; }

  // How much of the depth is one run of memory.
  int64_t run_of(int64_t depth) const { return as != ColumnsAs::lines ? depth : runs ? w.kernel[2] * channels : channels; }

  void add_tiles(int64_t from, int64_t count, int64_t line, int64_t x) {
    for_each_tile(count, tile_rows, [&](int64_t i, int64_t rows) { tall.push_back({from + i, rows, line, x + i}); });
    if (BROAD_ROWS > 0 && tile_rows == TILE_ROWS) for_each_tile(count, BROAD_ROWS, [&](int64_t i, int64_t rows) { broad.push_back({from + i, rows, line, x + i}); });
  }

  // How many pixels of a line so many positions see.
  int64_t seen_by(int64_t positions) const { return (positions - 1) * w.stride[2] + (w.kernel[2] - 1) * w.dilation[2] + 1; }

  // Blocks are of whole lines of the output, unless these are longer than a block.
  bool whole_lines() const { return w.output[2] <= block_rows; }

  // Whether a line of the output sees lines that the one before it has seen, in other places of the kernel.
  bool shares_lines() const { return whole_lines() && w.stride[1] % w.dilation[1] == 0; }

  // What each line of the kernel sees from `count` positions.
  void find_lines(int64_t count) {
    const int64_t H = w.input[1], KH = w.kernel[1], S = w.stride[1], D = w.dilation[1], across = w.output[2], last = first + count - 1;
    const int64_t begin = first / across, end = last / across;
    lines.clear();
    inside.clear();
    E* to = copied ? copies->get() : nullptr;
    for (int64_t line = begin; line <= end; line++) {
      const int64_t picture = line / w.output[1], y = line % w.output[1];
      const int64_t left = line == begin ? first % across : 0, right = line == end ? last % across : across - 1;
      for (int64_t k = 0; k < KH; k++) {
        const int64_t h = y * S - w.padding[1] + k * D;
        inside.push_back(0 <= h && h < H);
        if (!inside.back()) {
          const E* const zero = zeros->get() - left * w.stride[2] * pitch;
          lines.push_back({zero, zero, zero});
        } else if (line > begin && y > 0 && shares_lines() && k + S / D < KH) {
          lines.push_back(lines[lines.size() - KH + S / D]);  // the output's line before has seen it
        } else {
          lines.push_back(see(input + (picture * H + h) * w.input[2] * pixel, left, right, to));
        }
      }
    }
  }

  // What the positions [left, right] see of one of the input's lines; copies go to `to`.
  Line see(const E* line, int64_t left, int64_t right, E*& to) const {
    const auto copy = [&](int64_t begin, int64_t end) {
      const int64_t from = begin * w.stride[2], pixels = seen_by(end - begin + 1);
      copy_line(line, from - w.padding[2], pixels, to);
      to += pixels * pitch;
      return to - (from + pixels) * pitch;
    };
    const E* const in_place = line - w.padding[2] * pixel;
    if (!copied) return {in_place, in_place, in_place};
    const bool at_left = left < inner_begin, at_right = right >= inner_end;
    const int64_t until = at_left ? std::min(right, inner_begin + tile_rows - 2) : left - 1, since = at_right ? std::max(left, inner_end - tile_rows + 1) : right + 1;
    if (pitch != pixel || (since - until) * w.stride[2] <= (w.kernel[2] - 1) * w.dilation[2]) {  // two copies were no less than one
      const E* const whole = copy(left, right);
      return {whole, whole, whole};
    }
    const E* const first_part = at_left ? copy(left, until) : in_place;
    return {first_part, in_place, at_right ? copy(since, right) : in_place};
  }

  // So many pixels of a line, from one on that may lie in the padding.
  void copy_line(const E* line, int64_t from, int64_t pixels, E* to) const {
    const int64_t begin = std::clamp<int64_t>(-from, 0, pixels), end = std::clamp<int64_t>(w.input[2] - from, begin, pixels);
    zero_run(to, begin * pitch);
    zero_run(to + end * pitch, (pixels - end) * pitch);
    if (pitch == pixel) return copy_run(line + (from + begin) * pixel, to + begin * pitch, (end - begin) * pixel);
    for (int64_t x = begin; x < end; x++) copy_run(line + (from + x) * pixel, to + x * pitch, pixel);
  }

  const Window& w;
  const int64_t tile_rows, block_rows;
  const int64_t channels, pixel;
  const E* const input;
  const ColumnsAs as;
  const int64_t packed_distance;
  const int64_t width;  // pixels that a line of the output sees
  const bool copied;
  const int64_t pitch;  // from one pixel to the next in the lines
  const bool runs;      // whether each line of the kernel is a run in them
  const int64_t inner_begin, inner_end;  // positions that see no padding at a line's ends
  int64_t first = 0;
  std::vector<Tile> tall, broad;
  std::vector<Corner> corners;
  std::vector<Line> lines;   // [line of the block's][line of the kernel]
  std::vector<char> inside;  // whether it is one of the input's
  std::optional<Scratch<E>> copies, zeros;
};

// Blocks of positions, smaller ones where panels are too few for the threads; and the panels in `cuts` parts, by twos, for broad tiles, unless
// there are too few of them. How the work is cut never changes the order in which an output element is summed, so results do not depend on
// the number of threads.
struct GatherBlocks {
  int64_t total, unit, units, blocks, panels, together, cuts;

  GatherBlocks(const Window& w, int64_t positions, int64_t panel_count, ColumnsAs as, int64_t tile_rows = TILE_ROWS)
      : total(positions),
        unit(as == ColumnsAs::lines && w.output[2] <= ROW_TILES * tile_rows ? w.output[2] : tile_rows),  // whole lines
        units(ceil_div(total, unit)),
        blocks(std::max(ceil_div(units, ROW_TILES * tile_rows / unit), std::min<int64_t>(units, torch::stable::get_num_threads() / std::max<int64_t>(1, panel_count)))),
        panels(panel_count),
        together(BROAD_ROWS > 0 && blocks * panels >= 4 * torch::stable::get_num_threads() ? 2 : 1),
        cuts(cuts_of(blocks, ceil_div(panels, together), as == ColumnsAs::packed ? 0.3 : 0.1)) {}
  // run(first, count, panel_begin, panel_end) of each part.
  template <class F>
  void each(int64_t begin, int64_t end, const F& run) const {
    for (int64_t i = begin; i < end; i++) {
      const int64_t block = i / cuts, cut = i % cuts, first = units * block / blocks * unit, all = ceil_div(panels, together);
      run(first, std::min(total, units * (block + 1) / blocks * unit) - first, all * cut / cuts * together,
          std::min(panels, all * (cut + 1) / cuts * together));
    }
  }
};

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
