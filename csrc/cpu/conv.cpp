// The three bilinear maps of convolution. Kernels work on channels-last activations; others are transposed on the way.
#include "kernels.h"
#include "tensors.h"

#include <numeric>

namespace torchconv {
namespace {

// The channels-last elements of a tensor: its own where they lie like that, else a copy.
template <class T>
class ChannelsLast {
 public:
  explicit ChannelsLast(const Tensor& t) {
    if (is_channels_last(t)) {
      keep_ = t;
      data_ = static_cast<const T*>(t.data_ptr());
      return;
    }
    keep_ = torch::stable::contiguous(t);
    const int64_t matrix = t.size(0) * t.size(1), positions = matrix == 0 ? 0 : t.numel() / matrix;
    copy_.emplace(t.numel());
    std::get<ConvKernels<T>>(kernels()).transpose(t.size(0), t.size(1), positions, static_cast<const T*>(keep_->data_ptr()), copy_->get());
    keep_.reset();
    data_ = copy_->get();
  }
  const T* data() const { return data_; }

 private:
  std::optional<Tensor> keep_;
  std::optional<Scratch<T>> copy_;
  const T* data_;
};

// A result that the kernels write channels-last; finish() brings it into its tensor.
template <class T>
class ChannelsLastResult {
 public:
  explicit ChannelsLastResult(const Tensor& t) : tensor_(t) {
    if (!is_channels_last(t)) copy_.emplace(t.numel());
  }
  T* data() const { return copy_ ? copy_->get() : static_cast<T*>(tensor_.data_ptr()); }
  void finish() const {
    if (!copy_) return;
    const int64_t matrix = tensor_.size(0) * tensor_.size(1), positions = matrix == 0 ? 0 : tensor_.numel() / matrix;
    std::get<ConvKernels<T>>(kernels())
        .transpose(tensor_.size(0), positions, tensor_.size(1), copy_->get(), static_cast<T*>(tensor_.data_ptr()));
  }

 private:
  Tensor tensor_;
  std::optional<Scratch<T>> copy_;
};

// One convolution: (batch, groups * in, input) with (groups * out, in, kernel) gives (batch, groups * out, output).
struct Problem {
  int64_t rank, batch, groups, in, out;  // channels of one group
  Window window;

  Ints input_sizes() const { return tensor_sizes(batch, groups * in, window.input, rank); }
  Ints weight_sizes() const { return tensor_sizes(groups * out, in, window.kernel, rank); }
  Ints output_sizes() const { return tensor_sizes(batch, groups * out, window.output, rank); }
};

Problem problem(const char* op, int64_t rank, int64_t batch, int64_t in_channels, int64_t out_channels, int64_t groups,
                const Extent& input, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation) {
  TORCHCONV_CHECK(groups > 0, op, ": groups is ", groups, ", expected 1 or more");
  TORCHCONV_CHECK(in_channels % groups == 0 && out_channels % groups == 0, op, ": ", in_channels, " input and ", out_channels,
                  " output channels are not both divisible by groups=", groups);
  Problem p{rank, batch, groups, in_channels / groups, out_channels / groups, window(op, rank, input, kernel, stride, padding, dilation)};
  set_output(op, p.window);
  checked_volume(op, p.input_sizes());
  checked_volume(op, p.weight_sizes());
  checked_volume(op, p.output_sizes());
  return p;
}

Ints kernel_sizes(const char* op, const Tensor& weight) {
  spatial_rank(op, "weight", weight);
  const auto sizes = weight.sizes();
  return Ints(sizes.begin() + 2, sizes.end());
}

void expect_same_dtype(const char* op, const char* name, const Tensor& t, const Tensor& other) {
  TORCHCONV_CHECK(t.scalar_type() == other.scalar_type(), op, ": ", name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                  ", expected ", torch::headeronly::toString(other.scalar_type()));
}

// A weight tensor as the forward pass reads it.
template <class T>
WeightView<T> weight_view(const Problem& p, const Tensor& weight) {
  const auto steps = weight.strides();
  return {static_cast<const T*>(weight.data_ptr()), 0, steps[1], steps[0], p.out * steps[0], strides_of(weight)};
}

// Winograd's F(4x4, 3x3) serves 3x3 windows that move and spread by one, on pictures.
bool winograd_serves(const Problem& p) {
  const Window& w = p.window;
  return p.groups == 1 && p.in > 0 && p.out > 0 && w.kernel == Extent{1, 3, 3} && w.stride == Extent{1, 1, 1} &&
         w.dilation == Extent{1, 1, 1} && w.input[0] == 1 && w.padding[0] == 0;
}

// Where Winograd's transforms cost more than its fewer products save, or float64 is wanted exact, im2col is the better one.
constexpr int64_t WINOGRAD_CHANNELS = 32;
constexpr int64_t WINOGRAD_TILES = 8;

template <class T>
bool use_winograd(const char* op, const std::string& algorithm, const Problem& p, int64_t positions) {
  TORCHCONV_CHECK(algorithm == "auto" || algorithm == "im2col" || algorithm == "winograd", op, ": algorithm is '", algorithm,
                  "', expected auto, im2col or winograd");
  if (algorithm == "winograd")
    TORCHCONV_CHECK(winograd_serves(p), op,
                    ": algorithm 'winograd' serves 3x3 kernels of stride 1, dilation 1 and groups 1 in two dimensions; got kernel ",
                    to_string(Ints(p.window.kernel.begin(), p.window.kernel.end())), ", stride ",
                    to_string(Ints(p.window.stride.begin(), p.window.stride.end())), ", dilation ",
                    to_string(Ints(p.window.dilation.begin(), p.window.dilation.end())), ", groups ", p.groups);
  if (algorithm != "auto") return algorithm == "winograd";
  return std::is_same_v<T, float> && winograd_serves(p) && std::min(p.in, p.out) >= WINOGRAD_CHANNELS &&
         positions >= 16 * WINOGRAD_TILES;
}

Tensor conv(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints stride, Ints padding, Ints dilation, int64_t groups,
            std::string algorithm, bool channels_last) {
  const char* op = "conv";
  expect_cpu(op, "input", input);
  expect_cpu(op, "weight", weight);
  expect_same_dtype(op, "weight", weight, input);
  const int64_t rank = spatial_rank(op, "input", input);
  const Problem p = problem(op, rank, input.size(0), input.size(1), weight.size(0), groups, spatial_sizes(op, "input", input),
                            kernel_sizes(op, weight), stride, padding, dilation);
  expect_sizes(op, "weight", weight, p.weight_sizes());
  if (bias) {
    expect_cpu(op, "bias", *bias);
    expect_same_dtype(op, "bias", *bias, input);
    expect_sizes(op, "bias", *bias, {p.groups * p.out});
    bias = torch::stable::contiguous(*bias);
  }
  expect_format(op, p.output_sizes(), channels_last);
  Tensor output = empty(input, p.output_sizes(), channels_last);
  if (output.numel() == 0) return output;
  dispatch<float, double>(op, input, [&](auto zero) {
    using T = decltype(zero);
    const Window& w = p.window;
    const ChannelsLast<T> from(input);
    const ChannelsLastResult<T> to(output);
    const T* shift = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    if (use_winograd<T>(op, algorithm, p, p.batch * volume(w.output)))
      kernel.winograd_conv({p.batch, p.in, p.out, w.input[1], w.input[2], w.output[1], w.output[2], w.padding[1], w.padding[2],
                            from.data(), weight_view<T>(p, weight), shift, to.data()});
    else
      kernel.gather_conv({p.batch, p.groups, p.in, p.out, w, w.output, Extent{0, 0, 0}, Extent{1, 1, 1}, from.data(),
                          weight_view<T>(p, weight), shift, to.data()});
    to.finish();
  });
  return output;
}

// The input gradient at i sums grad_output[o] * weight[k] over all o * stride - padding + k * dilation == i. For each residue
// ("phase") of i modulo the stride, the taps that satisfy it are every (stride / g)-th, g = gcd(stride, dilation), and
// consecutive ones meet outputs dilation / g apart: an ordinary convolution of stride 1 over grad_output, taps reversed.
struct Phase {
  int64_t count, taps, first_tap, tap_step, padding, dilation;
};

Phase phase_of(const Window& w, int i, int64_t residue) {
  const int64_t s = w.stride[i], d = w.dilation[i], g = std::gcd(s, d), reach = residue + w.padding[i];
  Phase phase{w.input[i] > residue ? (w.input[i] - residue - 1) / s + 1 : 0, 0, 0, -(s / g), 0, d / g};
  if (reach % g != 0) return phase;
  int64_t first = 0;
  while (first < std::min(s / g, w.kernel[i]) && (reach - first * d) % s != 0) first++;
  if (first == std::min(s / g, w.kernel[i])) return phase;
  phase.taps = (w.kernel[i] - 1 - first) / (s / g) + 1;
  phase.first_tap = first + (phase.taps - 1) * (s / g);
  phase.padding = (phase.taps - 1) * phase.dilation - (reach - first * d) / s;
  return phase;
}

template <class T>
void conv_input_phases(const Problem& p, const T* grad_output, const WeightView<T>& weight, T* grad_input) {
  const Window& w = p.window;
  const auto residues = [&](int i) { return std::min(w.stride[i], std::max<int64_t>(w.input[i], 1)); };
  for (int64_t r0 = 0; r0 < residues(0); r0++) {
    for (int64_t r1 = 0; r1 < residues(1); r1++) {
      for (int64_t r2 = 0; r2 < residues(2); r2++) {
        const Phase phase[RANK] = {phase_of(w, 0, r0), phase_of(w, 1, r1), phase_of(w, 2, r2)};
        GatherConv<T> g{p.batch, p.groups, p.out, p.in, {}, w.input, {r0, r1, r2}, w.stride, grad_output, weight, nullptr, grad_input};
        for (int i = 0; i < RANK; i++) {
          g.window.input[i] = w.output[i];
          g.window.output[i] = phase[i].count;
          g.window.kernel[i] = phase[i].taps;
          g.window.stride[i] = 1;
          g.window.padding[i] = phase[i].padding;
          g.window.dilation[i] = phase[i].dilation;
          g.weight.start += phase[i].first_tap * weight.step[i];
          g.weight.step[i] = phase[i].tap_step * weight.step[i];
        }
        std::get<ConvKernels<T>>(kernels()).gather_conv(g);
      }
    }
  }
}

Tensor conv_input(Tensor grad_output, Tensor weight, Ints input_size, Ints stride, Ints padding, Ints dilation, int64_t groups,
                  std::string algorithm, bool channels_last) {
  const char* op = "conv_input";
  expect_cpu(op, "grad_output", grad_output);
  expect_cpu(op, "weight", weight);
  expect_same_dtype(op, "weight", weight, grad_output);
  const int64_t rank = spatial_rank(op, "grad_output", grad_output);
  TORCHCONV_CHECK(groups > 0, op, ": groups is ", groups, ", expected 1 or more");
  const int64_t in_channels = checked_volume(op, {weight.size(1), groups});
  const Problem p = problem(op, rank, grad_output.size(0), in_channels, weight.size(0), groups, extent(op, "input_size", input_size, rank, 0, 1),
                            kernel_sizes(op, weight), stride, padding, dilation);
  expect_sizes(op, "grad_output", grad_output, p.output_sizes());
  expect_format(op, p.input_sizes(), channels_last);
  Tensor grad_input = empty(grad_output, p.input_sizes(), channels_last);
  if (grad_input.numel() == 0) return grad_input;
  dispatch<float, double>(op, grad_output, [&](auto zero) {
    using T = decltype(zero);
    const Window& w = p.window;
    const ChannelsLast<T> from(grad_output);
    const ChannelsLastResult<T> to(grad_input);
    WeightView<T> view = weight_view<T>(p, weight);
    std::swap(view.in_step, view.out_step);
    if (use_winograd<T>(op, algorithm, p, p.batch * volume(w.input))) {
      // The same convolution with the taps turned around and the padding's complement.
      for (int i = 1; i < RANK; i++) {
        view.start += 2 * view.step[i];
        view.step[i] = -view.step[i];
      }
      std::get<ConvKernels<T>>(kernels()).winograd_conv({p.batch, p.out, p.in, w.output[1], w.output[2], w.input[1], w.input[2],
                                                         2 - w.padding[1], 2 - w.padding[2], from.data(), view, nullptr, to.data()});
    } else {
      conv_input_phases(p, from.data(), view, to.data());
    }
    to.finish();
  });
  return grad_input;
}

Tensor conv_weight(Tensor input, Tensor grad_output, Ints kernel_size, Ints stride, Ints padding, Ints dilation, int64_t groups,
                   bool channels_last) {
  const char* op = "conv_weight";
  expect_cpu(op, "input", input);
  expect_cpu(op, "grad_output", grad_output);
  expect_same_dtype(op, "grad_output", grad_output, input);
  const int64_t rank = spatial_rank(op, "input", input);
  spatial_rank(op, "grad_output", grad_output);
  const Problem p = problem(op, rank, input.size(0), input.size(1), grad_output.size(1), groups, spatial_sizes(op, "input", input), kernel_size,
                            stride, padding, dilation);
  expect_sizes(op, "grad_output", grad_output, p.output_sizes());
  expect_format(op, p.weight_sizes(), channels_last);
  Tensor grad_weight = empty(input, p.weight_sizes(), channels_last);
  if (grad_weight.numel() == 0) return grad_weight;
  dispatch<float, double>(op, input, [&](auto zero) {
    using T = decltype(zero);
    const ChannelsLast<T> x(input), g(grad_output);
    std::get<ConvKernels<T>>(kernels()).weight_grad({p.batch, p.groups, p.in, p.out, p.window, x.data(), g.data(),
                                                     static_cast<T*>(grad_weight.data_ptr()), weight_view<T>(p, grad_weight)});
  });
  return grad_weight;
}

}  // namespace
}  // namespace torchconv

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("conv", TORCH_BOX(&torchconv::conv));
  m.impl("conv_input", TORCH_BOX(&torchconv::conv_input));
  m.impl("conv_weight", TORCH_BOX(&torchconv::conv_weight));
}
