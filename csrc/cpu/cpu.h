// The CPU as the device of an op (csrc/ops): where its tensors are, and its kernels.
#pragma once

#include "../tensors.h"
#include "kernels.h"

namespace torchconv {

// Made of an op's first tensor, it holds the others to be where that is.
class Cpu {
 public:
  Cpu(const char* op, const char* name, const Tensor& t) : op_(op) { expect(name, t); }
  void expect(const char* name, const Tensor& t) const { TORCHCONV_CHECK(t.is_cpu(), op_, ": ", name, " is not on the CPU"); }

  // As as_contiguous(), by our own transposition where that serves: torch's copy of channels-last tensors takes several times as long.
  static Tensor contiguous(const Tensor& t) {
    if (t.is_contiguous() || !is_channels_last(t)) return as_contiguous(t);
    const auto sizes = t.sizes();
    const Tensor copy = empty(t, Ints(sizes.begin(), sizes.end()), false);
    if (t.numel() == 0) return copy;
    dispatch<float, double, BFloat16, Half>("contiguous", t, [&](auto zero) {
      using T = decltype(zero);
      const int64_t positions = t.numel() / (t.size(0) * t.size(1));
      std::get<Transpose<T>>(kernels())(t.size(0), positions, t.size(1), static_cast<const T*>(t.data_ptr()), static_cast<T*>(copy.data_ptr()));
    });
    return copy;
  }

  template <class T, class Position>
  static void max_pool(const Pool<T, Position>& p) {
    std::get<PoolKernels<T, Position>>(kernels()).pool(p);
  }
  template <class T, class Position>
  static void max_pool_gather(const PoolMap<T, Position>& p) {
    std::get<PoolKernels<T, Position>>(kernels()).gather(p);
  }
  template <class T, class Position>
  static void max_pool_scatter(const PoolMap<T, Position>& p) {
    std::get<PoolKernels<T, Position>>(kernels()).scatter(p);
  }
  template <class T>
  static void im2col(const Columns<T>& p) {
    std::get<ColumnKernels<T>>(kernels()).im2col(p);
  }
  template <class T>
  static void col2im(const Columns<T>& p) {
    std::get<ColumnKernels<T>>(kernels()).col2im(p);
  }
  template <class F>
  static void dispatch_rectify(const char* op, const Tensor& t, const F& f) {
    dispatch<float, double>(op, t, f);
  }
  template <class T>
  static void rectify(const Rectified<T>& p) {
    if (p.bias != nullptr)
      torch::stable::parallel_for(0, p.count, 16384, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) p.values[i] += p.bias[i / p.channel_step % p.channels];
      });
    std::get<RectifyKernels<T>>(kernels()).rectify(p);
  }
  template <class T>
  static void rectify_input(const RectifyInput<T>& p) {
    std::get<RectifyKernels<T>>(kernels()).rectify_input(p);
  }
  template <class T>
  static void box_sum(const BoxSum<T>& p) {
    const Boxes boxes = look_up(p.boxes);
    std::get<BoxKernels<T>>(kernels()).sum(p, boxes, look_up(p.divisor));
  }
  template <class T>
  static void box_max(const BoxMax<T>& p) {
    std::get<BoxKernels<T>>(kernels()).max(p, look_up(p.boxes));
  }

 private:
  static Boxes look_up(const BoxRule& rule) {
    Boxes boxes{rule.inputs(), rule.outputs(), {}};
    const auto of = rule.of<int64_t>();
    for (int i = 0; i < RANK; i++)
      for (int64_t o = 0; o < boxes.output[i]; o++) boxes.spans[i].push_back(of.span(i, o));
    return boxes;
  }
  static Divisor look_up(const DivisorRule& rule) {
    Divisor divisor;
    const auto of = rule.of<int64_t>();
    for (int i = 0; i < RANK; i++)
      for (int64_t o = 0; o < rule.boxes.outputs()[i]; o++) divisor[i].push_back(static_cast<double>(of.of(i, o)));
    return divisor;
  }

  const char* op_;
};

}  // namespace torchconv
