// Convolution on a GPU: columns of the input, a part at a time, times the weight.
//
// The forward pass, and each phase of the input gradient, is a gather (GatherConv). Its matrices are views of the tensors where their
// elements lie so, and scratch where not. The weight gradient multiplies the same columns with the gradient of the output.
#include "../ops/conv.h"

#include "direct.h"
#include "product.h"

namespace torchconv::gpu {
namespace {

// The sums of a direct weight gradient run over this many positions at least, and there are about this many of them.
constexpr int64_t SHORTEST_SUM = 256, SUMS = int64_t(1) << 18;

// Brings a product to the positions of a phase; without one, zeros.
template <class T, class Index>
struct PutInPlace {
  Order<Index> order;
  Target<Index> target;
  const T* product;
  T* output;

  TORCHCONV_HD void operator()(Index i) const { output[target.of(order.of(i))] = product == nullptr ? T(0) : product[i]; }
};

// Of 16-bit numbers the sum is rounded a second time here, as torch's own convolutions on a GPU round it.
template <class T, class Index>
struct AddBias {
  Index channels, channel_step;
  const T* bias;
  T* output;

  TORCHCONV_HD void operator()(Index i) const {
    output[i] = static_cast<T>(static_cast<wide<T>>(output[i]) + static_cast<wide<T>>(bias[i / channel_step % channels]));
  }
};

// Partial sums [part][filter][entry], added up in order.
template <class T, class From, class Index>
struct AddUp {
  WeightPlace<T, Index> place;
  Index weights, parts;
  const From* sums;
  T* grad_weight;

  TORCHCONV_HD void operator()(Index i) const {
    wide<T> sum(0);
    for (Index part = 0; part < parts; part++) sum += static_cast<wide<T>>(sums[part * weights + i]);
    const Index row = place.entries.taps() * place.entries.in_channels, entry = i % row;
    grad_weight[place.of(i / row, place.entries.in(entry), place.entries.tap(entry))] = static_cast<T>(sum);
  }
};

template <class T>
Tensor scratch(const Tensor& like, int64_t count) {
  return empty(like, {count}, false, torch::headeronly::CppTypeToScalarType<T>::value);
}

template <class T>
T* elements(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// How many pictures, and positions of each, the columns of one part are of.
struct PartSize {
  int64_t images, positions;
};

PartSize part_size(int64_t batch, int64_t positions, int64_t position_bytes) {
  const int64_t fit = std::max<int64_t>(1, limits.column_bytes / position_bytes);
  return {std::clamp<int64_t>(fit / positions, 1, batch), std::min(fit, positions)};
}

// Whether the columns are the input itself.
bool is_pointwise(const Window& w, const Tensor& input, bool channels_last) {
  const Extent one{1, 1, 1}, none{0, 0, 0};
  const bool every_pixel = w.kernel == one && w.stride == one && w.padding == none && w.output == w.input;
  return every_pixel && (channels_last ? is_channels_last(input) : input.is_contiguous());
}

bool is_direct(int64_t groups, int64_t in_channels, int64_t out_channels) { return groups > 1 && (in_channels == 1 || out_channels == 1); }

template <class T>
void gather_directly(const GatherConv<T>& g, const Tensor& input, const Tensor& output, bool channels_last) {
  const auto from = activations<const T>(input);
  const auto to = activations<T>(output);
  const int64_t channels = g.groups * g.out_channels, count = g.batch * channels * volume(g.window.output);
  const int64_t last = last_element(from, g.batch, g.groups * g.in_channels, g.window.input);
  with_index({output.numel(), last, reach(g.window)}, [&](auto zero) {
    using Index = decltype(zero);
    const Order<Index> order(channels, g.window.output, channels_last);
    const WeightPlace<T, Index> weight(g.weight, Entries<Index>(g.in_channels, g.window.kernel, true), g.out_channels);
    const Strides<Index> strides(from.batch_step, from.channel_step, from.step);
    for_each<Index>(count, Direct<T, Index>{Sliding<Index>(g.window), order, Target<Index>(to, g), strides, weight, from.data, g.bias, to.data});
  });
}

// Batches of matrices: of the groups where the channels lie last, or there are several, else of the pictures.
template <class T>
void gather_by_products(const GatherConv<T>& g, const Tensor& input, const Tensor& output, bool nhwc) {
  const Window& w = g.window;
  const int64_t P = volume(w.output), K = volume(w.kernel) * g.in_channels, G = g.groups, C = g.in_channels, O = g.out_channels;
  const auto to = activations<T>(output);
  const auto put = [&](const T* product, int64_t image, int64_t images) {
    with_index({output.numel(), reach(w)}, [&](auto zero) {
      using Index = decltype(zero);
      const Order<Index> order(G * O, w.output, nhwc);
      for_each<Index>(images * G * O * P, PutInPlace<T, Index>{order, Target<Index>(to, g), product, to.data + image * to.batch_step});
    });
  };
  if (K == 0) return put(nullptr, 0, g.batch);

  const Tensor weight = scratch<T>(output, G * O * K);
  with_index({G * O * K}, [&](auto zero) {
    using Index = decltype(zero);
    const Entries<Index> entries(C, w.kernel, !nhwc);
    for_each<Index>(G * O * K, PackWeight<T, Index>{WeightPlace<T, Index>(g.weight, entries, O), elements<T>(weight)});
  });

  const bool pointwise = is_pointwise(w, input, nhwc), spaced = w.output != g.output_extent;
  PartSize size = pointwise ? PartSize{g.batch, P} : part_size(g.batch, P, G * K * sizeof(T));
  if (G > 1 && !nhwc) size.images = 1;
  if (spaced) size.positions = P;
  const Tensor columns = scratch<T>(output, pointwise ? 0 : size.images * size.positions * G * K);
  const Tensor product = scratch<T>(output, spaced ? size.images * P * G * O : 0);
  for (int64_t n = 0; n < g.batch; n += size.images) {
    for (int64_t q = 0; q < P; q += size.positions) {
      const int64_t images = std::min(size.images, g.batch - n), positions = std::min(size.positions, P - q), rows = images * positions;
      if (!pointwise) {
        ColumnPart<T> part{w, G, C, activations<const T>(input), n, images, q, positions, !nhwc, 0, 0, 0, 0, elements<T>(columns)};
        if (nhwc)
          part.group_step = rows * K, part.image_step = positions * K, part.entry_step = 1, part.position_step = K;
        else
          part.group_step = K * positions, part.image_step = G * K * positions, part.entry_step = positions, part.position_step = 1;
        fill_columns(part);
      }
      const Tensor& a = pointwise ? input : columns;
      const Tensor& d = spaced ? product : output;
      if (nhwc) {
        const Tensor left = pointwise ? matrices(a, (n * P + q) * G * C, {G, rows, C}, {C, G * C, 1}) : matrices(a, 0, {G, rows, K}, {rows * K, K, 1});
        multiply(matrices(d, spaced ? 0 : (n * P + q) * G * O, {G, rows, O}, {O, G * O, 1}), left, matrices(weight, 0, {G, K, O}, {O * K, 1, K}));
      } else {
        const bool of_groups = G > 1;
        const int64_t batch = of_groups ? G : images, plane = spaced ? positions : P, offset = n * G * O * P + q;
        const Tensor right = pointwise ? matrices(a, n * G * C * P + q, {batch, C, positions}, {C * P, P, 1})
                                       : matrices(a, 0, {batch, K, positions}, {K * positions, positions, 1});
        multiply(matrices(d, spaced ? 0 : offset, {batch, O, positions}, {O * plane, plane, 1}),
                 matrices(weight, 0, {batch, O, K}, {of_groups ? O * K : 0, K, 1}), right);
      }
      if (spaced) put(elements<T>(product), n, images);
    }
  }
}

template <class T>
void gather(const GatherConv<T>& g, const Tensor& input, const Tensor& output) {
  const int64_t positions = volume(g.window.output), channels = g.groups * g.out_channels;
  if (g.batch * channels * positions == 0) return;
  const bool nhwc = is_channels_last(output) && (positions == 1 || !output.is_contiguous());
  if (is_direct(g.groups, g.in_channels, g.out_channels)) return gather_directly(g, input, output, nhwc);
  gather_by_products(g, input, output, nhwc);
  if (g.bias == nullptr) return;
  with_index({output.numel()}, [&](auto zero) {
    using Index = decltype(zero);
    const auto count = static_cast<Index>(channels), step = static_cast<Index>(nhwc ? 1 : positions);
    for_each<Index>(output.numel(), AddBias<T, Index>{count, step, g.bias, elements<T>(output)});
  });
}

template <class T, class From>
void add_up(const Problem& p, int64_t parts, bool taps_last, const From* sums, const Tensor& grad_weight) {
  const int64_t weights = grad_weight.numel();
  with_index({parts * weights}, [&](auto zero) {
    using Index = decltype(zero);
    const WeightPlace<T, Index> place(weight_view<T>(p, grad_weight), Entries<Index>(p.in, p.window.kernel, taps_last), p.out);
    const auto count = static_cast<Index>(weights);
    for_each<Index>(weights, AddUp<T, From, Index>{place, count, static_cast<Index>(parts), sums, elements<T>(grad_weight)});
  });
}

template <class T>
void weight_directly(const Problem& p, const Tensor& input, const Tensor& grad_output, const Tensor& grad_weight) {
  const Window& w = p.window;
  const auto x = activations<const T>(input), g = activations<const T>(grad_output);
  const int64_t total = p.batch * volume(w.output), weights = grad_weight.numel();
  const int64_t parts = std::clamp<int64_t>(total / SHORTEST_SUM, 1, std::max<int64_t>(1, SUMS / weights)), length = (total + parts - 1) / parts;
  const Tensor sums = scratch<wide<T>>(grad_weight, parts * weights);
  const int64_t last = std::max(last_element(x, p.batch, p.groups * p.in, w.input), last_element(g, p.batch, p.groups * p.out, w.output));
  with_index({parts * weights, parts * length, last, reach(w)}, [&](auto zero) {
    using Index = decltype(zero);
    const auto index = [](int64_t n) { return static_cast<Index>(n); };
    for_each<Index>(parts * weights, DirectWeight<T, Index>{Sliding<Index>(w), index(weights), index(p.in), index(p.out), index(total), index(length),
                                                            Strides<Index>(x.batch_step, x.channel_step, x.step),
                                                            Strides<Index>(g.batch_step, g.channel_step, g.step), x.data, g.data,
                                                            elements<wide<T>>(sums)});
  });
  add_up<T>(p, parts, true, elements<const wide<T>>(sums), grad_weight);
}

// Of each part of the positions, the gradient of the output (group, out, position) times the columns (group, position, entry).
template <class T>
void weight_gradient(const Problem& p, const Tensor& input, Tensor grad_output, const Tensor& grad_weight) {
  const Window& w = p.window;
  const int64_t P = volume(w.output), K = volume(w.kernel) * p.in, G = p.groups, C = p.in, O = p.out;
  if (p.batch * P == 0) {
    Tensor zeros = grad_weight;
    torch::stable::zero_(zeros);
    return;
  }
  if (is_direct(G, C, O)) return weight_directly<T>(p, input, grad_output, grad_weight);

  const bool nhwc = is_channels_last(input) && is_channels_last(grad_output), taps_last = grad_weight.is_contiguous();
  grad_output = in_format(grad_output, nhwc);
  const PartSize size = part_size(p.batch, P, G * K * sizeof(T));
  const int64_t parts = ((p.batch + size.images - 1) / size.images) * ((P + size.positions - 1) / size.positions);
  const bool pointwise = is_pointwise(w, input, nhwc) && (nhwc || size.images == 1), joined = !nhwc && size.images > 1;
  const Tensor columns = scratch<T>(input, pointwise ? 0 : size.images * size.positions * G * K);
  const Tensor turned = scratch<T>(input, joined ? size.images * size.positions * G * O : 0);  // the gradient as (channel, row)
  const Tensor sums = scratch<T>(input, parts > 1 ? parts * G * O * K : 0);
  int64_t part = 0;
  for (int64_t n = 0; n < p.batch; n += size.images) {
    for (int64_t q = 0; q < P; q += size.positions, part++) {
      const int64_t images = std::min(size.images, p.batch - n), positions = std::min(size.positions, P - q), rows = images * positions;
      if (!pointwise) {
        ColumnPart<T> to{w, G, C, activations<const T>(input), n, images, q, positions, taps_last, K * rows, positions, rows, 1, elements<T>(columns)};
        if (nhwc) to.image_step = positions * K, to.entry_step = 1, to.position_step = K;
        fill_columns(to);
      }
      if (joined) {
        const Extent one{1, 1, 1};
        const Window pixels{w.output, w.output, one, one, {0, 0, 0}, one};
        fill_columns(ColumnPart<T>{pixels, 1, G * O, activations<const T>(grad_output), n, images, q, positions, true, 0, positions, rows, 1,
                                   elements<T>(turned)});
      }
      const Tensor left = joined ? matrices(turned, 0, {G, O, rows}, {O * rows, rows, 1})
                          : nhwc ? matrices(grad_output, (n * P + q) * G * O, {G, O, rows}, {O, 1, G * O})
                                 : matrices(grad_output, n * G * O * P + q, {G, O, rows}, {O * P, P, 1});
      const Tensor right = !pointwise ? matrices(columns, 0, {G, rows, K}, {K * rows, nhwc ? K : 1, nhwc ? 1 : rows})
                           : nhwc     ? matrices(input, (n * P + q) * G * C, {G, rows, C}, {C, G * C, 1})
                                      : matrices(input, n * G * C * P + q, {G, rows, C}, {C * P, 1, P});
      multiply(matrices(parts > 1 ? sums : grad_weight, part * (parts > 1 ? G * O * K : 0), {G, O, K}, {O * K, K, 1}), left, right);
    }
  }
  if (parts > 1) add_up<T>(p, parts, taps_last, elements<const T>(sums), grad_weight);
}

void expect_algorithm(const char* op, const std::string& algorithm) {
  TORCHCONV_CHECK(algorithm == "auto" || algorithm == "im2col", op, ": algorithm is '", algorithm, "', which has no CUDA kernel, expected auto or im2col");
}

template <class F>
void dispatch_conv(const char* op, const Tensor& t, const F& f) {
  dispatch<float, double, BFloat16, Half, c10::complex<float>, c10::complex<double>>(op, t, f);
}

struct GpuConv : Gpu {
  using Gpu::Gpu;

  static void conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                   const std::optional<Tensor>& packed, const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output) {
    expect_algorithm(op, algorithm);
    TORCHCONV_CHECK(!packed && !max_value, op, ": packed and max_value are for the CPU");
    const NoGrad guard;
    dispatch_conv(op, input, [&](auto zero) {
      using T = decltype(zero);
      const T* shift = bias ? elements<const T>(*bias) : nullptr;
      gather<T>({p.batch, p.groups, p.in, p.out, p.window, p.window.output, {0, 0, 0}, {1, 1, 1}, nullptr, weight_view<T>(p, weight), shift, nullptr},
                input, output);
    });
  }

  static void conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
    expect_algorithm(op, algorithm);
    const NoGrad guard;
    dispatch_conv(op, grad_output, [&](auto zero) {
      using T = decltype(zero);
      WeightView<T> view = weight_view<T>(p, weight);
      std::swap(view.in_step, view.out_step);
      for_each_phase(p, view, [&](const GatherConv<T>& g) { gather(g, grad_output, grad_input); });
    });
  }

  static void conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                          const Tensor& grad_weight) {
    expect_algorithm(op, algorithm);
    const NoGrad guard;
    dispatch_conv(op, input, [&](auto zero) { weight_gradient<decltype(zero)>(p, input, grad_output, grad_weight); });
  }
};

}  // namespace
}  // namespace torchconv::gpu

TORCHCONV_GPU_OPS(m) {
  m.impl("conv", TORCH_BOX(&torchconv::conv<torchconv::gpu::GpuConv>));
  m.impl("conv_input", TORCH_BOX(&torchconv::conv_input<torchconv::gpu::GpuConv>));
  m.impl("conv_weight", TORCH_BOX(&torchconv::conv_weight<torchconv::gpu::GpuConv>));
}
