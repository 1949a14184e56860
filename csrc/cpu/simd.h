// Vector type of the instruction set that a translation unit is compiled for.
//
// Every kernel is a template in the namespace TORCHCONV_ISA. kernels_baseline.cpp, kernels_avx2.cpp and
// kernels_avx512.cpp include the same headers, each under its own target pragma, so one text serves all
// instruction sets. The GCC/Clang vector extensions need no intrinsics: with the accumulators of a
// micro-kernel in an array of vectors and the loops over it unrolled, they compile to FMA on registers.
//
// No include guard: a translation unit that defines TORCHCONV_ISA includes this exactly once.
#include <cstdint>
#include <cstring>

namespace torchconv {
namespace TORCHCONV_ISA {

// `vec<T>` holds VECTOR_BYTES / sizeof(T) lanes; `unaligned<T>` is the same value at any address.
template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  typedef T loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using vec = typename Vector<T>::type;

template <class T>
constexpr int lanes = VECTOR_BYTES / sizeof(T);

// What an element is moved about as, whatever it stands for: there are no vectors of bfloat16.
template <class T>
using Bits = std::conditional_t<std::is_arithmetic_v<T>, T, uint16_t>;

template <class T>
inline __attribute__((always_inline)) vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::loose*>(from);
}

template <class T>
inline __attribute__((always_inline)) void store(T* to, vec<T> value) {
  *reinterpret_cast<typename Vector<T>::loose*>(to) = value;
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
