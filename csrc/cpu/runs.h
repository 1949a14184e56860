// Runs of memory, copied and zeroed. Most are too short for a call of memcpy to pay.
namespace torchconv {
namespace TORCHCONV_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Copies a run of BYTES to twice as many by its two ends; false where it is shorter.
template <int64_t BYTES, class T>
inline __attribute__((always_inline)) bool copy_between(const T* from, T* to, int64_t count) {
  constexpr int64_t N = BYTES / sizeof(T);
  if (N == 0 || count < N) return false;
  std::memcpy(static_cast<void*>(to), from, BYTES);
  std::memcpy(static_cast<void*>(to + count - N), from + count - N, BYTES);
  return true;
}

template <class T>
inline __attribute__((always_inline)) void copy_run(const T* from, T* to, int64_t count) {
  constexpr int64_t L = lanes<T>;
  if (count < L) {
    if (!copy_between<32>(from, to, count) && !copy_between<16>(from, to, count) && !copy_between<8>(from, to, count))
      for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return;
  }
  int64_t i = 0;
  for (; i + L <= count; i += L) std::memcpy(static_cast<void*>(to + i), from + i, VECTOR_BYTES);
  if (i < count) std::memcpy(static_cast<void*>(to + count - L), from + count - L, VECTOR_BYTES);
}

template <class T>
inline void zero_run(T* to, int64_t count) {
  if (count > 0) std::memset(to, 0, count * sizeof(T));
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
