// The boxes of average and adaptive pooling, and what their sums are divided by, as rules that any device can follow.
#pragma once

#include <optional>

#include "common.h"

namespace torchconv {

// Which inputs each output's box covers: [begin, end) along each dimension, never empty unless `turned`, which asks for the outputs
// whose boxes hold an input.
template <class Index>
struct BoxRuleOf {
  Sliding<Index> window;  // of adaptive pooling the sizes only
  bool adaptive, turned;

  TORCHCONV_HD Index inputs(int i) const { return turned ? window.output[i] : window.input[i]; }
  TORCHCONV_HD Index outputs(int i) const { return turned ? window.input[i] : window.output[i]; }
  TORCHCONV_HD SpanOf<Index> span(int i, Index o) const {
    if (adaptive) return share(o, inputs(i), outputs(i));
    return turned ? positions_over(window, i, o) : inputs_under(window, i, o);
  }
};

// Adaptive pooling knows no window, but shares its input out.
inline Window sizes_only(const Extent& input, const Extent& output) {
  Window w;
  w.input = input;
  w.output = output;
  return w;
}

struct BoxRule {
  Window window;
  bool adaptive, turned;

  Extent inputs() const { return turned ? window.output : window.input; }
  Extent outputs() const { return turned ? window.input : window.output; }
  template <class Index>
  BoxRuleOf<Index> of() const {
    return {Sliding<Index>(window), adaptive, turned};
  }
};

// Where a sum at pooled position (d, h, w) is divided by the product of three counts.
template <class Index>
struct DivisorRuleOf {
  BoxRuleOf<Index> boxes;  // not turned
  bool count_padding, overridden;
  int64_t divisor_override;

  TORCHCONV_HD int64_t of(int i, Index o) const {
    if (overridden) return i == 0 ? divisor_override : 1;
    if (!count_padding) {
      const SpanOf<Index> span = boxes.span(i, o);
      return span.end - span.begin;
    }
    const auto& w = boxes.window;
    const Index start = o * w.stride[i] - w.padding[i];  // padding counts, what lies behind it (ceil_mode) does not
    return smaller<Index>(start + w.kernel[i], w.input[i] + w.padding[i]) - start;
  }
};

struct DivisorRule {
  BoxRule boxes;
  bool count_padding;
  std::optional<int64_t> divisor_override;

  template <class Index>
  DivisorRuleOf<Index> of() const {
    return {boxes.template of<Index>(), count_padding, divisor_override.has_value(), divisor_override.value_or(1)};
  }
};

}  // namespace torchconv
