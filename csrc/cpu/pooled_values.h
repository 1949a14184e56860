// Vectors of the places of maxima, beside those of what is pooled (wide.h).
namespace torchconv {
namespace TORCHCONV_ISA {

// An integer as wide as the value beside it, so that both fill the same lanes.
template <class T>
using WideIndex = std::conditional_t<sizeof(wide<T>) == 8, int64_t, int32_t>;

// One vector of indices beside values, and of positions as they are saved.
template <class T>
using Indices = vec<WideIndex<T>>;
template <class T, class Position>
struct Saved {
  typedef Position type __attribute__((vector_size(lanes<wide<T>> * sizeof(Position))));
};

// Of bytes, the compiler would move each on its own. (Without a mask, GCC 12 warns of its own header.)
template <class T, class Position>
inline __attribute__((always_inline)) Indices<T> load_positions(const Position* from) {
  [[maybe_unused]] constexpr bool bytes = sizeof(Position) == 1 && sizeof(WideIndex<T>) == 4;
#if defined(__x86_64__) && VECTOR_BYTES == 64
  if constexpr (bytes) return reinterpret_cast<Indices<T>>(_mm512_maskz_cvtepu8_epi32(-1, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__x86_64__) && VECTOR_BYTES == 32
  if constexpr (bytes) return reinterpret_cast<Indices<T>>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#endif
  typename Saved<T, Position>::type saved;
  std::memcpy(&saved, from, sizeof saved);
  if constexpr (sizeof(Position) == 1) {  // in steps of two
    const auto words = __builtin_convertvector(saved, typename Saved<T, uint16_t>::type);
    const auto halves = __builtin_convertvector(words, typename Saved<T, int32_t>::type);
    return __builtin_convertvector(halves, Indices<T>);
  } else {
    return __builtin_convertvector(saved, Indices<T>);
  }
}

template <class T, class Position>
inline __attribute__((always_inline)) void store_positions(Position* to, Indices<T> indices) {
#if defined(__x86_64__) && VECTOR_BYTES == 64
  if constexpr (sizeof(Position) == 1 && sizeof(WideIndex<T>) == 4)
    return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(-1, reinterpret_cast<__m512i>(indices)));
#endif
  const auto saved = __builtin_convertvector(indices, typename Saved<T, Position>::type);
  std::memcpy(to, &saved, sizeof saved);
}

// The best of what comes, one after another, and as which it came: a vector of both. Ties go to the first, a NaN wins.
template <class T>
struct Best {
  Values<T> value;
  Indices<T> position;

  explicit Best(int64_t first) : value(Values<T>{} - std::numeric_limits<wide<T>>::infinity()), position(Indices<T>{} + static_cast<WideIndex<T>>(first)) {}

  inline __attribute__((always_inline)) void keep(Values<T> other, int64_t at) {
    const auto better = other > value, none = other != other;
    position = better | none ? Indices<T>{} + static_cast<WideIndex<T>>(at) : position;
    value = none ? other : other > value ? other : value;  // in this order the maximum is one instruction
  }
};

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
