// ReLU and its like, of what a kernel has just computed, while that is in registers or in the cache.
namespace torchconv {
namespace TORCHCONV_ISA {

// Of a vector or a number: brought into [0, most]. -0 and NaN stay, as in torch.
template <class V, class T>
inline __attribute__((always_inline)) V rectified(V value, T most) {
  value = value < 0 ? V{} : value;
  return value > most ? V{} + most : value;
}

// A run of a convolution's outputs.
template <class T>
void activate(const Activation<T>& activation, T* values, int64_t count) {
  constexpr int64_t L = lanes<T>;
  if (!activation.rectifies) return;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(values + i, rectified(load(values + i), activation.most));
  for (; i < count; i++) values[i] = rectified(values[i], activation.most);
}

}  // namespace TORCHCONV_ISA
}  // namespace torchconv
