// The boxes of average and adaptive pooling.
#pragma once

#include "kernels.h"

namespace torchconv {

// floor(o * input / output) to ceil((o + 1) * input / output): boxes that share the input out evenly.
inline Boxes adaptive_boxes(const Extent& input, const Extent& output) {
  Boxes boxes{input, output, {}};
  for (int i = 0; i < RANK; i++)
    for (int64_t o = 0; o < output[i]; o++)
      boxes.spans[i].push_back({o * input[i] / output[i], ((o + 1) * input[i] + output[i] - 1) / output[i]});
  return boxes;
}

// The parts of a window's positions that lie inside the input.
inline Boxes window_boxes(const Window& w) {
  Boxes boxes{w.input, w.output, {}};
  for (int i = 0; i < RANK; i++) {
    for (int64_t o = 0; o < w.output[i]; o++) {
      const int64_t start = o * w.stride[i] - w.padding[i];
      boxes.spans[i].push_back({std::max<int64_t>(start, 0), std::min(start + w.kernel[i], w.input[i])});
    }
  }
  return boxes;
}

// The boxes turned round: for each input the outputs whose boxes hold it. Spans never step back, so those are a span.
inline Boxes transposed(const Boxes& boxes) {
  Boxes result{boxes.output, boxes.input, {}};
  for (int i = 0; i < RANK; i++) {
    int64_t first = 0, last = 0;
    const auto& spans = boxes.spans[i];
    for (int64_t x = 0; x < boxes.input[i]; x++) {
      while (first < boxes.output[i] && spans[first].end <= x) first++;
      while (last < boxes.output[i] && spans[last].begin <= x) last++;
      result.spans[i].push_back({first, std::max(first, last)});
    }
  }
  return result;
}

}  // namespace torchconv
