// As many multiply-adds as the processor can do: independent chains that stay in registers. roofline.py compiles it with
// LANES, the floats of a vector.
typedef float Vector __attribute__((vector_size(4 * LANES)));

enum { CHAINS = 12 };  // latency times units; with two constants they fit the 16 registers of AVX2

// Floating-point operations done in `rounds` rounds; `seed` keeps the compiler from computing them itself.
double peak(long rounds, float seed, float* sink) {
  Vector sums[CHAINS], factor, term;
  for (int lane = 0; lane < LANES; lane++) {
    factor[lane] = 0.5f + seed;
    term[lane] = 1.0f - seed;
  }
  for (int chain = 0; chain < CHAINS; chain++) sums[chain] = factor * (float)(chain + 1);
  for (long round = 0; round < rounds; round++)
    for (int chain = 0; chain < CHAINS; chain++) sums[chain] = sums[chain] * factor + term;
  for (int chain = 0; chain < CHAINS; chain++) *sink += sums[chain][0];
  return 2.0 * LANES * CHAINS * rounds;
}
