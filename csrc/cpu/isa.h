// Which instruction set the kernels use.
#pragma once

#include <string>
#include <vector>

namespace torchconv {

// Instruction sets that this build has and this processor runs, best first: "avx512", "avx2", "baseline".
std::vector<std::string> available_isas();

std::string isa();

// Forces one of them for the whole process; an error names those available.
void set_isa(const std::string& name);

}  // namespace torchconv
