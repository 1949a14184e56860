// Maxima over boxes (box_kernel.h), and their places.
namespace torchconv {
namespace TORCHCONV_ISA {

// One box of one channel, whose pixels lie `step` apart. Ties go to the first maximum, a NaN wins (the last one, as in torch).
template <class T>
inline void box_max_one(const Boxes& b, const BoxPosition& at, int64_t first, const T* from, int64_t step, T* output, int64_t* place) {
  wide<T> best = -std::numeric_limits<wide<T>>::infinity();
  int64_t index = first;
  for_each_pixel(b, at, [&](int64_t pixel, int64_t, int64_t, int64_t) {
    const wide<T> value = from[pixel * step];
    const bool better = (value > best) | (value != value);
    best = better ? value : best;
    index = better ? pixel : index;
  });
  *output = static_cast<T>(best);
  *place = index;
}

template <class T>
void box_max(const BoxMax<T>& p, const Boxes& b) {
  constexpr int64_t L = lanes<wide<T>>;
  // A contiguous picture is one of a single channel, as often as it has channels.
  const int64_t C = p.channels_last ? p.channels : 1, pictures = p.channels_last ? p.batch : p.batch * p.channels, inputs = volume(b.input);
  const bool counted = inputs <= std::numeric_limits<WideIndex<T>>::max();  // vectors count pixels in so many bits
  torch::stable::parallel_for(0, pictures * volume(b.output), std::max<int64_t>(1, BOX_GRAIN / (C + 1)), [&](int64_t begin, int64_t end) {
    BoxPosition at = box_position(b.output, begin);
    for (int64_t q = begin; q < end; q++, step(at, b.output)) {
      const int64_t first = (b.spans[0][at.d].begin * b.input[1] + b.spans[1][at.h].begin) * b.input[2] + b.spans[2][at.w].begin;
      const T* from = p.input + at.batch * inputs * C;
      const int64_t to = q * C;
      int64_t c = 0;
      for (; counted && c + L <= C; c += L) {
        Best<T> best(first);
        for_each_pixel(b, at, [&](int64_t pixel, int64_t, int64_t, int64_t) { best.keep(load_values(from + pixel * C + c), pixel); });
        store_values(p.output + to + c, best.value);
        store_positions<T>(p.index + to + c, best.position);
      }
      for (; c < C; c++) box_max_one(b, at, first, from + c, C, p.output + to + c, p.index + to + c);
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
