// Convolutions of 16-bit numbers: sums are float, and rounded once. Some kernels take bfloat16 as it is stored, all others a copy in float.
#include "channels_last.h"
#include "convolutions.h"
#include "winograd.h"

namespace torchconv {
namespace {

template <class S>
S* elements(const Tensor& t) { return static_cast<S*>(t.data_ptr()); }

Tensor wide_like(const Tensor& t, bool channels_last) {
  const auto sizes = t.sizes();
  return empty(Ints(sizes.begin(), sizes.end()), ScalarType::Float, channels_last);
}

template <class S>
Tensor widened(const Tensor& t) {
  const bool channels_last = !t.is_contiguous() && t.dim() > 2 && is_channels_last(t);
  const Tensor from = channels_last ? t : as_contiguous(t), to = wide_like(t, channels_last);
  std::get<NarrowKernels<S>>(kernels()).widen(t.numel(), elements<const S>(from), elements<float>(to));
  return to;
}

template <class S>
std::optional<Tensor> widened(const std::optional<Tensor>& t) {
  return t ? std::optional(widened<S>(*t)) : std::nullopt;
}

template <class S>
void narrow(const Tensor& from, const Tensor& to) {
  std::get<NarrowKernels<S>>(kernels()).narrow(to.numel(), elements<const float>(from), elements<S>(to));
}

// What convolves bfloat16 as it is stored, or null.
auto gather_conv(const GatherConv<BFloat16>& p) {
  const auto& depthwise = std::get<DepthwiseKernels<BFloat16>>(kernels());
  const auto& paired = std::get<PairedKernels>(kernels());
  return depthwise.conv_serves(p) ? depthwise.conv : paired.conv_serves(p) ? paired.conv : nullptr;
}

// Whether Winograd's algorithm is asked for, or is faster than what multiplies pairs.
bool by_winograd(const char* op, const std::string& algorithm, const Problem& p, const WinogradPictures& pictures, const GatherConv<BFloat16>& gather) {
  const auto& paired = std::get<PairedKernels>(kernels());
  const bool pairs = algorithm == "auto" && paired.beats_winograd && paired.conv_serves(gather);
  return use_winograd<float>(op, algorithm, p, pictures, WINOGRAD_POSITIONS) && !pairs;
}

// The three of bfloat16 as it is stored; false where no kernel takes it.
bool conv_as_stored(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                    const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output) {
  using S = BFloat16;
  GatherConv<S> gather{p.batch, p.groups, p.in, p.out, p.window, p.window.output, {0, 0, 0}, {1, 1, 1}, nullptr, weight_view<S>(p, weight),
                       bias ? elements<const S>(*bias) : nullptr, nullptr};
  if (max_value) gather.activation = {true, static_cast<float>(*max_value)};
  const bool winograd = by_winograd(op, algorithm, p, winograd_pictures(p), gather);
  const auto convolve = gather_conv(gather);
  if (!winograd && convolve == nullptr) return false;
  const ChannelsLast<S> from(input);
  const ChannelsLastResult<S> to(output);
  gather.input = from.data();
  gather.output = to.data();
  if (winograd) {
    const Tensor wide_weight = widened<S>(weight);
    const std::optional<Tensor> wide_bias = widened<S>(bias);
    const float* const shift = wide_bias ? elements<const float>(*wide_bias) : nullptr;
    WinogradConv<S> conv = winograd_conv(p, gather.input, weight_view<float>(p, wide_weight), shift, gather.output);
    conv.activation = gather.activation;
    std::get<WinogradKernels<S>>(kernels()).conv(conv);
  } else {
    convolve(gather);
  }
  to.finish();
  return true;
}

bool conv_input_as_stored(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                          const Tensor& grad_input) {
  using S = BFloat16;
  GatherConv<S> turned{};
  turned.groups = p.groups;
  turned.in_channels = p.out;
  turned.out_channels = p.in;
  const bool winograd = by_winograd(op, algorithm, p, winograd_input_pictures(p), turned);
  const auto convolve = gather_conv(turned);
  if (!winograd && convolve == nullptr) return false;
  const ChannelsLast<S> from(grad_output);
  const ChannelsLastResult<S> to(grad_input);
  if (winograd) {
    const Tensor wide_weight = widened<S>(weight);
    std::get<WinogradKernels<S>>(kernels()).conv(winograd_conv_input(p, from.data(), weight_view<float>(p, wide_weight), to.data()));
  } else {
    const auto gather = [&](GatherConv<S> g) {
      g.input = from.data();
      g.output = to.data();
      convolve(g);
    };
    auto view = weight_view<S>(p, weight);
    std::swap(view.in_step, view.out_step);
    windows_tile(p.window) && p.in > 1 ? gather(every_phase(p, view)) : for_each_phase(p, view, gather);
  }
  to.finish();
  return true;
}

bool conv_weight_as_stored(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                           const Tensor& grad_weight) {
  using S = BFloat16;
  const auto& paired = std::get<PairedKernels>(kernels());
  const auto& depthwise = std::get<DepthwiseKernels<S>>(kernels());
  WeightGrad<S> grad{p.batch, p.groups, p.in, p.out, p.window, nullptr, nullptr, elements<S>(grad_weight), weight_view<S>(p, grad_weight)};
  const bool pairs = algorithm != "winograd" && paired.weight_grad_serves(grad);
  const bool winograd = !pairs && use_winograd<float>(op, algorithm, p, winograd_pictures(p), WINOGRAD_WEIGHT_POSITIONS);
  if (!pairs && !winograd && !depthwise.weight_grad_serves(grad)) return false;
  const ChannelsLast<S> g(grad_output);
  grad.grad_output = g.data();
  if (pairs) {
    paired.weight_grad(grad, activations<const S>(input));
    return true;
  }
  const ChannelsLast<S> x(input);
  grad.input = x.data();
  if (winograd) {
    const Tensor wide = wide_like(grad_weight, !grad_weight.is_contiguous());
    std::get<WinogradKernels<S>>(kernels()).weight_grad(winograd_conv_weight(p, x.data(), g.data(), elements<float>(wide), weight_view<float>(p, wide)));
    narrow<S>(wide, grad_weight);
  } else {
    depthwise.weight_grad(grad);
  }
  return true;
}

}  // namespace

template <class S>
void NarrowConv<S>::conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output) {
  if (std::is_same_v<S, BFloat16> && conv_as_stored(op, algorithm, p, input, weight, bias, max_value, output)) return;
  const Tensor wide = wide_like(output, !output.is_contiguous());
  CpuConv::conv(op, algorithm, p, widened<S>(input), widened<S>(weight), std::nullopt, widened<S>(bias), max_value, wide);
  narrow<S>(wide, output);
}

template <class S>
void NarrowConv<S>::conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                               const Tensor& grad_input) {
  if (std::is_same_v<S, BFloat16> && conv_input_as_stored(op, algorithm, p, grad_output, weight, grad_input)) return;
  const Tensor wide = wide_like(grad_input, !grad_input.is_contiguous());
  CpuConv::conv_input(op, algorithm, p, widened<S>(grad_output), widened<S>(weight), wide);
  narrow<S>(wide, grad_input);
}

template <class S>
void NarrowConv<S>::conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                                const Tensor& grad_weight) {
  if (std::is_same_v<S, BFloat16> && conv_weight_as_stored(op, algorithm, p, input, grad_output, grad_weight)) return;
  const Tensor wide = wide_like(grad_weight, !grad_weight.is_contiguous());
  CpuConv::conv_weight(op, algorithm, p, widened<S>(input), widened<S>(grad_output), wide);
  narrow<S>(wide, grad_weight);
}

template struct NarrowConv<BFloat16>;
template struct NarrowConv<Half>;

}  // namespace torchconv
