// The kernels for x86-64 processors with AVX-512 (F, BW, DQ, VL), and for those that have AMX as well.
#if defined(__x86_64__)
#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include <immintrin.h>

#include "kernels.h"
#include "scratch.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#endif
#define TORCHCONV_ISA avx512
#define VECTOR_BYTES 64
#include "all_kernels.h"
#include "amx_kernel.h"
#include "amx_weight_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
