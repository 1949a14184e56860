// Runs of memory, copied and zeroed. Most are too short for a call of memcpy to pay, and some results too large for the caches.
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
  if (count > 0) std::memset(static_cast<void*>(to), 0, count * sizeof(T));
}

// A result of so many bytes has left the caches before anyone reads it, and is written past them: else each line is read first.
constexpr int64_t FAR_BYTES = 32 << 20;

// One vector, past the caches, to an aligned place; the thread calls `arrive` when it has written its last.
inline __attribute__((always_inline)) void store_far(uint8_t* to, vec<uint8_t> value) {
#if defined(__x86_64__) && VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
#elif defined(__x86_64__) && VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(value));
#else
  store(to, value);
#endif
}

inline void arrive() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// A run, past the caches but for what it shares of their lines with its neighbours.
template <class T>
inline void copy_far(const T* from, T* to, int64_t count) {
  constexpr int64_t L = VECTOR_BYTES / sizeof(T);
  const int64_t first = std::min(count, (-reinterpret_cast<intptr_t>(to) & (VECTOR_BYTES - 1)) / static_cast<int64_t>(sizeof(T)));
  copy_run(from, to, first);
  int64_t i = first;
  for (; i + L <= count; i += L) store_far(reinterpret_cast<uint8_t*>(to + i), load(reinterpret_cast<const uint8_t*>(from + i)));
  copy_run(from + i, to + i, count - i);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
