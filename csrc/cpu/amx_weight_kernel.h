// The weight's gradient of bfloat16 by AMX. For each tap it is a product of matrices,
//   grad_weight[tap][in][out] = sum over positions of input[in][position + tap] * grad_output[position][out],
// whose depth are the positions. The input lies in shifted planes (planes.h), of which each tap is A, read a little further on; grad_output as
// pairs of positions, which is B, zero where there is no position between the planes' rows.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace paired {

constexpr int64_t SIDE = 32;                 // channels of either side that are multiplied at a time
constexpr int64_t STRETCH = 256;             // positions likewise: of as many, both operands stay in the L1 cache
constexpr int64_t LONGEST_BLOCK = 1024;      // positions of a block
constexpr int64_t PLANES_OF_BLOCK = 1 << 20; // elements of its planes
constexpr int64_t OPERANDS = 1 << 20;        // elements of both operands that are packed at a time
constexpr int64_t FEW_CHANNELS = 16;         // of fewer, A's rows are channels and taps

class WeightGradByTiles {
 public:
  WeightGradByTiles(const WeightGrad<BFloat16>& problem, const Activations<const BFloat16>& activations)
      : p(problem),
        input(activations),
        planes(p.window, p.in_channels, p.out_channels, LONGEST_BLOCK, p.window.output[1], PLANES_OF_BLOCK, true),
        spread(p.in_channels < FEW_CHANNELS && planes.taps > 1),
        rows(spread ? p.in_channels * planes.taps : p.in_channels),
        taps(spread ? 1 : planes.taps),
        distance(spread ? apart<BFloat16>(planes.room) : planes.piece),
        in_sides(ceil_div(rows, SIDE)),
        out_sides(ceil_div(p.out_channels, SIDE)),
        blocks(planes.blocks(p.batch)),
        at_a_time(std::clamp<int64_t>(OPERANDS / (p.groups * (rows * distance + out_sides * planes.room * SIDE)), 1, std::max<int64_t>(1, blocks))),
        a(at_a_time * p.groups * rows * distance),
        b(at_a_time * p.groups * out_sides * planes.room / 2 * SIDE),
        sums(p.groups * in_sides * out_sides * taps * SIDE * SIDE) {}

  void run() {
    const int64_t sides = p.groups * in_sides * out_sides;
    if (sides == 0) return;
    if (blocks == 0) zero_run(sums.get(), sides * taps * SIDE * SIDE);
    const int64_t cuts = cuts_of(sides, taps, 0.1);
    for (int64_t first = 0; first < blocks; first += at_a_time) {
      const int64_t count = std::min(at_a_time, blocks - first);
      torch::stable::parallel_for(0, count * p.groups, 1, [&](int64_t begin, int64_t end) {
        const Scratch<BFloat16> pieces(spread ? p.in_channels * planes.piece : 0);
        for (int64_t i = begin; i < end; i++) pack(first + i / p.groups, i / p.groups, i % p.groups, pieces.get());
      });
      torch::stable::parallel_for(0, sides * cuts, 1, [&](int64_t begin, int64_t end) {
        ByTiles multiplier;
        for (int64_t i = begin; i < end; i++) multiply(multiplier, i / cuts, taps * (i % cuts) / cuts, taps * (i % cuts + 1) / cuts, first, count);
      });
    }
    torch::stable::parallel_for(0, sides, 1, [&](int64_t begin, int64_t end) {
      const Scratch<float> turned(SIDE * taps * SIDE);
      for (int64_t i = begin; i < end; i++) finish(i, turned.get());
    });
  }

 private:
  BFloat16* a_of(int64_t place, int64_t group) const { return a.get() + (place * p.groups + group) * rows * distance; }
  uint32_t* b_of(int64_t place, int64_t group, int64_t side) const {
    return b.get() + ((group * out_sides + side) * at_a_time + place) * planes.room / 2 * SIDE;
  }
  float* sums_of(int64_t side, int64_t tap) const { return sums.get() + (side * taps + tap) * SIDE * SIDE; }

  void pack(int64_t block, int64_t place, int64_t group, BFloat16* pieces) const {
    const PlaneBlock at = planes.block(block);
    BFloat16* const to = a_of(place, group);
    BFloat16* const planes_to = spread ? pieces : to;
    planes.close(at, planes_to);
    planes.copy(input, at, group * p.in_channels, planes_to);
    for (int64_t row = 0; spread && row < rows; row++) copy_run(pieces + planes.offset.get()[row], to + row * distance, planes.room);
    pack_grad_output(at, place, group);
  }

  // [position / 2][out][2], of each side.
  void pack_grad_output(const PlaneBlock& at, int64_t place, int64_t group) const {
    const auto& [D, H, W] = p.window.output;
    const int64_t pixel = p.groups * p.out_channels;
    const std::vector<BFloat16> zeros(ceil_div(p.out_channels, SIDE) * SIDE, BFloat16(0.0f));
    std::vector<const BFloat16*> pixels(planes.room, zeros.data());
    for (int64_t y = 0; y < at.rows; y++)
      for (int64_t x = 0; x < at.columns; x++)
        pixels[y * planes.pitch + x] = p.grad_output + (((at.batch * D + at.slice) * H + at.y + y) * W + at.x + x) * pixel + group * p.out_channels;
    for (int64_t side = 0; side < out_sides; side++) {
      const int64_t out = side * SIDE, outs = std::min(SIDE, p.out_channels - out);
      uint32_t* to = b_of(place, group, side);
      for (int64_t i = 0; i < planes.room; i += 2, to += SIDE) {
        const BFloat16 *first = pixels[i] + out, *second = pixels[i + 1] + out;
        BFloat16 edge[2][SIDE] = {};
        if (outs < SIDE) {
          first = static_cast<BFloat16*>(std::memcpy(static_cast<void*>(edge[0]), first, outs * sizeof(BFloat16)));
          second = static_cast<BFloat16*>(std::memcpy(static_cast<void*>(edge[1]), second, outs * sizeof(BFloat16)));
        }
        for (int64_t j = 0; j < SIDE; j += lanes<uint32_t>) store(to + j, bits_of(first + j) | bits_of(second + j) << 16);
      }
    }
  }

  // Adds `count` blocks to the sums of both sides, for some of the taps.
  void multiply(ByTiles& multiplier, int64_t sides, int64_t tap_begin, int64_t tap_end, int64_t first, int64_t count) const {
    const int64_t out_side = sides % out_sides, row = sides / out_sides % in_sides * SIDE, group = sides / out_sides / in_sides;
    const int64_t height = std::min(SIDE, rows - row), columns = std::min(SIDE, p.out_channels - out_side * SIDE);
    Tiles tiles;
    for (int64_t i = 0; i < height; i += ByTiles::ROWS) tiles.push_back({i, std::min(ByTiles::ROWS, height - i), 0, 0});
    const int64_t together = std::max<int64_t>(1, STRETCH / planes.room);  // blocks
    std::vector<const BFloat16*> from(tiles.size() * together);
    for (int64_t place = 0, runs; place < count; place += runs) {
      runs = std::min(together, count - place);
      for (int64_t position = 0; position < planes.room; position += STRETCH) {
        const int64_t pairs = std::min(STRETCH, planes.room - position) / 2;
        for (int64_t tap = tap_begin; tap < tap_end; tap++) {
          for (int64_t run = 0; run < runs; run++) {
            const BFloat16* const rows_of_tap = a_of(place + run, group) + row * distance + (spread ? 0 : planes.offset.get()[tap]) + position;
            for (size_t t = 0; t < tiles.size(); t++) from[t * runs + run] = rows_of_tap + tiles[t].first * distance;
          }
          multiplier.multiply({tiles, from, runs, pairs, distance, b_of(place, group, out_side) + position / 2 * SIDE, 0, sums_of(sides, tap), SIDE, columns,
                               first + place + position == 0});
        }
      }
    }
  }

  // Rounds the sums of both sides, [tap][in][out], and brings them to their places.
  void finish(int64_t sides, float* turned) const {
    const int64_t out = sides % out_sides * SIDE, row = sides / out_sides % in_sides * SIDE, group = sides / out_sides / in_sides;
    const int64_t height = std::min(SIDE, rows - row), columns = std::min(SIDE, p.out_channels - out);
    const Filters<BFloat16> to(p.view, p.window.kernel, group, p.in_channels);
    bool run = !spread && taps > 1 && to.in_step == taps && taps <= lanes<float>;
    for (int64_t tap = 0; tap < taps; tap++) run = run && to.offset[tap] == to.offset[0] + tap;
    for (int64_t tap = 0; tap < taps; tap++) transpose_matrix(SIDE, SIDE, sums_of(sides, tap), SIDE, turned + tap * SIDE, taps * SIDE);
    float line[SIDE * lanes<float>];
    for (int64_t o = 0; o < columns; o++) {
      const float* const from = turned + o * taps * SIDE;
      BFloat16* const filter = p.grad_weight + group * p.view.group_step + (out + o) * to.out_step;
      if (run) {
        interleave(taps, height, from, SIDE, line);
        narrow_run(line, filter + to.offset[0] + row * taps, height * taps);
        continue;
      }
      for (int64_t tap = 0; tap < taps; tap++) {
        if (!spread && to.in_step == 1) {
          narrow_run(from + tap * SIDE, filter + to.offset[tap] + row, height);
          continue;
        }
        for (int64_t i = 0; i < height; i++) {
          const int64_t in = spread ? (row + i) / planes.taps : row + i, of = spread ? (row + i) % planes.taps : tap;
          filter[to.offset[of] + in * to.in_step] = BFloat16(from[tap * SIDE + i]);
        }
      }
    }
  }

  __attribute__((target("avx512bf16"))) static void narrow_run(const float* from, BFloat16* to, int64_t count) {
    constexpr int64_t L = lanes<float>;
    int64_t i = 0;
    for (; i + 2 * L <= count; i += 2 * L) {
      const __m512bh rounded = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(load(from + i + L)), reinterpret_cast<__m512>(load(from + i)));
      std::memcpy(static_cast<void*>(to + i), &rounded, sizeof rounded);
    }
    for (; i < count; i += L) store_some(to + i, load_some(from + i, count - i), count - i);
  }

  const WeightGrad<BFloat16>& p;
  const Activations<const BFloat16>& input;
  const Planes<BFloat16> planes;
  const bool spread;  // whether each tap has rows of its own, [in][tap], as channels are too few to fill a tile
  const int64_t rows, taps, distance;
  const int64_t in_sides, out_sides, blocks, at_a_time;
  const Scratch<BFloat16> a;  // [block][group][row][position]
  const Scratch<uint32_t> b;  // [group][side][block][pair of positions][SIDE]
  const Scratch<float> sums;  // [group][side of in][side of out][tap][SIDE][SIDE]
};

inline void weight_grad(const WeightGrad<BFloat16>& p, const Activations<const BFloat16>& input) {
  const Extent& size = p.window.input;
  if (!sees_pixels(p.window) || size[2] == 1 || input.step[1] != size[2] * input.step[2] || (size[0] > 1 && input.step[0] != size[1] * input.step[1]))
    return WeightGradByTiles(p, input).run();
  // With one tap, a picture is as good as one line.
  WeightGrad<BFloat16> line = p;
  line.window.input = line.window.output = {1, 1, volume(size)};
  WeightGradByTiles(line, {input.data, input.batch_step, input.channel_step, {0, 0, input.step[2]}}).run();
}

// Whether channels and positions fill tiles to some extent.
inline bool weight_grad_serves(const WeightGrad<BFloat16>& p) {
  const bool fill = p.groups == 1 ? p.out_channels >= ByTiles::COLUMNS / 2 : std::min(p.in_channels, p.out_channels) >= ByTiles::COLUMNS;
  return p.in_channels > 0 && fill && volume(p.window.output) >= ByTiles::PAIRS;
}

}  // namespace paired

const PairedKernels amx_kernels{paired::conv<paired::ByTiles>, paired::serves, paired::weight_grad, paired::weight_grad_serves, true};

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
