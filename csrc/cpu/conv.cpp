// The three bilinear maps of convolution. Kernels work on channels-last activations; others are transposed on the way.
#include "channels_last.h"
#include "convolutions.h"
#include "packed_weight.h"
#include "winograd.h"

namespace torchconv {
namespace {

// A panel of weights holds so many. All phases of a strided convolution at once are fast if each fills one.
constexpr int64_t PANEL_CHANNELS = 32;

// A convolution without the outermost taps that meet nothing but padding, of which a wide dilation has some.
struct Trimmed {
  Problem problem;
  Extent first{};  // of the taps that are left

  explicit Trimmed(const Problem& given) : problem(given) {
    for (int i = 0; i < RANK; i++) {
      Window& w = problem.window;
      const auto meets = [&](int64_t tap) {
        const int64_t place = tap * w.dilation[i] - w.padding[i];
        return place < w.input[i] && place + (w.output[i] - 1) * w.stride[i] >= 0;
      };
      int64_t last = w.kernel[i] - 1;
      while (first[i] < last && !meets(first[i])) first[i]++;
      while (last > first[i] && !meets(last)) last--;
      w.kernel[i] = last - first[i] + 1;
      w.padding[i] -= first[i] * w.dilation[i];
    }
  }
  template <class T>
  WeightView<T> view(const Tensor& weight) const {
    WeightView<T> of = weight_view<T>(problem, weight);
    for (int i = 0; i < RANK; i++) of.start += first[i] * of.step[i];
    return of;
  }
};

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

bool is_narrow(const Tensor& t) { return t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Half; }

}  // namespace

void CpuConv::conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                   const std::optional<Tensor>& packed, const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output) {
  TORCHCONV_CHECK(!packed || !is_narrow(input), op, ": packed is for float32 and float64");
  if (is_narrow(input))
    return dispatch<BFloat16, Half>(op, input, [&](auto zero) { NarrowConv<decltype(zero)>::conv(op, algorithm, p, input, weight, bias, max_value, output); });
  dispatch<float, double>(op, input, [&](auto zero) {
    using T = decltype(zero);
    const T* shift = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    const Trimmed trimmed(p);
    const Window& w = trimmed.problem.window;
    GatherConv<T> gather{p.batch, p.groups, p.in, p.out, w, w.output, {0, 0, 0}, {1, 1, 1}, nullptr, trimmed.view<T>(weight), shift, nullptr};
    if (max_value) gather.activation = {true, static_cast<T>(*max_value)};
    const T* const panels = packed_weight<T>(op, p, packed);
    if (w.kernel == p.window.kernel) gather.weight.packed = panels;
    const bool winograd = use_winograd<T>(op, algorithm, p, winograd_pictures(p), WINOGRAD_POSITIONS);
    if (!winograd && kernel.row_conv_serves(gather)) return kernel.row_conv(gather, activations<const T>(input), activations<T>(output));
    if (!winograd && kernel.plane_conv_serves(gather, is_channels_last(input)))
      return kernel.plane_conv(gather, activations<const T>(input), activations<T>(output));
    if (!winograd && kernel.pointwise_conv_serves(gather, is_channels_last(input)))
      return kernel.pointwise_conv(gather, activations<const T>(input), activations<T>(output));
    const ChannelsLast<T> from(input);
    const ChannelsLastResult<T> to(output);
    gather.input = from.data();
    gather.output = to.data();
    if (winograd) {
      WeightView<T> view = weight_view<T>(p, weight);
      view.packed = panels;
      WinogradConv<T> conv = winograd_conv(p, gather.input, view, shift, gather.output);
      conv.activation = gather.activation;
      std::get<WinogradKernels<T>>(kernels()).conv(conv);
    } else {
      kernel.gather_conv({gather});
    }
    to.finish();
  });
}

void CpuConv::conv_input(const char* op, const std::string& algorithm, const Problem& given, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
  if (is_narrow(grad_output))
    return dispatch<BFloat16, Half>(op, grad_output, [&](auto zero) { NarrowConv<decltype(zero)>::conv_input(op, algorithm, given, grad_output, weight, grad_input); });
  const bool channels_last = !grad_input.is_contiguous();
  dispatch<float, double>(op, grad_output, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    const bool winograd = use_winograd<T>(op, algorithm, given, winograd_input_pictures(given), WINOGRAD_POSITIONS);
    const Trimmed trimmed(given);
    const Problem& p = trimmed.problem;
    const Window& w = p.window;
    WeightView<T> view = trimmed.view<T>(weight);
    std::swap(view.in_step, view.out_step);
    if (is_product(given, weight, channels_last)) {
      const ChannelsLast<T> from(grad_output);
      view.out_step = 1;
      return for_each_phase(as_product(given), view, [&](GatherConv<T>& g) {
        g.input = from.data();
        g.output = static_cast<T*>(grad_input.data_ptr());
        kernel.gather_conv({g});
      });
    }
    const bool nhwc = is_channels_last(grad_output), depthwise = p.in == 1 && p.out == 1;
    const bool tiled = windows_tile(w) && volume(w.stride) > 1 && !depthwise;
    const bool few = tiled && p.groups == 1 && p.in < PANEL_CHANNELS && w.kernel[2] > 1 && w.kernel == given.window.kernel;  // channels of a phase
    for (const auto& [serves, run] : {std::pair(kernel.plane_conv_serves, kernel.plane_conv), std::pair(kernel.pointwise_conv_serves, kernel.pointwise_conv)}) {
      bool all = !winograd && !few && !(tiled && p.in >= PANEL_CHANNELS);
      if (all) for_each_phase(p, view, [&, serves = serves](const GatherConv<T>& g) { all = all && serves(g, nhwc); });
      if (!all) continue;
      const auto from = activations<const T>(grad_output);
      const auto to = activations<T>(grad_input);
      return for_each_phase(p, view, [&, run = run](const GatherConv<T>& g) { run(g, from, to); });
    }
    const ChannelsLast<T> from(grad_output);
    const ChannelsLastResult<T> to(grad_input);
    if (winograd) {
      std::get<WinogradKernels<T>>(kernels()).conv(winograd_conv_input(given, from.data(), weight_view<T>(given, weight), to.data()));
    } else {
      std::vector<GatherConv<T>> phases;
      const Tensor taps_by_channels = few ? in_format(weight, true) : weight;
      if (few) {
        view = weight_view<T>(p, taps_by_channels);
        view.in_step = view.out_step;
        view.out_step = 1;
        phases.push_back(every_phase(with_taps_in_channels(p), view));
      } else if (tiled) {
        phases.push_back(every_phase(p, view));
      } else {
        for_each_phase(p, view, [&](const GatherConv<T>& g) { phases.push_back(g); });
      }
      for (auto& g : phases) {
        g.input = from.data();
        g.output = to.data();
      }
      kernel.gather_conv(phases);
    }
    to.finish();
  });
}

void CpuConv::conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                          const Tensor& grad_weight) {
  if (is_narrow(input))
    return dispatch<BFloat16, Half>(op, input, [&](auto zero) { NarrowConv<decltype(zero)>::conv_weight(op, algorithm, p, input, grad_output, grad_weight); });
  const bool channels_last = !grad_weight.is_contiguous();
  dispatch<float, double>(op, input, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = std::get<ConvKernels<T>>(kernels());
    const Trimmed trimmed(p);
    WeightGrad<T> grad{p.batch, p.groups, p.in, p.out, trimmed.problem.window, nullptr, nullptr, static_cast<T*>(grad_weight.data_ptr()),
                       trimmed.view<T>(grad_weight)};
    if (is_product(p, input, channels_last)) {
      const ChannelsLast<T> g(grad_output);
      const Problem product = as_product(p);
      return kernel.weight_grad({p.batch, p.groups, product.in, p.out, product.window, static_cast<const T*>(input.data_ptr()), g.data(),
                                 grad.grad_weight, {nullptr, 0, 1, product.in, p.out * product.in, {0, 0, 0}}});
    }
    const bool winograd = use_winograd<T>(op, algorithm, p, winograd_pictures(p), WINOGRAD_WEIGHT_POSITIONS);
    if (!winograd && grad.window.kernel != p.window.kernel) std::memset(grad_weight.data_ptr(), 0, grad_weight.numel() * sizeof(T));
    if (!winograd && kernel.row_weight_grad_serves(grad))
      return kernel.row_weight_grad(grad, activations<const T>(input), activations<const T>(grad_output));
    if (!winograd && kernel.plane_weight_grad_serves(grad, is_channels_last(input)))
      return kernel.plane_weight_grad(grad, activations<const T>(input), activations<const T>(grad_output));
    const ChannelsLast<T> x(input), g(grad_output);
    grad.input = x.data();
    grad.grad_output = g.data();
    if (winograd)
      return std::get<WinogradKernels<T>>(kernels()).weight_grad(winograd_conv_weight(p, grad.input, grad.grad_output, grad.grad_weight, weight_view<T>(p, grad_weight)));
    kernel.weight_grad(grad);
  });
}

namespace {

// A weight's panels, for `conv` and `winograd_block`.
Tensor pack_weight(Tensor weight, int64_t groups) {
  const char* op = "pack_weight";
  const Cpu device(op, "weight", weight);
  const int64_t rank = spatial_rank(op, "weight", weight), in_channels = checked_volume(op, {weight.size(1), groups});
  const Ints kernel = kernel_sizes(op, weight), ones(rank, 1), none(rank, 0);
  const Problem p = problem(op, rank, 1, in_channels, weight.size(0), groups, spatial_sizes(op, "weight", weight), kernel, ones, none, ones);
  Tensor packed;
  dispatch<float, double>(op, weight, [&](auto zero) {
    using T = decltype(zero);
    packed = empty(weight, packed_sizes<T>(p), false);
    if (packed.numel() == 0) return;
    std::get<ConvKernels<T>>(kernels()).pack_weight(
        {1, p.groups, p.in, p.out, p.window, p.window.output, {0, 0, 0}, {1, 1, 1}, nullptr, weight_view<T>(p, weight), nullptr, nullptr},
        static_cast<T*>(packed.data_ptr()));
  });
  return packed;
}

}  // namespace
}  // namespace torchconv

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("conv", TORCH_BOX(&torchconv::conv<torchconv::CpuConv>));
  m.impl("pack_weight", TORCH_BOX(&torchconv::pack_weight));
  m.impl("conv_input", TORCH_BOX(&torchconv::conv_input<torchconv::CpuConv>));
  m.impl("conv_weight", TORCH_BOX(&torchconv::conv_weight<torchconv::CpuConv>));
}
