// Convolution as blocked im2col: a block of the column matrix (column_block.h) is multiplied with packed weights, and forgotten.
namespace torchconv {
namespace TORCHCONV_ISA {

// The panels of B that a gather multiplies with: N output channels each, of one phase after the other.
template <class T, int64_t N = TILE_COLUMNS<T>>
struct Panels {
  const GatherConv<T>& p;
  Extent kernel;  // of all phases
  int64_t taps, of_phase, count, depth;

  explicit Panels(const GatherConv<T>& gather)
      : p(gather),
        kernel(p.every_phase ? p.spacing : p.window.kernel),
        taps(volume(kernel)),
        of_phase(ceil_div(p.out_channels, N)),
        count(p.every_phase ? taps * of_phase : of_phase),
        depth(p.every_phase ? p.in_channels : taps * p.in_channels) {}

  int64_t column(int64_t panel) const { return panel % of_phase * N; }
  int64_t columns(int64_t panel) const { return std::min<int64_t>(N, p.out_channels - column(panel)); }
  // Whether the next one has the next output channels, and a broad tile computes both, before panel `end`.
  bool is_pair(int64_t panel, int64_t end) const {
    return BROAD_ROWS > 0 && panel + 1 < end && column(panel) + 2 * N <= p.out_channels;
  }
  // How many output positions lie between its phase and the first one.
  int64_t shift(int64_t panel) const {
    if (!p.every_phase) return 0;
    const int64_t phase = panel / of_phase;
    const auto& [d, h, w] = kernel;
    return (phase / (h * w) * p.output_extent[1] + phase / w % h) * p.output_extent[2] + phase % w;
  }
};

// How much of the depth is multiplied at a time: about DEPTH, in equal parts of what lies in place.
template <class T>
int64_t depth_at_a_time(const Panels<T>& panels) {
  constexpr int64_t LONGEST = DEPTH + DEPTH / 4;  // of which a panel of B still fits the L1 cache
  const GatherConv<T>& p = panels.p;
  const ColumnsAs as = columns_as<T>(p.window, p.groups, p.in_channels);
  if (as == ColumnsAs::packed || panels.depth == 0) return DEPTH;
  const int64_t run = as == ColumnsAs::pixels ? panels.depth : taps_are_run(p.window, p.groups) ? p.window.kernel[2] * p.in_channels : p.in_channels;
  return ceil_div(run, ceil_div(run, LONGEST));
}

// A weight as the panels of B: for each group, each block of `step` rows of the column matrix, and each panel,
// [depth][TILE_COLUMNS], filled up with zeros. Every panel takes the room of a full one. Panels that are kept
// (packed_weight.h) have all of their rows one after the other, so that blocks may be of any size.
template <class T>
struct PackedWeight {
  static constexpr int64_t N = TILE_COLUMNS<T>;
  int64_t depth, step, blocks, panels, panel_step, block_step, group_step;
  std::optional<Scratch<T>> own;
  const T* data;

  PackedWeight(int64_t rows, int64_t at_a_time, int64_t groups, int64_t panel_count)
      : depth(rows),
        step(at_a_time),
        blocks(std::max<int64_t>(1, ceil_div(depth, step))),  // with no depth at all, one block that stores the bias
        panels(panel_count),
        panel_step(step * N),
        block_step(panels * panel_step),
        group_step(apart<T>(blocks * block_step)),
        own(std::in_place, groups * group_step),
        data(own->get()) {}
  PackedWeight(const T* kept, int64_t rows, int64_t at_a_time, int64_t panel_count)
      : depth(rows),
        step(at_a_time),
        blocks(ceil_div(depth, step)),
        panels(panel_count),
        panel_step(depth * N),
        block_step(step * N),
        group_step(panels * panel_step),
        data(kept) {}

  const T* panel(int64_t group, int64_t block, int64_t panel) const { return data + place(group, block, panel); }
  T* room(int64_t group, int64_t block, int64_t panel) const { return own->get() + place(group, block, panel); }

 private:
  int64_t place(int64_t group, int64_t block, int64_t panel) const { return group * group_step + block * block_step + panel * panel_step; }
};

// The panels of each phase of a convolution. All are of the same filters, whose taps, near each other in memory, are read together.
template <class T, int64_t N = TILE_COLUMNS<T>>
struct Phases {
  static constexpr int64_t MOST_AHEAD = 8192;  // elements
  const std::vector<Panels<T, N>> panels;
  int64_t taps = 0;  // of all of them

  explicit Phases(const std::vector<Panels<T, N>>& all) : panels(all) {
    for (const auto& phase : panels) taps += phase.taps;
  }
  const GatherConv<T>& conv() const { return panels[0].p; }
  // Input channels whose weights are read at a time: more where they are neighbours, as filters are pages apart.
  int64_t channels_at_a_time() const { return std::min<int64_t>(conv().in_channels, conv().weight.in_step == 1 ? 64 : 16); }
  bool outs_are_neighbours() const { return conv().weight.out_step < conv().weight.in_step; }
  int64_t chunk() const { return channels_at_a_time() * taps * N; }

  Filters<T> filters_of(int64_t group) const {
    Filters<T> filters(conv().weight, panels[0].kernel, group, conv().in_channels);
    for (size_t phase = 1; phase < panels.size(); phase++) filters.add(panels[phase].p.weight, panels[phase].kernel);
    return filters;
  }

  // to[in][tap][N] for `ins` input channels from `in` on and the output channels of one panel. What is probably read next is
  // fetched ahead, unless it is more than the L1 cache has room for.
  void read_panel(const Filters<T>& filters, int64_t panel, int64_t in, int64_t ins, T* to) const {
    const int64_t C = conv().in_channels, outs = panels[0].columns(panel);
    const bool next_panel = outs_are_neighbours() || in + ins == C;
    const int64_t next = next_panel ? panel + 1 : panel, from = outs_are_neighbours() ? in : (in + ins) % C;
    if (next < panels[0].of_phase && chunk() <= MOST_AHEAD)
      filters.prefetch(from, std::min(ins, C - from), panels[0].column(next), panels[0].columns(next));
    if (outs < N) zero_run(to, ins * taps * N);
    filters.read(in, ins, panels[0].column(panel), outs, to, N);
  }

  // The rows of one panel, of each phase, for `ins` input channels from `in` on, in their order: put(phase, i, k, row) takes row k of
  // panel i.
  template <class F>
  void pack(const Filters<T>& filters, int64_t panel, int64_t in, int64_t ins, T* chunk, const F& put) const {
    const int64_t C = conv().in_channels;
    read_panel(filters, panel, in, ins, chunk);
    for (int64_t c = 0; c < ins; c++)
      for (size_t phase = 0; phase < panels.size(); phase++)
        for (int64_t tap = 0; tap < panels[phase].taps; tap++, chunk += N)
          panels[phase].p.every_phase ? put(phase, tap * panels[phase].of_phase + panel, in + c, chunk) : put(phase, panel, tap * C + in + c, chunk);
  }

  // Of all panels and groups: put(phase, group, i, k, row).
  template <class F>
  void pack_all(const F& put) const {
    if (taps == 0) return;
    const int64_t C = conv().in_channels, of_phase = panels[0].of_phase, step = channels_at_a_time(), chunks = step == 0 ? 0 : ceil_div(C, step);
    const int64_t grain = std::max<int64_t>(1, 16384 / (chunk() + 1));  // few are packed sooner than a thread wakes up
    torch::stable::parallel_for(0, conv().groups * of_phase * chunks, grain, [&](int64_t begin, int64_t end) {
      const Scratch<T> read(chunk());
      for (int64_t i = begin; i < end; i++) {
        const int64_t group = i / chunks / of_phase, j = i % (chunks * of_phase);
        const int64_t panel = outs_are_neighbours() ? j % of_phase : j / chunks, in = (outs_are_neighbours() ? j / of_phase : j % chunks) * step;
        pack(filters_of(group), panel, in, std::min(step, C - in), read.get(), [&](size_t phase, int64_t to, int64_t k, const T* row)
                                                                       __attribute__((always_inline)) { put(phase, group, to, k, row); });
      }
    });
  }
};

template <class T>
std::vector<PackedWeight<T>> pack_weights(const std::vector<Panels<T>>& phases) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  std::vector<PackedWeight<T>> packed;
  if (phases.size() == 1 && phases[0].p.weight.packed != nullptr) {
    packed.emplace_back(phases[0].p.weight.packed, phases[0].depth, depth_at_a_time(phases[0]), phases[0].count);
    return packed;
  }
  for (const auto& phase : phases) packed.emplace_back(phase.depth, depth_at_a_time(phase), phase.p.groups, phase.count);
  Phases<T>(phases).pack_all([&](size_t phase, int64_t group, int64_t panel, int64_t k, const T* row) __attribute__((always_inline)) {
    const int64_t step = packed[phase].step;
    copy_run(row, packed[phase].room(group, k / step, panel) + k % step * N, N);
  });
  return packed;
}

// Panels to keep: [group][panel][depth][TILE_COLUMNS].
template <class T>
void pack_weight(const GatherConv<T>& p, T* to) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Phases<T> filters({Panels<T>(p)});
  const Panels<T>& panels = filters.panels[0];
  filters.pack_all([&](size_t, int64_t group, int64_t panel, int64_t k, const T* row) __attribute__((always_inline)) {
    copy_run(row, to + ((group * panels.count + panel) * panels.depth + k) * N, N);
  });
}

// Where the outputs of `count` positions lie, from position `first` on.
template <class T, class S>
void locate_rows(const GatherConv<T>& p, S* output, int64_t first, int64_t count, S** row) {
  const int64_t pixel = p.groups * p.out_channels;
  if (is_dense(p)) {
    for (int64_t i = 0; i < count; i++) row[i] = output + (first + i) * pixel;
    return;
  }
  OutputPosition at(p.window.output, first);
  for (int64_t i = 0; i < count; i++, at.advance(p.window.output)) {
    int64_t place = at.batch;
    for (int d = 0; d < RANK; d++) place = place * p.output_extent[d] + p.origin[d] + at.place[d] * p.spacing[d];
    row[i] = output + place * pixel;
  }
}

// Rows of the output for a block of positions, and of the panels [panel_begin, panel_end).
template <class T>
void gather_block(const Panels<T>& panels, const PackedWeight<T>& weight, ColumnBlock<T>& block, int64_t first, int64_t count,
                  int64_t panel_begin, int64_t panel_end) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const GatherConv<T>& p = panels.p;
  const int64_t out_pixel = p.groups * p.out_channels;
  block.move_to(first, count);
  T* row[BLOCK_ROWS];
  locate_rows(p, p.output, first, count, row);
  for (int64_t group = 0; group < p.groups; group++) {
    for (int64_t depth = 0; depth == 0 || depth < weight.depth; depth += weight.step) {
      block.each_run(group, depth, std::min(depth + weight.step, weight.depth), [&](int64_t begin, int64_t end, int64_t distance, const auto& row_of) {
        const auto sees_padding = block.sees_padding(begin);
        for (int64_t panel = panel_begin, together; panel < panel_end; panel += together) {
          const bool broad = panels.is_pair(panel, panel_end), packed = block.packed() && !broad;
          together = broad ? 2 : 1;
          const int64_t column = group * p.out_channels + panels.column(panel), columns = broad ? BROAD_COLUMNS<T> : panels.columns(panel);
          const int64_t to = panels.shift(panel) * out_pixel + column;
          T start[BROAD_COLUMNS<T>] = {};
          if (p.bias != nullptr) std::memcpy(start, p.bias + column, columns * sizeof(T));
          const T* b = weight.panel(group, depth / weight.step, panel) + (begin - depth) * N;
          bool far = true;
          for (const auto& tile : broad ? block.broad_tiles() : block.tiles()) {
            T* c[TILE_ROWS];
            for (int64_t r = 0; r < tile.rows; r++) c[r] = row[tile.first + r] + to;
            if (sees_padding(tile)) {
              for (int64_t r = 0; begin == 0 && r < tile.rows; r++) copy_run(start, c[r], columns);
              continue;
            }
            const auto multiply = packed ? tile_of<T, LayoutA::packed>(tile.rows, columns, far) : tile_of<T, LayoutA::rows>(tile.rows, columns, far);
            multiply(end - begin, row_of(tile), distance, b, N, weight.panel_step, c, columns, begin == 0 ? start : nullptr, 0);
            far = false;
          }
        }
      });
    }
    const int64_t column = group * p.out_channels + panels.column(panel_begin);
    const int64_t columns = panels.column(panel_end - 1) + panels.columns(panel_end - 1) - panels.column(panel_begin);
    for (int64_t i = 0; i < count; i++) activate(p.activation, row[i] + column, columns);  // which has one phase
  }
}

// Few positions whose columns lie in place: the weights are the larger operand. Each panel of them, or two for broad tiles where that leaves
// no thread waiting for the others, is packed where it is used.
constexpr int64_t FEW_POSITIONS = 256;

template <class T>
void gather_by_panels(const GatherConv<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>;
  const Phases<T> filters({Panels<T>(p)});
  const Panels<T>& panels = filters.panels[0];
  const int64_t C = p.in_channels, total = p.batch * volume(p.window.output), phases = panels.count / panels.of_phase;
  const int64_t in_pixel = p.groups * C, out_pixel = p.groups * p.out_channels, step = filters.channels_at_a_time(), pair = phases * C * N;
  const int64_t depth = depth_at_a_time(panels);
  const auto turns = [&](int64_t panels_a_turn) {
    return panels_a_turn * ceil_div(p.groups * ceil_div(panels.of_phase, panels_a_turn), torch::stable::get_num_threads());
  };
  const int64_t together = BROAD_ROWS > 0 && 8 * turns(2) <= 9 * turns(1) ? 2 : 1, items = ceil_div(panels.of_phase, together);
  T* row[FEW_POSITIONS];
  locate_rows(p, p.output, 0, total, row);
  torch::stable::parallel_for(0, p.groups * items, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> weight(together * pair), chunk(filters.chunk());
    for (int64_t i = begin; i < end; i++) {
      const int64_t group = i / items, first = i % items * together, last = std::min(first + together, panels.of_phase);
      const Filters<T> of_group = filters.filters_of(group);
      for (int64_t some = first; some < last; some++) {
        T* const to = weight.get() + (some - first) * pair;
        for (int64_t in = 0; in < C; in += step) {
          if (filters.taps == 1)
            filters.read_panel(of_group, some, in, std::min(step, C - in), to + in * N);
          else
            filters.pack(of_group, some, in, std::min(step, C - in), chunk.get(),
                         [&](size_t, int64_t panel, int64_t k, const T* from) { copy_run(from, to + (panel / panels.of_phase * C + k) * N, N); });
        }
      }
      for (int64_t panel = first, width; panel < last; panel += width) {
        const bool broad = panels.is_pair(panel, last);
        width = broad ? 2 : 1;
        const int64_t column = group * p.out_channels + panels.column(panel), columns = broad ? BROAD_COLUMNS<T> : panels.columns(panel);
        T start[BROAD_COLUMNS<T>] = {};
        if (p.bias != nullptr) std::memcpy(start, p.bias + column, columns * sizeof(T));
        for (int64_t phase = 0; phase < phases; phase++) {
          const int64_t to = panels.shift(phase * panels.of_phase) * out_pixel + column;
          for (int64_t in = 0; in < C; in += depth) {
            const T* const b = weight.get() + (panel - first) * pair + (phase * C + in) * N;
            for_each_tile(total, broad ? BROAD_ROWS : TILE_ROWS, [&](int64_t t, int64_t rows) {
              T* c[TILE_ROWS];
              for (int64_t r = 0; r < rows; r++) c[r] = row[t + r] + to;
              tile_of<T, LayoutA::rows>(rows, columns)(std::min(depth, C - in), p.input + t * in_pixel + group * C + in, in_pixel, b, N, pair, c,
                                                       columns, in == 0 ? start : nullptr, 0);
            });
          }
          for (int64_t t = 0; t < total; t++) activate(p.activation, row[t] + to, columns);
        }
      }
    }
  });
}

// Fewer still, and weights whose output channels lie side by side: they are read where they lie, in runs of a few rows.
constexpr int64_t FEWEST_POSITIONS = 64;

template <class T>
bool weights_in_place(const GatherConv<T>& p) {
  return p.batch * volume(p.window.output) <= FEWEST_POSITIONS && sees_pixels(p.window) && !p.every_phase && p.weight.out_step == 1 && p.in_channels > 0;
}

template <class T>
void gather_in_place(const GatherConv<T>& p) {
  constexpr int64_t N = TILE_COLUMNS<T>, ROWS = 16, RUN = 32;  // of the weights: as many as the processor fetches ahead by itself; panels
  const int64_t C = p.in_channels, total = p.batch * volume(p.window.output), panels = ceil_div(p.out_channels, N);
  const int64_t pixel = p.groups * C, pitch = collide<T>(pixel) ? pixel + LINE<T> : pixel;
  const Scratch<T> copy(pitch == pixel ? 0 : total * pitch);
  if (pitch != pixel) copy_matrix(total, pixel, p.input, pixel, 1, copy.get(), pitch, 1);
  const T* const input = pitch == pixel ? p.input : copy.get();
  const int64_t chunk = std::clamp<int64_t>(panels / (4 * torch::stable::get_num_threads()), 1, RUN), chunks = ceil_div(panels, chunk);
  T* row[FEWEST_POSITIONS];
  locate_rows(p, p.output, 0, total, row);
  torch::stable::parallel_for(0, p.groups * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t group = i / chunks, first = i % chunks * chunk, last = std::min(first + chunk, panels);
      const T* const weight = p.weight.data + p.weight.start + group * p.weight.group_step;
      for (int64_t in = 0; in < C; in += ROWS) {
        for (int64_t panel = first; panel < last; panel++) {
          const int64_t out = panel * N, columns = std::min(N, p.out_channels - out), column = group * p.out_channels + out;
          const T* b = weight + in * p.weight.in_step + out;
          int64_t b_stride = p.weight.in_step;
          T start[N] = {}, edge[ROWS * N];
          if (in == 0 && p.bias != nullptr) std::memcpy(start, p.bias + column, columns * sizeof(T));
          const int64_t depth = std::min(ROWS, C - in);
          if (columns % lanes<T> != 0) {  // nothing is read beyond the weights' end
            copy_matrix(depth, columns, b, b_stride, 1, edge, N, 1);
            for (int64_t k = 0; k < depth; k++) zero_run(edge + k * N + columns, N - columns);
            b = edge;
            b_stride = N;
          }
          for_each_tile(total, TILE_ROWS, [&](int64_t t, int64_t rows) {
            T* c[TILE_ROWS];
            for (int64_t r = 0; r < rows; r++) c[r] = row[t + r] + column;
            tile_of<T, LayoutA::rows>(rows, columns)(depth, input + t * pitch + group * C + in, pitch, b, b_stride, 0, c, columns, in == 0 ? start : nullptr, 0);
          });
        }
      }
      const int64_t behind = std::min(last * N, p.out_channels);
      for (int64_t t = 0; t < total; t++) activate(p.activation, row[t] + group * p.out_channels + first * N, behind - first * N);
    }
  });
}

template <class T>
void gather_by_blocks(const Panels<T>& panels, const PackedWeight<T>& weight) {
  const GatherConv<T>& p = panels.p;
  const GatherBlocks work(p.window, p.batch * volume(p.window.output), weight.panels, columns_as<T>(p.window, p.groups, p.in_channels));
  torch::stable::parallel_for(0, work.blocks * work.cuts, 1, [&](int64_t begin, int64_t end) {
    ColumnBlock<T> block(p.window, p.groups, p.in_channels, p.input, PACKED_STRIDE<T>);
    work.each(begin, end, [&](int64_t first, int64_t count, int64_t panel_begin, int64_t panel_end) {
      gather_block(panels, weight, block, first, count, panel_begin, panel_end);
    });
  });
}

// The phases of a convolution's input gradient, or the one of a forward pass.
template <class T>
void gather_conv(const std::vector<GatherConv<T>>& phases) {
  std::vector<Panels<T>> by_blocks;
  for (const GatherConv<T>& p : phases) {
    const int64_t total = p.batch * volume(p.window.output);
    if (total == 0 || p.out_channels == 0) continue;
    if (is_depthwise<T>(p))
      depthwise::conv(p);
    else if (dot::serves(p))
      dot::conv(p);
    else if (weights_in_place(p))
      gather_in_place(p);
    else if (phases.size() == 1 && total <= FEW_POSITIONS && p.weight.packed == nullptr && p.in_channels > 0 && columns_in_place<T>(p.window, p.groups * p.in_channels))
      gather_by_panels(p);
    else
      by_blocks.emplace_back(p);
  }
  const std::vector<PackedWeight<T>> weights = pack_weights(by_blocks);
  for (size_t i = 0; i < by_blocks.size(); i++) gather_by_blocks(by_blocks[i], weights[i]);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
