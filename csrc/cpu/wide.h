// Vectors of what values are computed in (problems.h), whatever type they are stored as.
namespace torchconv {
namespace TORCHCONV_ISA {

template <class S>
using Values = vec<wide<S>>;

// A vector of bfloat16's bits, each as a number of 32.
inline __attribute__((always_inline)) vec<uint32_t> bits_of(const BFloat16* from) {
  typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return __builtin_convertvector(halves, vec<uint32_t>);
}

template <class S>
inline __attribute__((always_inline)) Values<S> load_values(const S* from) {
  if constexpr (std::is_same_v<S, wide<S>>) return load(from);
  if constexpr (std::is_same_v<S, BFloat16>) return reinterpret_cast<vec<float>>(bits_of(from) << 16);  // the upper half of a float
  Values<S> values;
  for (int i = 0; i < lanes<wide<S>>; i++) values[i] = static_cast<wide<S>>(from[i]);
  return values;
}

// Rounded to the nearest, of two to the even one; the conversion of one value does it like that, too.
template <class S>
inline __attribute__((always_inline)) void store_values(S* to, Values<S> values) {
  if constexpr (std::is_same_v<S, wide<S>>) return store(to, values);
  if constexpr (std::is_same_v<S, BFloat16>) {
    typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
    const auto bits = reinterpret_cast<vec<uint32_t>>(values);
    const auto rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const auto halves = __builtin_convertvector(values != values ? vec<uint32_t>{} + 0x7fc0 : rounded, Halves);
    std::memcpy(to, &halves, sizeof halves);
    return;
  }
  for (int i = 0; i < lanes<wide<S>>; i++) to[i] = static_cast<S>(values[i]);
}

// The first `count` of them, which may be more than a vector holds; the rest is zero, and stays what it is.
template <class S>
inline __attribute__((always_inline)) Values<S> load_some(const S* from, int64_t count) {
  if (count >= lanes<wide<S>>) return load_values(from);
  S part[lanes<wide<S>>] = {};
  std::memcpy(static_cast<void*>(part), from, count * sizeof(S));
  return load_values(part);
}

template <class S>
inline __attribute__((always_inline)) void store_some(S* to, Values<S> values, int64_t count) {
  if (count >= lanes<wide<S>>) return store_values(to, values);
  S part[lanes<wide<S>>];
  store_values(part, values);
  std::memcpy(static_cast<void*>(to), part, count * sizeof(S));
}

// A run of them in memory, on all threads.
template <class S>
void widen(int64_t count, const S* from, wide<S>* to) {
  constexpr int64_t L = lanes<wide<S>>;
  torch::stable::parallel_for(0, ceil_div(count, L), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * L; i < std::min(end * L, count); i += L) store_some(to + i, load_some(from + i, count - i), count - i);
  });
}

template <class S>
void narrow(int64_t count, const wide<S>* from, S* to) {
  constexpr int64_t L = lanes<wide<S>>;
  torch::stable::parallel_for(0, ceil_div(count, L), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * L; i < std::min(end * L, count); i += L) store_some(to + i, load_some(from + i, count - i), count - i);
  });
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
