// Activations in the order that the kernels work in: channels-last. Others are transposed on the way.
#pragma once

#include "cpu.h"
#include "scratch.h"

namespace torchconv {

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

}  // namespace torchconv
