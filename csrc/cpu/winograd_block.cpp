// A 3x3 convolution with bias, ReLU and perhaps 2x2 max pooling, and its input gradient, by Winograd's tiles: of what lies between
// them, nothing is ever written. All activations are channels-last, and channels whole vectors.
#include "../ops/conv.h"
#include "../ops/rectify.h"
#include "cpu.h"
#include "packed_weight.h"
#include "winograd.h"

namespace torchconv {
namespace {

constexpr int64_t VECTOR = 16;  // the longest one's lanes
constexpr int64_t POOL = 2;     // the windows' size, and stride

void expect_picture(const char* op, const char* name, const Tensor& t) {
  TORCHCONV_CHECK(t.dim() == 4, op, ": ", name, " has ", t.dim(), " dimensions, expected 4");
}

Problem block_problem(const char* op, int64_t batch, int64_t in_channels, int64_t out_channels, const Extent& input, const Tensor& weight,
                      const Ints& padding) {
  const Ints ones{1, 1};
  const Problem p = problem(op, 2, batch, in_channels, out_channels, 1, input, kernel_sizes(op, weight), ones, padding, ones);
  expect_sizes(op, "weight", weight, {out_channels, in_channels, 3, 3});
  TORCHCONV_CHECK(in_channels > 0 && in_channels % VECTOR == 0 && out_channels > 0 && out_channels % VECTOR == 0, op, ": ", in_channels, " input and ",
                  out_channels, " output channels, expected multiples of ", VECTOR);
  return p;
}

Extent pooled_size(const char* op, const Extent& size) {
  TORCHCONV_CHECK(size[1] % POOL == 0 && size[2] % POOL == 0, op, ": the convolution's output is ", size[1], " x ", size[2],
                  ", expected multiples of ", POOL, " to pool");
  return {1, size[1] / POOL, size[2] / POOL};
}

std::tuple<Tensor, Tensor, Tensor> winograd_block(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints padding, bool pool, bool save,
                                                  std::optional<Tensor> packed) {
  const char* op = "winograd_block";
  const Cpu device(op, "input", input);
  device.expect("weight", weight);
  expect_same_dtype(op, "weight", weight, input);
  expect_picture(op, "input", input);
  expect_picture(op, "weight", weight);
  const Problem p = block_problem(op, input.size(0), input.size(1), weight.size(0), spatial_sizes(op, "input", input), weight, padding);
  if (bias) {
    device.expect("bias", *bias);
    expect_same_dtype(op, "bias", *bias, input);
    expect_sizes(op, "bias", *bias, {p.out});
    bias = as_contiguous(*bias);
  }
  input = in_format(input, true);
  const Window& w = p.window;
  const Ints sizes = tensor_sizes(p.batch, p.out, pool ? pooled_size(op, w.output) : w.output, p.rank);
  Tensor output = empty(input, sizes, true);
  Tensor signs = empty(input, {save ? words(output.numel()) : 0}, false, ScalarType::Long);
  Tensor positions = empty(input, pool && save ? sizes : Ints{0}, pool && save, ScalarType::Byte);
  if (output.numel() == 0) return {output, signs, positions};
  if (save) static_cast<int64_t*>(signs.data_ptr())[signs.numel() - 1] = 0;  // the bits beyond the last element
  dispatch<float, double>(op, input, [&](auto zero) {
    using T = decltype(zero);
    WeightView<T> view = weight_view<T>(p, weight);
    view.packed = packed_weight<T>(op, p, packed);
    auto conv = winograd_conv(p, static_cast<const T*>(input.data_ptr()), view,
                              bias ? static_cast<const T*>(bias->data_ptr()) : nullptr, static_cast<T*>(output.data_ptr()));
    conv.pooled = pool;
    conv.activation.rectifies = true;
    if (save) conv.output_signs = static_cast<uint8_t*>(signs.data_ptr());
    if (save && pool) conv.output_positions = static_cast<uint8_t*>(positions.data_ptr());
    std::get<WinogradKernels<T>>(kernels()).conv(conv);
  });
  return {output, signs, positions};
}

// `kept` are the signs of the block's output or, where it pools, the positions; there `grad_output` has been masked with the signs.
Tensor winograd_block_input(Tensor grad_output, Tensor kept, Tensor weight, Ints input_size, Ints padding) {
  const char* op = "winograd_block_input";
  const Cpu device(op, "grad_output", grad_output);
  device.expect("kept", kept);
  device.expect("weight", weight);
  expect_same_dtype(op, "weight", weight, grad_output);
  expect_picture(op, "grad_output", grad_output);
  expect_picture(op, "weight", weight);
  const bool pool = kept.scalar_type() == ScalarType::Byte;
  TORCHCONV_CHECK(pool || kept.scalar_type() == ScalarType::Long, op, ": kept has dtype ", torch::headeronly::toString(kept.scalar_type()),
                  ", expected ", torch::headeronly::toString(ScalarType::Long), " for signs or ", torch::headeronly::toString(ScalarType::Byte),
                  " for positions");
  const Problem p = block_problem(op, grad_output.size(0), weight.size(1), weight.size(0), extent(op, "input_size", input_size, 2, 0, 1), weight, padding);
  const Window& w = p.window;
  expect_sizes(op, "grad_output", grad_output, tensor_sizes(p.batch, p.out, pool ? pooled_size(op, w.output) : w.output, p.rank));
  if (pool) {
    const auto sizes = grad_output.sizes();
    expect_sizes(op, "kept", kept, Ints(sizes.begin(), sizes.end()));
    kept = in_format(kept, true);
  } else {
    expect_sizes(op, "kept", kept, {words(grad_output.numel())});
    kept = as_contiguous(kept);
  }
  grad_output = in_format(grad_output, true);
  Tensor grad_input = empty(grad_output, p.input_sizes(), true);
  if (grad_input.numel() == 0) return grad_input;
  dispatch<float, double>(op, grad_output, [&](auto zero) {
    using T = decltype(zero);
    auto conv = winograd_conv_input(p, static_cast<const T*>(grad_output.data_ptr()), weight_view<T>(p, weight),
                                    static_cast<T*>(grad_input.data_ptr()));
    (pool ? conv.input_positions : conv.input_signs) = static_cast<const uint8_t*>(kept.data_ptr());
    std::get<WinogradKernels<T>>(kernels()).conv(conv);
  });
  return grad_input;
}

}  // namespace
}  // namespace torchconv

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, m) {
  m.impl("winograd_block", TORCH_BOX(&torchconv::winograd_block));
  m.impl("winograd_block_input", TORCH_BOX(&torchconv::winograd_block_input));
}
