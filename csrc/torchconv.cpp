// Every op's schema, in one place. The kernels register themselves in cpu/NAME.cpp; fake (meta) kernels, autograd, autocast
// and the choice between these ops and their plain-PyTorch references are Python's part (torchconv/ops.py).
//
// Tensors are (batch, channels, 1 to 3 spatial dimensions); the lists have a value per spatial dimension. `channels_last`
// is the memory format of the result.
#include "common.h"
#include "cpu/isa.h"
#include "tensors.h"

STABLE_TORCH_LIBRARY(torchconv, m) {
  m.def("conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
        "str algorithm, bool channels_last, Tensor? packed=None, float? max_value=None) -> Tensor");
  m.def("pack_weight(Tensor weight, int groups) -> Tensor");
  m.def("conv_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, int[] padding, int[] dilation, "
        "int groups, str algorithm, bool channels_last) -> Tensor");
  m.def("conv_weight(Tensor input, Tensor grad_output, SymInt[] kernel_size, int[] stride, int[] padding, int[] dilation, "
        "int groups, str algorithm, bool channels_last) -> Tensor");
  m.def("winograd_block(Tensor input, Tensor weight, Tensor? bias, int[] padding, bool pool, bool save, Tensor? packed=None) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("winograd_block_input(Tensor grad_output, Tensor kept, Tensor weight, SymInt[] input_size, int[] padding) -> Tensor");
  m.def("im2col(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("col2im(Tensor columns, SymInt[] output_size, int[] kernel_size, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("max_pool(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, "
        "bool save_positions, bool channels_last) -> (Tensor, Tensor)");
  m.def("max_pool_gather(Tensor input, Tensor positions, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
        "bool channels_last) -> Tensor");
  m.def("max_pool_scatter(Tensor grad_output, Tensor positions, SymInt[] input_size, int[] kernel_size, int[] stride, "
        "int[] padding, int[] dilation, bool channels_last) -> Tensor");
  m.def("rectify_(Tensor(a!) values, Tensor? bias, bool save_signs, float? max_value=None) -> Tensor");
  m.def("rectify_input(Tensor grad_output, Tensor signs, bool channels_last) -> Tensor");
  m.def("avg_pool(Tensor input, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
        "int? divisor_override, bool channels_last) -> Tensor");
  m.def("avg_pool_input(Tensor grad_output, SymInt[] input_size, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, "
        "bool count_include_pad, int? divisor_override, bool channels_last) -> Tensor");
  m.def("adaptive_avg_pool(Tensor input, SymInt[] output_size, bool channels_last) -> Tensor");
  m.def("adaptive_avg_pool_input(Tensor grad_output, SymInt[] input_size, bool channels_last) -> Tensor");
  m.def("adaptive_max_pool(Tensor input, SymInt[] output_size, bool channels_last) -> (Tensor, Tensor)");
  m.def("isa() -> str");
  m.def("available_isas() -> str");
  m.def("set_isa(str name) -> ()");
  m.def("empty(SymInt[] size, ScalarType dtype, bool channels_last) -> Tensor");
  m.def("empty_cache() -> ()");
}

namespace {

std::string isa() { return torchconv::isa(); }

std::string available_isas() {
  std::string names;
  for (const std::string& name : torchconv::available_isas()) names += (names.empty() ? "" : ",") + name;
  return names;
}

void set_isa(torchconv::Text name) { torchconv::set_isa(name); }

torchconv::Tensor empty(torchconv::Ints size, torchconv::ScalarType dtype, bool channels_last) {
  torchconv::checked_volume("empty", size);
  torchconv::expect_format("empty", size, channels_last);
  return torchconv::empty(size, dtype, channels_last);
}

void empty_cache() { torchconv::Blocks::empty(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchconv, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("available_isas", TORCH_BOX(&available_isas));
  m.impl("set_isa", TORCH_BOX(&set_isa));
  m.impl("empty", TORCH_BOX(&empty));
  m.impl("empty_cache", TORCH_BOX(&empty_cache));
}
