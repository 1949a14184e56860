// The CPU's convolutions, as the ops call them (conv.cpp), and those of 16-bit numbers (narrow_conv.cpp).
#pragma once

#include <optional>
#include <string>

#include "../ops/conv.h"
#include "cpu.h"

namespace torchconv {

struct CpuConv : Cpu {
  using Cpu::Cpu;
  static void conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                   const std::optional<Tensor>& packed, const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output);
  static void conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input);
  static void conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                          const Tensor& grad_weight);
};

// The same three, which the first ones call.
template <class S>
struct NarrowConv {
  static void conv(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& weight,
                   const std::optional<Tensor>& bias, std::optional<double> max_value, const Tensor& output);
  static void conv_input(const char* op, const std::string& algorithm, const Problem& p, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input);
  static void conv_weight(const char* op, const std::string& algorithm, const Problem& p, const Tensor& input, const Tensor& grad_output,
                          const Tensor& grad_weight);
};

}  // namespace torchconv
