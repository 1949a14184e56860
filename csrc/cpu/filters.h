// Weights in the order that the products want them: output channels side by side, whatever the order in memory.
namespace torchconv {
namespace TORCHCONV_ISA {

// Element (tap, in, out) of a weight lies at data + offset[tap] + in * in_step + out * out_step.
template <class T>
struct Filters {
  const T* data;
  int64_t in_channels, in_step, out_step;
  std::vector<int64_t> offset;

  Filters(const WeightView<T>& v, const Extent& kernel, int64_t group, int64_t ins)
      : data(v.data + group * v.group_step), in_channels(ins), in_step(v.in_step), out_step(v.out_step) {
    add(v, kernel);
  }
  // More taps of the same filters.
  void add(const WeightView<T>& v, const Extent& kernel) {
    for (int64_t kd = 0; kd < kernel[0]; kd++)
      for (int64_t kh = 0; kh < kernel[1]; kh++)
        for (int64_t kw = 0; kw < kernel[2]; kw++) offset.push_back(v.start + kd * v.step[0] + kh * v.step[1] + kw * v.step[2]);
  }
  int64_t taps() const { return static_cast<int64_t>(offset.size()); }

  // to[in][tap][out], `width` apart, for `ins` channels from `in` on and `outs` from `out` on. A filter's elements are near each
  // other, filters may be pages apart: it is read along what is near.
  void read(int64_t in, int64_t ins, int64_t out, int64_t outs, T* to, int64_t width) const {
    const T* from = data + in * in_step + out * out_step;
    const int64_t count = taps();
    if (count == 0) return;
    const auto [low, high] = std::minmax_element(offset.begin(), offset.end());
    const int64_t span = *high - *low + 1;
    bool run = true, descending = ins == 1;  // the latter as a flipped kernel has them
    for (int64_t tap = 0; tap < count; tap++) {
      run = run && offset[tap] == offset[0] + tap;
      descending = descending && offset[tap] == offset[0] - tap;
    }
    if (run && in_step == count) return transpose_matrix(outs, ins * count, from + *low, out_step, to, width);
    if (descending) return transpose_matrix(outs, count, from + *low, out_step, to + (count - 1) * width, -width);
    const bool near = in_step >= std::max(out_step, INT64_C(1) * lanes<T>) && 3 * ceil_div(span, lanes<T>) <= count;
    if (in_step == 1 || out_step == 1) {
      for (int64_t tap = 0; tap < count; tap++) copy_matrix(ins, outs, from + offset[tap], in_step, out_step, to + tap * width, count * width, 1);
      return;
    }
    for (int64_t i = 0; i < ins; i++) {
      // What is read beyond a filter's last tap is the next filter's first: not so for the last one of all.
      if (near && in + i + 1 < in_channels)
        read_by_taps(from + i * in_step, *low, span, outs, to + i * count * width, width);
      else if (run)
        transpose_matrix(outs, count, from + i * in_step + *low, out_step, to + i * count * width, width);
      else
        for (int64_t tap = 0; tap < count; tap++)
          for (int64_t o = 0; o < outs; o++) to[(i * count + tap) * width + o] = from[i * in_step + offset[tap] + o * out_step];
    }
  }

  // Fetches ahead what read() will: short runs of many filters, which is not what a processor guesses. Of what shares a cache line, one
  // element is enough.
  void prefetch(int64_t in, int64_t ins, int64_t out, int64_t outs) const {
    const T* const from = data + in * in_step + out * out_step;
    const auto [low, high] = std::minmax_element(offset.begin(), offset.end());
    const bool near = *high - *low < LINE<T> && std::min(in_step, out_step) <= LINE<T>;
    const auto a_line = [](int64_t step) { return std::max<int64_t>(1, LINE<T> / std::max<int64_t>(1, step)); };
    const int64_t ins_a_line = a_line(in_step), outs_a_line = a_line(out_step);
    for (int64_t o = 0; o < outs; o += outs_a_line) {
      for (int64_t i = 0; i < ins; i += ins_a_line) {
        const T* const filter = from + o * out_step + i * in_step;
        if (near)
          __builtin_prefetch(filter + *low, 0, 3);
        else
          for (const int64_t tap : offset) __builtin_prefetch(filter + tap, 0, 3);
      }
    }
  }

 private:
  // One input channel, whose taps are near each other: transposed by whole squares of a span of memory, of which the taps' rows are kept.
  void read_by_taps(const T* from, int64_t low, int64_t span, int64_t outs, T* to, int64_t width) const {
    constexpr int64_t L = lanes<T>;
    for (int64_t o = 0; o < outs; o += L) {
      for (int64_t first = low; first < low + span; first += L) {
        T square[L * L] = {};
        const int64_t some = std::min(L, outs - o), elements = std::min(L, low + span - first);
        const T* const corner = from + o * out_step + first;
        if (some == L)
          transpose_square(corner, out_step, square, L);
        else
          for (int64_t i = 0; i < elements; i++)
            for (int64_t j = 0; j < some; j++) square[i * L + j] = corner[j * out_step + i];
        for (int64_t tap = 0; tap < taps(); tap++)
          if (offset[tap] >= first && offset[tap] < first + L) copy_run(square + (offset[tap] - first) * L, to + tap * width + o, some);
      }
    }
  }
};

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
