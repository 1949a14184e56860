// The kernels for one instruction set, and their table. Each kernels_*.cpp includes it once, after kernels.h and the standard
// headers, and under its own target pragma: no inline function of another header is compiled for a processor that may not
// be there. No include guard.
#include "simd.h"
#include "runs.h"
#include "wide.h"
#include "activation.h"
#include "gemm.h"
#include "transpose_kernel.h"
#include "filters.h"
#include "columns.h"
#include "depthwise_kernel.h"
#include "dot_kernel.h"
#include "column_block.h"
#include "conv_kernel.h"
#include "paired_kernel.h"
#include "weight_grad_kernel.h"
#include "row_kernel.h"
#include "pointwise_kernel.h"
#include "planes.h"
#include "plane_kernel.h"
#include "pooled_values.h"
#include "pool_kernel.h"
#include "pool_map_kernel.h"
#include "rectify_kernel.h"
#include "winograd_transforms.h"
#include "winograd_tiles.h"
#include "winograd_kernel.h"
#include "winograd_weight_kernel.h"
#include "box_kernel.h"
#include "box_max_kernel.h"
#include "im2col_kernel.h"

namespace torchconv {
namespace TORCHCONV_ISA {

template <class T>
constexpr ConvKernels<T> conv_table() {
  return {gather_conv<T>, pack_weight<T>, TILE_COLUMNS<T>, weight_grad<T>, row_conv<T>, row_weight_grad<T>, row_conv_serves<T>,
          row_weight_grad_serves<T>, pointwise::conv<T>, pointwise_conv_serves<T>, plane_conv<T>, plane_weight_grad<T>, planes_serve<T, GatherConv>, planes_serve<T, WeightGrad>};
}

template <class S>
constexpr WinogradKernels<S> winograd_table() {
  return {winograd::conv<S>, winograd::weight_grad<S>};
}

template <class S>
constexpr NarrowKernels<S> narrow_table() {
  return {widen<S>, narrow<S>};
}

template <class S>
constexpr DepthwiseKernels<S> depthwise_table() {
  return {depthwise::conv<S>, is_depthwise<S, GatherConv<S>>, depthwise::weight_grad<S>, is_depthwise<S, WeightGrad<S>>};
}

template <class T>
constexpr ColumnKernels<T> column_table() {
  return {im2col<T>, col2im<T>};
}

template <class T, class Position>
constexpr PoolKernels<T, Position> pool_table() {
  return {pool<T, Position>, pool_gather<T, Position>, pool_scatter<T, Position>};
}

template <class T>
constexpr BoxKernels<T> box_table() {
  return {box_sum<T>, box_max<T>};
}

template <class T>
constexpr RectifyKernels<T> rectify_table() {
  return {rectify<T>, rectify_input<T>};
}

const Kernels kernels{transpose<float>,
                      transpose<double>,
                      transpose<BFloat16>,
                      transpose<Half>,
                      conv_table<float>(),
                      conv_table<double>(),
                      winograd_table<float>(),
                      winograd_table<double>(),
                      winograd_table<BFloat16>(),
                      narrow_table<BFloat16>(),
                      narrow_table<Half>(),
                      paired_table(),
                      depthwise_table<BFloat16>(),
                      column_table<float>(),
                      column_table<double>(),
                      column_table<BFloat16>(),
                      column_table<Half>(),
                      pool_table<float, uint8_t>(),
                      pool_table<float, int32_t>(),
                      pool_table<double, uint8_t>(),
                      pool_table<double, int32_t>(),
                      pool_table<BFloat16, uint8_t>(),
                      pool_table<BFloat16, int32_t>(),
                      pool_table<Half, uint8_t>(),
                      pool_table<Half, int32_t>(),
                      box_table<float>(),
                      box_table<double>(),
                      box_table<BFloat16>(),
                      box_table<Half>(),
                      rectify_table<float>(),
                      rectify_table<double>()};

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
