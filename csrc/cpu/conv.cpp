// The three bilinear maps of convolution. Kernels work on channels-last activations; others are transposed on the way.
#include "../ops/conv.h"
#include "cpu.h"
#include "packed_weight.h"
#include "scratch.h"
#include "winograd.h"

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
    std::get<Transpose<T>>(kernels())(t.size(0), t.size(1), positions, static_cast<const T*>(keep_->data_ptr()), copy_->get());
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
    std::get<Transpose<T>>(kernels())(tensor_.size(0), positions, tensor_.size(1), copy_->get(), static_cast<T*>(tensor_.data_ptr()));
  }

 private:
  Tensor tensor_;
  std::optional<Scratch<T>> copy_;
};

bool winograd_serves(const Problem& p) { return p.groups == 1 && p.in > 0 && p.out > 0 && winograd_form(p.window) != WinogradForm::none; }

// Where Winograd's transforms cost more than its fewer products save, or float64 is wanted exact, im2col is the better one.
constexpr int64_t WINOGRAD_CHANNELS = 32, WINOGRAD_LINE_CHANNELS = 64;
constexpr int64_t WINOGRAD_POSITIONS = 48;          // three tiles and more
constexpr int64_t WINOGRAD_WEIGHT_POSITIONS = 128;  // for the weight's gradient

// A panel of weights holds so many. All phases of a strided convolution at once are fast if each fills one.
constexpr int64_t PANEL_CHANNELS = 32;

// `pictures` are those of the result, and `least` how many positions it has at least where it pays.
template <class T>
bool use_winograd(const char* op, const std::string& algorithm, const Problem& p, const WinogradPictures& pictures, int64_t least) {
  TORCHCONV_CHECK(algorithm == "auto" || algorithm == "im2col" || algorithm == "winograd", op, ": algorithm is '", algorithm,
                  "', expected auto, im2col or winograd");
  if (algorithm == "winograd")
    TORCHCONV_CHECK(winograd_serves(p), op,
                    ": algorithm 'winograd' serves kernels of three or five taps along one dimension or two, of any depth, stride 1 and groups 1; got kernel ",
                    to_string(Ints(p.window.kernel.begin(), p.window.kernel.end())), ", stride ",
                    to_string(Ints(p.window.stride.begin(), p.window.stride.end())), ", groups ", p.groups);
  const int64_t positions = p.batch * pictures.out_depth * pictures.out_height * pictures.out_width;
  if (algorithm != "auto") return algorithm == "winograd" && positions > 0;
  if (!std::is_same_v<T, float> || !winograd_serves(p) || positions < least) return false;
  const bool usual = !pictures.line && pictures.taps == 3 && pictures.dilation_height == 1 && pictures.dilation_width == 1;
  const int64_t channels = pictures.line ? WINOGRAD_LINE_CHANNELS : WINOGRAD_CHANNELS;
  return std::min(p.in, p.out) >= channels && (usual || winograd_saves(pictures));
}

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

// The same three of 16-bit numbers, in float and rounded once. Some kernels take bfloat16 as it is, all others a copy in float.
template <class S>
struct NarrowConv {
  static void conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                   const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output);
  static void conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input);
  static void conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                          const Tensor& grad_weight);

 private:
  static constexpr auto FLOAT = ScalarType::Float;

  static Tensor widened(const Tensor& t) {
    const bool channels_last = !t.is_contiguous() && t.dim() > 2 && is_channels_last(t);
    const Tensor from = channels_last ? t : as_contiguous(t), to = wide_like(t, channels_last);
    std::get<NarrowKernels<S>>(kernels()).widen(t.numel(), static_cast<const S*>(from.data_ptr()), static_cast<float*>(to.data_ptr()));
    return to;
  }
  static Tensor wide_like(const Tensor& t, bool channels_last) {
    const auto sizes = t.sizes();
    return empty(Ints(sizes.begin(), sizes.end()), FLOAT, channels_last);
  }
  static S* elements(const Tensor& t) { return static_cast<S*>(t.data_ptr()); }
  // What convolves bfloat16 as it is, or null.
  static auto gather_conv(const GatherConv<S>& p) {
    const auto& depthwise = std::get<DepthwiseKernels<S>>(kernels());
    const auto& paired = std::get<PairedKernels>(kernels());
    return depthwise.conv_serves(p) ? depthwise.conv : paired.conv_serves(p) ? paired.conv : nullptr;
  }
  // Whether Winograd's algorithm is asked for, or is faster than what multiplies pairs.
  static bool by_winograd(const char* op, const std::string& algorithm, const Problem& p, const WinogradPictures& pictures, const GatherConv<S>& gather) {
    const auto& paired = std::get<PairedKernels>(kernels());
    const bool pairs = algorithm == "auto" && paired.beats_winograd && paired.conv_serves(gather);
    return use_winograd<float>(op, algorithm, p, pictures, WINOGRAD_POSITIONS) && !pairs;
  }
  static void narrow(const Tensor& from, const Tensor& to) {
    std::get<NarrowKernels<S>>(kernels()).narrow(to.numel(), static_cast<const float*>(from.data_ptr()), static_cast<S*>(to.data_ptr()));
  }
};

struct CpuConv : Cpu {
  using Cpu::Cpu;
  static void conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                   const std::optional<Tensor>& packed, const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output);
  static void conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input);
  static void conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                          const Tensor& grad_weight);
};

bool is_narrow(const Tensor& t) { return t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Half; }

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

template <class S>
void NarrowConv<S>::conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const S* const shift = bias ? elements(*bias) : nullptr;
    GatherConv<S> gather{p.batch, p.groups, p.in, p.out, p.window, p.window.output, {0, 0, 0}, {1, 1, 1}, nullptr, weight_view<S>(p, weight), shift, nullptr};
    if (max_value) gather.activation = {true, static_cast<float>(*max_value)};
    const bool winograd = by_winograd(op, algorithm, p, winograd_pictures(p), gather);
    const auto convolve = gather_conv(gather);
    if (winograd || convolve != nullptr) {
      const ChannelsLast<S> from(input);
      const ChannelsLastResult<S> to(output);
      gather.input = from.data();
      gather.output = to.data();
      if (winograd) {
        const Tensor wide_weight = widened(weight);
        const std::optional<Tensor> wide_bias = bias ? std::optional(widened(*bias)) : std::nullopt;
        WinogradConv<S> conv = winograd_conv(p, gather.input, weight_view<float>(p, wide_weight),
                                             wide_bias ? static_cast<const float*>(wide_bias->data_ptr()) : nullptr, gather.output);
        conv.activation = gather.activation;
        std::get<WinogradKernels<S>>(kernels()).conv(conv);
      } else {
        convolve(gather);
      }
      return to.finish();
    }
  }
  const std::optional<Tensor> wide_bias = bias ? std::optional(widened(*bias)) : std::nullopt;
  const Tensor wide_output = wide_like(output, !output.is_contiguous());
  CpuConv::conv(op, algorithm, p, widened(input), widened(weight), std::nullopt, wide_bias, max_value, wide_output);
  narrow(wide_output, output);
}

template <class S>
void NarrowConv<S>::conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                               const Tensor& grad_input) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    GatherConv<S> channels{};
    channels.groups = p.groups;
    channels.in_channels = p.out;
    channels.out_channels = p.in;
    const bool winograd = by_winograd(op, algorithm, p, winograd_input_pictures(p), channels);
    const auto convolve = gather_conv(channels);
    if (winograd || convolve != nullptr) {
      const ChannelsLast<S> from(grad_output);
      const ChannelsLastResult<S> to(grad_input);
      if (winograd) {
        const Tensor wide_weight = widened(weight);
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
      return to.finish();
    }
  }
  const Tensor wide_input = wide_like(grad_input, !grad_input.is_contiguous());
  CpuConv::conv_input(op, algorithm, p, widened(grad_output), widened(weight), wide_input);
  narrow(wide_input, grad_input);
}

template <class S>
void NarrowConv<S>::conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                                const Tensor& grad_weight) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const auto& paired = std::get<PairedKernels>(kernels());
    const auto& depthwise = std::get<DepthwiseKernels<S>>(kernels());
    WeightGrad<S> grad{p.batch, p.groups, p.in, p.out, p.window, nullptr, nullptr, elements(grad_weight), weight_view<S>(p, grad_weight)};
    const bool pairs = algorithm != "winograd" && paired.weight_grad_serves(grad);
    if (!pairs && use_winograd<float>(op, algorithm, p, winograd_pictures(p), WINOGRAD_WEIGHT_POSITIONS)) {
      const ChannelsLast<S> x(input), g(grad_output);
      const Tensor wide = wide_like(grad_weight, !grad_weight.is_contiguous());
      std::get<WinogradKernels<S>>(kernels()).weight_grad(winograd_conv_weight(p, x.data(), g.data(), static_cast<float*>(wide.data_ptr()), weight_view<float>(p, wide)));
      return narrow(wide, grad_weight);
    }
    if (pairs) {
      const ChannelsLast<S> g(grad_output);
      grad.grad_output = g.data();
      return paired.weight_grad(grad, activations<const S>(input));
    }
    if (depthwise.weight_grad_serves(grad)) {
      const ChannelsLast<S> x(input), g(grad_output);
      grad.input = x.data();
      grad.grad_output = g.data();
      return depthwise.weight_grad(grad);
    }
  }
  const Tensor wide = wide_like(grad_weight, !grad_weight.is_contiguous());
  CpuConv::conv_weight(op, algorithm, p, widened(input), widened(grad_output), wide);
  narrow(wide, grad_weight);
}

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
