// The three bilinear maps of convolution. Kernels work on channels-last activations; others are transposed on the way.
#include "kernels.h"
#include "phases.h"
#include "scratch.h"
#include "tensors.h"

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
    keep_ = as_contiguous(t);
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

// A tensor's elements where they are.
template <class T>
Activations<T> activations(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.strides()[0], t.strides()[1], strides_of(t)};
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
  if (algorithm != "auto") return algorithm == "winograd" && positions > 0;
  return std::is_same_v<T, float> && winograd_serves(p) && std::min(p.in, p.out) >= WINOGRAD_CHANNELS &&
         positions >= 16 * WINOGRAD_TILES;
}

// Whether the kernel covers the input at once, and `other` lies in the order of the result. The taps of a channel are then channels
// like others, and the convolution is a product of matrices; in channels-last order those of one group aren't side by side.
bool is_product(const Problem& p, const Tensor& other, bool channels_last) {
  const Window& w = p.window;
  const bool covers = w.kernel == w.input && w.dilation == Extent{1, 1, 1} && w.padding == Extent{0, 0, 0};
  return covers && (channels_last ? p.groups == 1 && is_channels_last(other) : other.is_contiguous());
}

Problem as_product(const Problem& p) {
  const Extent one{1, 1, 1};
  return {p.rank, p.batch, p.groups, p.in * volume(p.window.kernel), p.out, {one, one, one, one, {0, 0, 0}, one}};
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
    bias = as_contiguous(*bias);
  }
  expect_format(op, p.output_sizes(), channels_last);
  Tensor output = empty(input, p.output_sizes(), channels_last);
  if (output.numel() == 0) return output;
  dispatch<float, double>(op, input, [&](auto zero) {
    using T = decltype(zero);
    const Window& w = p.window;
    const T* shift = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    GatherConv<T> gather{p.batch, p.groups, p.in, p.out, w, w.output, {0, 0, 0}, {1, 1, 1}, nullptr, weight_view<T>(p, weight), shift, nullptr};
    const bool winograd = use_winograd<T>(op, algorithm, p, p.batch * volume(w.output));
    if (!winograd && kernel.row_conv_serves(gather)) return kernel.row_conv(gather, activations<const T>(input), activations<T>(output));
    if (!winograd && kernel.plane_conv_serves(gather, is_channels_last(input)))
      return kernel.plane_conv(gather, activations<const T>(input), activations<T>(output));
    if (!winograd && kernel.pointwise_conv_serves(gather, is_channels_last(input)))
      return kernel.pointwise_conv(gather, activations<const T>(input), activations<T>(output));
    const ChannelsLast<T> from(input);
    const ChannelsLastResult<T> to(output);
    gather.input = from.data();
    gather.output = to.data();
    if (winograd)
      kernel.winograd_conv({{p.batch, p.in, p.out, w.input[1], w.input[2], w.output[1], w.output[2], w.padding[1], w.padding[2]},
                            gather.input, gather.weight, shift, gather.output});
    else
      kernel.gather_conv(gather);
    to.finish();
  });
  return output;
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
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    WeightView<T> view = weight_view<T>(p, weight);
    std::swap(view.in_step, view.out_step);
    if (is_product(p, weight, channels_last)) {
      const ChannelsLast<T> from(grad_output);
      view.out_step = 1;
      return for_each_phase(as_product(p), view, [&](GatherConv<T>& g) {
        g.input = from.data();
        g.output = static_cast<T*>(grad_input.data_ptr());
        kernel.gather_conv(g);
      });
    }
    const bool winograd = use_winograd<T>(op, algorithm, p, p.batch * volume(w.input));
    const bool nhwc = is_channels_last(grad_output);
    for (const auto& [serves, run] : {std::pair(kernel.plane_conv_serves, kernel.plane_conv), std::pair(kernel.pointwise_conv_serves, kernel.pointwise_conv)}) {
      bool all = !winograd;
      if (all) for_each_phase(p, view, [&, serves = serves](const GatherConv<T>& g) { all = all && serves(g, nhwc); });
      if (!all) continue;
      const auto from = activations<const T>(grad_output);
      const auto to = activations<T>(grad_input);
      return for_each_phase(p, view, [&, run = run](const GatherConv<T>& g) { run(g, from, to); });
    }
    const ChannelsLast<T> from(grad_output);
    const ChannelsLastResult<T> to(grad_input);
    if (winograd) {
      // The same convolution with the taps turned around and the padding's complement.
      for (int i = 1; i < RANK; i++) {
        view.start += 2 * view.step[i];
        view.step[i] = -view.step[i];
      }
      kernel.winograd_conv({{p.batch, p.out, p.in, w.output[1], w.output[2], w.input[1], w.input[2],
                            2 - w.padding[1], 2 - w.padding[2]}, from.data(), view, nullptr, to.data()});
    } else {
      for_each_phase(p, view, [&](GatherConv<T>& g) {
        g.input = from.data();
        g.output = to.data();
        kernel.gather_conv(g);
      });
    }
    to.finish();
  });
  return grad_input;
}

Tensor conv_weight(Tensor input, Tensor grad_output, Ints kernel_size, Ints stride, Ints padding, Ints dilation, int64_t groups,
                   std::string algorithm, bool channels_last) {
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
    const Window& w = p.window;
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    WeightGrad<T> grad{p.batch, p.groups, p.in, p.out, p.window, nullptr, nullptr, static_cast<T*>(grad_weight.data_ptr()),
                       weight_view<T>(p, grad_weight)};
    if (is_product(p, input, channels_last)) {
      const ChannelsLast<T> g(grad_output);
      const Problem product = as_product(p);
      return kernel.weight_grad({p.batch, p.groups, product.in, p.out, product.window, static_cast<const T*>(input.data_ptr()), g.data(),
                                 grad.grad_weight, {nullptr, 0, 1, product.in, p.out * product.in, {0, 0, 0}}});
    }
    const bool winograd = use_winograd<T>(op, algorithm, p, p.batch * volume(w.output));
    if (!winograd && kernel.plane_weight_grad_serves(grad, is_channels_last(input)))
      return kernel.plane_weight_grad(grad, activations<const T>(input), activations<const T>(grad_output));
    const ChannelsLast<T> x(input), g(grad_output);
    grad.input = x.data();
    grad.grad_output = g.data();
    if (winograd)
      return kernel.winograd_weight_grad({{p.batch, p.in, p.out, w.input[1], w.input[2], w.output[1], w.output[2], w.padding[1], w.padding[2]},
                                          grad.input, grad.grad_output, grad.grad_weight, grad.view});
    kernel.weight_grad(grad);
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
