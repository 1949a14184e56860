// How a GPU runs an op: the grid of threads, and where its tensors are.
//
// A kernel here is a body: a struct that computes element i of its result, and no other. nvcc makes a grid of threads of it. g++,
// which compiles the same files for the tests, makes loops over that grid on the CPU: its ops are a library of their own,
// torchconv_grid, compared with torch wherever there is no GPU.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "../problems.h"
#include "../tensors.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#define TORCHCONV_GPU_OPS(m) STABLE_TORCH_LIBRARY_IMPL(torchconv, CUDA, m)
#else
#define TORCHCONV_GPU_OPS(m) STABLE_TORCH_LIBRARY_IMPL(torchconv_grid, CPU, m)
#endif

namespace torchconv::gpu {

constexpr int THREADS = 256;  // in a block
// Blocks of one grid: enough to fill any GPU. The rest of the elements come in further rounds.
constexpr int64_t BLOCKS = 1 << 16;

// The tests lower these, to have small tensors computed as large ones are.
struct Limits {
  int64_t narrow_index = std::numeric_limits<int32_t>::max() - BLOCKS * THREADS;  // the largest that 32 bits may hold
  int64_t column_bytes = int64_t(128) << 20;  // of a column matrix that are there at a time, if those of one position fit
};
inline Limits limits;

// What thread number `first` of `step` in all computes.
template <class Index, class Body>
TORCHCONV_HD void rounds(const Body& body, Index count, Index first, Index step) {
  for (Index i = first; i < count; i += step) body(i);
}

#if defined(__CUDACC__)

template <class Index, class Body>
__global__ void __launch_bounds__(THREADS) threads(const Body body, const Index count) {
  rounds<Index>(body, count, static_cast<Index>(blockIdx.x) * THREADS + threadIdx.x, static_cast<Index>(gridDim.x) * THREADS);
}

inline void check(cudaError_t error, const char* what) {
  TORCHCONV_CHECK(error == cudaSuccess, "torchconv: ", what, " failed: ", cudaGetErrorString(error));
}

// The stream that torch uses now. The function is in libtorch_cuda, which is loaded wherever there is a CUDA tensor; this library
// doesn't link to it, and so loads beside a torch without CUDA, too.
inline cudaStream_t current_stream() {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    TORCHCONV_CHECK(torch_cuda != nullptr, "torchconv: this torch has no libtorch_cuda.so, which CUDA tensors need");
    return reinterpret_cast<Get>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }();
  TORCHCONV_CHECK(get != nullptr, "torchconv: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream, expected one of torch 2.10 or later");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(torch::stable::accelerator::getCurrentDeviceIndex(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <class Index, class Body>
void for_each(int64_t count, const Body& body) {
  if (count == 0) return;
  const int64_t blocks = smaller<int64_t>((count + THREADS - 1) / THREADS, BLOCKS);
  threads<Index><<<static_cast<unsigned>(blocks), THREADS, 0, current_stream()>>>(body, static_cast<Index>(count));
  check(cudaGetLastError(), "launching a kernel");
}

#else

// A grid of three small blocks, one thread after the other.
template <class Index, class Body>
void for_each(int64_t count, const Body& body) {
  constexpr Index step = 3 * 4;
  for (Index thread = 0; thread < step; thread++) rounds<Index>(body, static_cast<Index>(count), thread, step);
}

#endif

// Calls f with a value of the type that indices are computed in: 32 bits where none of these numbers, nor an index of one round more,
// exceeds them.
template <class F>
void with_index(std::initializer_list<int64_t> numbers, const F& f) {
  std::max(numbers) > limits.narrow_index ? f(int64_t{}) : f(int32_t{});
}

// The device of an op (csrc/ops): made of its first tensor, it holds the others to be where that is, and makes that place current.
class Gpu {
 public:
  static Tensor contiguous(const Tensor& t) { return as_contiguous(t); }

#if defined(__CUDACC__)
  Gpu(const char* op, const char* name, const Tensor& t) : op_(op), index_(index_of(op, name, t)), guard_(index_) {}
  void expect(const char* name, const Tensor& t) const {
    TORCHCONV_CHECK(t.is_cuda(), op_, ": ", name, " is not on a GPU, expected it on cuda:", index_);
    TORCHCONV_CHECK(place_of(t).index == index_, op_, ": ", name, " is on cuda:", place_of(t).index, ", expected it on cuda:", index_);
  }

 private:
  static int32_t index_of(const char* op, const char* name, const Tensor& t) {
    TORCHCONV_CHECK(t.is_cuda(), op, ": ", name, " is not on a GPU");
    return place_of(t).index;
  }

  const char* op_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#else
  Gpu(const char* op, const char* name, const Tensor& t) : op_(op) { expect(name, t); }
  void expect(const char* name, const Tensor& t) const { TORCHCONV_CHECK(t.is_cpu(), op_, ": ", name, " is not on the CPU"); }

 private:
  const char* op_;
#endif
};

// Batch, channel and position of an element.
template <class Index>
struct Coordinates {
  Index batch, channel, at[RANK];
};

// Elements counted in the order in which they lie, the last position or the channel first.
template <class Index>
struct Order {
  Index channels, size[RANK];
  bool channels_last;

  Order(int64_t channels, const Extent& extent, bool channels_last)
      : channels(static_cast<Index>(channels)),
        size{static_cast<Index>(extent[0]), static_cast<Index>(extent[1]), static_cast<Index>(extent[2])},
        channels_last(channels_last) {}

  TORCHCONV_HD Coordinates<Index> of(Index i) const {
    Coordinates<Index> result{0, 0, {0, 0, 0}};
    if (channels_last) {
      result.channel = i % channels;
      i /= channels;
    }
    for (int d = RANK - 1; d >= 0; d--) {
      if (size[d] == 1) continue;
      result.at[d] = i % size[d];
      i /= size[d];
    }
    if (!channels_last) {
      result.channel = i % channels;
      i /= channels;
    }
    result.batch = i;
    return result;
  }
};

// Where in a dense tensor, in either order, a plane of `positions` begins, and how far apart its elements are.
template <class Index>
struct Plane {
  Index base, step;

  TORCHCONV_HD Plane(const Order<Index>& order, const Coordinates<Index>& at, Index positions)
      : base(order.channels_last ? at.batch * positions * order.channels + at.channel : (at.batch * order.channels + at.channel) * positions),
        step(order.channels_last ? order.channels : 1) {}
};

// Where an element lies in any tensor.
template <class Index>
struct Strides {
  Index batch, channel, step[RANK];

  Strides(int64_t batch, int64_t channel, const Extent& step)
      : batch(static_cast<Index>(batch)),
        channel(static_cast<Index>(channel)),
        step{static_cast<Index>(step[0]), static_cast<Index>(step[1]), static_cast<Index>(step[2])} {}

  TORCHCONV_HD Index of(Index n, Index c, Index d, Index h, Index w) const {
    return n * batch + c * channel + d * step[0] + h * step[1] + w * step[2];
  }
};

// The farthest that a window reaches, and any sum or product of its numbers that the kernels form.
inline int64_t reach(const Window& w) {
  int64_t farthest = 0;
  for (int i = 0; i < RANK; i++)
    farthest = larger(farthest, w.input[i] + 2 * (w.padding[i] < 0 ? -w.padding[i] : w.padding[i]) + w.stride[i] + w.dilation[i] * w.kernel[i]);
  return farthest;
}

}  // namespace torchconv::gpu
