// The matrices of a convolution: columns of its input, and its weight.
#pragma once

#include "grid.h"

namespace torchconv::gpu {

// Entry (in, tap) of a row of either matrix: with `taps_last` in this order, else (tap, in), as channels-last tensors have it.
template <class Index>
struct Entries {
  Index in_channels, kernel[RANK];
  bool taps_last;

  Entries(int64_t in_channels, const Extent& kernel, bool taps_last)
      : in_channels(static_cast<Index>(in_channels)),
        kernel{static_cast<Index>(kernel[0]), static_cast<Index>(kernel[1]), static_cast<Index>(kernel[2])},
        taps_last(taps_last) {}

  TORCHCONV_HD Index taps() const { return volume(kernel); }
  TORCHCONV_HD Index first(Index in) const { return taps_last ? in * taps() : in; }
  TORCHCONV_HD Index tap_step() const { return taps_last ? 1 : in_channels; }
  TORCHCONV_HD Index in(Index entry) const { return taps_last ? entry / taps() : entry % in_channels; }
  TORCHCONV_HD Index tap(Index entry) const { return taps_last ? entry % taps() : entry / in_channels; }
};

// A weight's element for a filter, counted over all groups, and one of its entries.
template <class T, class Index>
struct WeightPlace {
  WeightView<T> view;
  Entries<Index> entries;
  Index out_channels;
  int64_t step[RANK];

  WeightPlace(const WeightView<T>& view, const Entries<Index>& entries, int64_t out_channels)
      : view(view), entries(entries), out_channels(static_cast<Index>(out_channels)), step{view.step[0], view.step[1], view.step[2]} {}

  TORCHCONV_HD int64_t of(Index filter, Index in, Index tap) const {
    const Index kw = tap % entries.kernel[2], kh = tap / entries.kernel[2] % entries.kernel[1], kd = tap / entries.kernel[2] / entries.kernel[1];
    return view.start + filter / out_channels * view.group_step + filter % out_channels * view.out_step + in * view.in_step + kd * step[0] +
           kh * step[1] + kw * step[2];
  }
};

// The weight as matrices [group][out][entry].
template <class T, class Index>
struct PackWeight {
  WeightPlace<T, Index> place;
  T* packed;

  TORCHCONV_HD void operator()(Index i) const {
    const Entries<Index>& entries = place.entries;
    const Index row = entries.taps() * entries.in_channels, entry = i % row;
    packed[i] = place.view.data[place.of(i / row, entries.in(entry), entries.tap(entry))];
  }
};

// Part of the column matrix: of `images` pictures from `image` on, the `positions` of the window from `first` on. Its elements lie
// where the steps say.
template <class T>
struct ColumnPart {
  Window window;
  int64_t groups, in_channels;
  Activations<const T> input;
  int64_t image, images, first, positions;
  bool taps_last;
  int64_t group_step, image_step, entry_step, position_step;
  T* columns;
};

// One thread has one channel at one position, and all of its taps. Threads side by side have neighbours in the columns' memory.
template <class T, class Index>
struct FillColumns {
  Sliding<Index> w;
  Entries<Index> entries;
  Strides<Index> strides;
  Index channels, first, positions, group_step, image_step, entry_step, position_step;
  const T* input;
  T* columns;

  explicit FillColumns(const ColumnPart<T>& p)
      : w(p.window),
        entries(p.in_channels, p.window.kernel, p.taps_last),
        strides(p.input.batch_step, p.input.channel_step, p.input.step),
        channels(static_cast<Index>(p.groups * p.in_channels)),
        first(static_cast<Index>(p.first)),
        positions(static_cast<Index>(p.positions)),
        group_step(static_cast<Index>(p.group_step)),
        image_step(static_cast<Index>(p.image_step)),
        entry_step(static_cast<Index>(p.entry_step)),
        position_step(static_cast<Index>(p.position_step)),
        input(p.input.data + p.image * p.input.batch_step),
        columns(p.columns) {}

  TORCHCONV_HD void operator()(Index i) const {
    const bool by_entry = entry_step == 1;
    const Index fast = by_entry ? channels : positions, slow = by_entry ? positions : channels;
    const Index j = i % fast, k = i / fast % slow, image = i / fast / slow;
    const Index c = by_entry ? j : k, p = by_entry ? k : j, q = first + p;
    const Index group = c / entries.in_channels, in = c % entries.in_channels;
    const Index place[RANK] = {q / w.output[2] / w.output[1] * w.stride[0] - w.padding[0],
                               q / w.output[2] % w.output[1] * w.stride[1] - w.padding[1], q % w.output[2] * w.stride[2] - w.padding[2]};
    T* to = columns + group * group_step + image * image_step + p * position_step + entries.first(in) * entry_step;
    for (Index kd = 0; kd < w.kernel[0]; kd++)
      for (Index kh = 0; kh < w.kernel[1]; kh++)
        for (Index kw = 0; kw < w.kernel[2]; kw++, to += entries.tap_step() * entry_step) {
          const Index d = place[0] + kd * w.dilation[0], h = place[1] + kh * w.dilation[1], x = place[2] + kw * w.dilation[2];
          const bool inside = 0 <= d && d < w.input[0] && 0 <= h && h < w.input[1] && 0 <= x && x < w.input[2];
          *to = inside ? input[strides.of(image, c, d, h, x)] : T(0);
        }
  }
};

// The last element of activations of these sizes.
template <class T>
int64_t last_element(const Activations<T>& a, int64_t batch, int64_t channels, const Extent& size) {
  int64_t last = (batch - 1) * a.batch_step + (channels - 1) * a.channel_step;
  for (int i = 0; i < RANK; i++) last += (size[i] - 1) * a.step[i];
  return last;
}

template <class T>
void fill_columns(const ColumnPart<T>& p) {
  const int64_t channels = p.groups * p.in_channels, count = p.images * p.positions * channels;
  const int64_t last = last_element(p.input, p.images, channels, p.window.input);
  with_index({count * volume(p.window.kernel), last, reach(p.window)}, [&](auto zero) {
    using Index = decltype(zero);
    for_each<Index>(count, FillColumns<T, Index>(p));
  });
}

}  // namespace torchconv::gpu
