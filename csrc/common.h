// Geometry of a sliding window, and the checks that keep an op called with hostile arguments inside its buffers.
// Shared by all kernels. Everything is written for three spatial dimensions; one and two are three with leading ones.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace torchconv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

// A string among an op's arguments.
struct Text : std::string {
  using std::string::string;
};

#if defined(__CUDACC__)
#define TORCHCONV_HD __host__ __device__ inline
#else
#define TORCHCONV_HD inline
#endif

constexpr int RANK = 3;
using Extent = std::array<int64_t, RANK>;  // depth, height, width

inline int64_t volume(const Extent& e) { return e[0] * e[1] * e[2]; }

// A window of `kernel` taps, `dilation` apart, that moves over `input` in steps of `stride`, from -padding on.
// Output position o and tap k meet the input at  o * stride - padding + k * dilation.
struct Window {
  Extent input{}, output{}, kernel{}, stride{}, padding{}, dilation{};
};

// The same as plain arrays of the index type that a GPU is fast with.
template <class Index>
struct Sliding {
  Index input[RANK], output[RANK], kernel[RANK], stride[RANK], padding[RANK], dilation[RANK];

  explicit Sliding(const Window& w) {
    for (int i = 0; i < RANK; i++) {
      input[i] = static_cast<Index>(w.input[i]);
      output[i] = static_cast<Index>(w.output[i]);
      kernel[i] = static_cast<Index>(w.kernel[i]);
      stride[i] = static_cast<Index>(w.stride[i]);
      padding[i] = static_cast<Index>(w.padding[i]);
      dilation[i] = static_cast<Index>(w.dilation[i]);
    }
  }
};

template <class Index>
TORCHCONV_HD Index volume(const Index (&e)[RANK]) { return e[0] * e[1] * e[2]; }

// Where something begins and ends.
template <class Index>
struct SpanOf {
  Index begin, end;
};
using Span = SpanOf<int64_t>;

template <class Index>
TORCHCONV_HD Index smaller(Index a, Index b) { return a < b ? a : b; }
template <class Index>
TORCHCONV_HD Index larger(Index a, Index b) { return a > b ? a : b; }

// The inputs under position o of a window of dilation 1.
template <class Index>
TORCHCONV_HD SpanOf<Index> inputs_under(const Sliding<Index>& w, int i, Index o) {
  const Index start = o * w.stride[i] - w.padding[i];
  return {larger<Index>(start, 0), smaller<Index>(start + w.kernel[i], w.input[i])};
}

// The positions whose window spans input x. With dilation, x is under a tap of one only where tap * dilation is
// x + padding - position * stride.
template <class Index>
TORCHCONV_HD SpanOf<Index> positions_over(const Sliding<Index>& w, int i, Index x) {
  const Index reach = x + w.padding[i], first = reach - w.dilation[i] * (w.kernel[i] - 1);
  const Index begin = first > 0 ? (first + w.stride[i] - 1) / w.stride[i] : 0;
  return {begin, larger(begin, smaller<Index>(reach / w.stride[i] + 1, w.output[i]))};
}

// The tap of the window at position o, one of those, that is over input x; -1 where dilation leaves it out.
template <class Index>
TORCHCONV_HD Index tap_over(const Sliding<Index>& w, int i, Index x, Index o) {
  const Index reach = x + w.padding[i] - o * w.stride[i];
  if (w.dilation[i] == 1) return reach;
  return reach % w.dilation[i] == 0 ? reach / w.dilation[i] : -1;
}

// Part o of `from` inputs that `to` boxes share out evenly: floor(o * from / to) to ceil((o + 1) * from / to). The boxes that hold
// an input are found by the same rule with `from` and `to` changed round: o * from / to < x + 1 is o < (x + 1) * to / from.
template <class Index>
TORCHCONV_HD SpanOf<Index> share(Index o, Index from, Index to) {
  const int64_t part = o;
  return {static_cast<Index>(part * from / to), static_cast<Index>(((part + 1) * from + to - 1) / to)};
}

#define TORCHCONV_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

// Bound of every size and argument, so that sums and products of two of them never leave int64.
constexpr int64_t LARGEST = INT64_C(1) << 31;

inline Extent extent(const char* op, const char* name, const Ints& values, int64_t rank, int64_t smallest, int64_t fill) {
  TORCHCONV_CHECK(static_cast<int64_t>(values.size()) == rank, op, ": ", name, " has ", values.size(), " values, expected ", rank);
  Extent result{fill, fill, fill};
  for (int64_t i = 0; i < rank; i++) {
    TORCHCONV_CHECK(values[i] >= smallest && values[i] < LARGEST, op, ": ", name, " is ", values[i], ", expected ", smallest,
                    " or more, and less than 2**31");
    result[RANK - rank + i] = values[i];
  }
  return result;
}

// The number of elements of a tensor of these sizes; an error where it can't be allocated.
inline int64_t checked_volume(const char* op, const Ints& sizes) {
  int64_t total = 1;
  bool overflow = false, empty = false;
  for (int64_t size : sizes) {
    TORCHCONV_CHECK(size >= 0, op, ": a tensor with a negative size (", size, ") was asked for");
    empty = empty || size == 0;
    overflow = overflow || (size != 0 && __builtin_mul_overflow(total, size, &total));
  }
  TORCHCONV_CHECK(empty || (!overflow && total <= INT64_MAX / 16), op, ": a tensor of more elements than can be addressed was asked for");
  return empty ? 0 : total;
}

inline int64_t spatial_rank(const char* op, const char* name, const Tensor& t) {
  const int64_t rank = t.dim() - 2;
  TORCHCONV_CHECK(1 <= rank && rank <= RANK, op, ": ", name, " has ", t.dim(), " dimensions, expected 3 to 5 (batch, channels, and 1 to 3 spatial)");
  return rank;
}

inline Extent spatial_sizes(const char* op, const char* name, const Tensor& t) {
  const auto sizes = t.sizes();
  Ints values(sizes.begin() + 2, sizes.end());
  return extent(op, name, values, spatial_rank(op, name, t), 0, 1);
}

// The window without its output size.
inline Window window(const char* op, int64_t rank, const Extent& input, const Ints& kernel, const Ints& stride, const Ints& padding,
                     const Ints& dilation) {
  Window w;
  w.input = input;
  w.kernel = extent(op, "kernel_size", kernel, rank, 1, 1);
  w.stride = extent(op, "stride", stride, rank, 1, 1);
  w.padding = extent(op, "padding", padding, rank, 0, 0);
  w.dilation = extent(op, "dilation", dilation, rank, 1, 1);
  return w;
}

// Number of positions of the window along dimension i (Dumoulin & Visin 2016, arXiv:1603.07285, relationship 15); ceil_mode
// counts those, too, that jut out by less than a stride.
inline int64_t positions(const char* op, const Window& w, int i, bool ceil_mode = false) {
  const int64_t span = w.dilation[i] * (w.kernel[i] - 1) + 1;
  const int64_t room = w.input[i] + 2 * w.padding[i] - span;
  TORCHCONV_CHECK(room >= (ceil_mode ? 1 - w.stride[i] : 0), op, ": the kernel spans ", span, " positions, more than the padded input's ", w.input[i] + 2 * w.padding[i]);
  int64_t count = (room + (ceil_mode ? w.stride[i] - 1 : 0)) / w.stride[i] + 1;
  // A window may start in the padding before the input, but not in the padding after it.
  if (ceil_mode && (count - 1) * w.stride[i] >= w.input[i] + w.padding[i]) count--;
  return count;
}

inline void set_output(const char* op, Window& w, bool ceil_mode = false) {
  for (int i = 0; i < RANK; i++) w.output[i] = positions(op, w, i, ceil_mode);
}

// Sizes of a tensor (batch, channels, spatial...) of `rank` spatial dimensions.
inline Ints tensor_sizes(int64_t batch, int64_t channels, const Extent& spatial, int64_t rank) {
  Ints sizes{batch, channels};
  sizes.insert(sizes.end(), spatial.begin() + (RANK - rank), spatial.end());
  return sizes;
}

inline std::string to_string(const Ints& values) {
  std::string text = "(";
  for (size_t i = 0; i < values.size(); i++) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + ")";
}

inline void expect_positive(const char* op, const char* name, double value) {
  TORCHCONV_CHECK(value > 0, op, ": ", name, " is ", value, ", expected more than 0");
}

inline void expect_sizes(const char* op, const char* name, const Tensor& t, const Ints& expected) {
  const auto sizes = t.sizes();
  const Ints got(sizes.begin(), sizes.end());
  TORCHCONV_CHECK(got == expected, op, ": ", name, " has shape ", to_string(got), ", expected ", to_string(expected));
}

}  // namespace torchconv

// For std::string torch itself has one, which up to 2.13 leaks a copy in each call (pytorch#191340): a few bytes, which break up the heap.
template <>
struct torch::stable::detail::ToImpl<torchconv::Text> {
  static torchconv::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    const char* data;
    size_t length;
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    const torchconv::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
