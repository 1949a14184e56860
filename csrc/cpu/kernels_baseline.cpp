// The kernels for any processor: 16-byte vectors (SSE2 on x86-64, NEON on 64-bit Arm).
#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "scratch.h"

#define TORCHCONV_ISA baseline
#define VECTOR_BYTES 16
#include "all_kernels.h"
