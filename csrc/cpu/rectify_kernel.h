// ReLU in place, and what its backward pass needs: a bit per element, 64 to a word, the first one lowest.
namespace torchconv {
namespace TORCHCONV_ISA {

constexpr int64_t WORD = 64;

// An integer as wide as the value beside it.
template <class T>
using Lane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Bit i is the sign of lane i: of a comparison, its truth.
template <class T>
inline __attribute__((always_inline)) uint64_t bits_of(vec<Lane<T>> truth) {
  [[maybe_unused]] constexpr bool wide = sizeof(T) == 8;
#if defined(__x86_64__) && VECTOR_BYTES == 64
  return wide ? _mm512_movepi64_mask(reinterpret_cast<__m512i>(truth)) : _mm512_movepi32_mask(reinterpret_cast<__m512i>(truth));
#elif defined(__x86_64__) && VECTOR_BYTES == 32
  return wide ? _mm256_movemask_pd(reinterpret_cast<__m256d>(truth)) : _mm256_movemask_ps(reinterpret_cast<__m256>(truth));
#elif defined(__x86_64__)
  return wide ? _mm_movemask_pd(reinterpret_cast<__m128d>(truth)) : _mm_movemask_ps(reinterpret_cast<__m128>(truth));
#else
  uint64_t bits = 0;
  for (int i = 0; i < lanes<T>; i++) bits |= uint64_t(truth[i] != 0) << i;
  return bits;
#endif
}

// Lane i is all ones where bit i is set.
template <class T, int... I>
inline __attribute__((always_inline)) vec<Lane<T>> lanes_of(uint64_t bits, std::integer_sequence<int, I...>) {
  constexpr vec<Lane<T>> one{(Lane<T>(1) << I)...};
  return ((vec<Lane<T>>{} + static_cast<Lane<T>>(bits)) & one) != 0;
}

// A bit tells where the gradient passes: not where the value is <= 0, nor where it is the most that there may be, or more.
template <class T>
void rectify(const Rectified<T>& p) {
  constexpr int64_t L = lanes<T>;
  const T most = p.most;
  const bool ends = most < std::numeric_limits<T>::infinity();
  torch::stable::parallel_for(0, ceil_div(p.count, WORD), 512, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; word++) {
      T* const values = p.values + word * WORD;
      const int64_t count = std::min(WORD, p.count - word * WORD);
      uint64_t bits = 0;
      if (count == WORD) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < WORD; i += L) {
          const vec<T> x = load(values + i);
          store(values + i, rectified(x, most));
          bits |= bits_of<T>(ends ? ~((x <= 0) | (x >= most)) : ~(x <= 0)) << i;
        }
      } else {
        for (int64_t i = 0; i < count; i++) {
          bits |= uint64_t(!(values[i] <= 0 || (ends && values[i] >= most))) << i;
          values[i] = rectified(values[i], most);
        }
      }
      if (p.signs != nullptr) p.signs[word] = bits;
    }
  });
}

template <class T>
void rectify_input(const RectifyInput<T>& p) {
  constexpr int64_t L = lanes<T>;
  torch::stable::parallel_for(0, ceil_div(p.count, WORD), 512, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; word++) {
      const T* const from = p.grad_output + word * WORD;
      T* const to = p.grad_input + word * WORD;
      const int64_t count = std::min(WORD, p.count - word * WORD);
      const uint64_t bits = p.signs[word];
      if (count == WORD) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < WORD; i += L)
          store(to + i, lanes_of<T>(bits >> i, std::make_integer_sequence<int, L>{}) ? load(from + i) : vec<T>{});
      } else {
        for (int64_t i = 0; i < count; i++) to[i] = bits >> i & 1 ? from[i] : T(0);
      }
    }
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
