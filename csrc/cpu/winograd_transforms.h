// Winograd's minimal filtering F(m x m, 3x3) (Lavin & Gray 2016, arXiv:1509.09308, equations 8 and 16):
//
//   Y = A^T [ (G g G^T) * (B^T d B) ] A        (* is elementwise)
//
// computes a tile of m x m outputs from a tile d of (m+2) x (m+2) inputs with (m+2)^2 products instead of 9 m^2. In one dimension it is
// A^T [ (G g) * (B^T d) ]. Y is linear in g; the transposition of that map, which the weight's gradient is, has the transposed matrices.
//
// With r taps, a tile of m outputs has n = m + r - 1 inputs, and n points a, at which polynomials of the outputs', taps' and inputs' numbers
// are evaluated: A^T has rows a^0, a^1, ... a^(m-1), and G the columns a^0, ... a^(r-1), each row divided by what makes B^T of whole
// numbers, or nearly. At the point infinity only the highest power counts. So B^T is the same for any m and r of the same n.
namespace torchconv {
namespace TORCHCONV_ISA {
namespace winograd {

// A kernel of one tap: nothing to transform.
struct One {
  static constexpr int OUT = 1, IN = 1, TAPS = 1;
  template <class V>
  static inline __attribute__((always_inline)) void input(const V d[1], V to[1]) { to[0] = d[0]; }
  template <class T>
  static inline __attribute__((always_inline)) void weight(const vec<T> g[1], vec<T> to[1]) { to[0] = g[0]; }
  template <class V>
  static inline __attribute__((always_inline)) void output(const V m[1], V to[1]) { to[0] = m[0]; }
  template <class V>
  static inline __attribute__((always_inline)) void grad_output(const V y[1], V to[1]) { to[0] = y[0]; }
  template <class T>
  static inline __attribute__((always_inline)) void grad_weight(const vec<T> m[1], vec<T> to[1]) { to[0] = m[0]; }
};

// 36 products for 4x4 outputs instead of 144, with the points 0, 1, -1, 2, -2, inf:
//
//          4  0 -5  0  1  0           1/4    0     0            1  1  1  1  1  0
//          0 -4 -4  1  1  0          -1/6  -1/6  -1/6    A^T =  0  1 -1  2 -2  0
//   B^T =  0  4 -4 -1  1  0     G =  -1/6   1/6  -1/6           0  1  1  4  4  0
//          0 -2 -1  2  1  0          1/24  1/12   1/6           0  1 -1  8 -8  1
//          0  2 -1 -2  1  0          1/24 -1/12   1/6
//          0  4  0 -5  0  1            0     0     1
struct F4 {
  static constexpr int OUT = 4, IN = 6, TAPS = 3;

  // One dimension of B^T d.
  template <class V>
  static inline __attribute__((always_inline)) void input(const V d[IN], V to[IN]) {
    const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], twice = 2 * (d[3] - d[1]);
    to[0] = 4 * d[0] - 5 * d[2] + d[4];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = far + twice;
    to[4] = far - twice;
    to[5] = 4 * d[1] - 5 * d[3] + d[5];
  }

  // One dimension of G g. Multiplied, not divided: division takes ten times as long.
  template <class T>
  static inline __attribute__((always_inline)) void weight(const vec<T> g[TAPS], vec<T> to[IN]) {
    constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twentyfourth = T(1) / 24;
    const vec<T> outer = (g[0] + g[2]) * -sixth, inner = g[1] * sixth, near = g[0] * twentyfourth + g[2] * sixth, half = g[1] * twelfth;
    to[0] = g[0] * T(0.25);
    to[1] = outer - inner;
    to[2] = outer + inner;
    to[3] = near + half;
    to[4] = near - half;
    to[5] = g[2];
  }

  // One dimension of A^T m.
  template <class V>
  static inline __attribute__((always_inline)) void output(const V m[IN], V to[OUT]) {
    const V sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    to[0] = m[0] + sum1 + sum2;
    to[1] = difference1 + 2 * difference2;
    to[2] = sum1 + 4 * sum2;
    to[3] = difference1 + 8 * difference2 + m[5];
  }

  // One dimension of A y.
  template <class V>
  static inline __attribute__((always_inline)) void grad_output(const V y[OUT], V to[IN]) {
    const V even = y[0] + y[2], odd = y[1] + y[3], even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
    to[0] = y[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = even2 + odd2;
    to[4] = even2 - odd2;
    to[5] = y[3];
  }

  // One dimension of G^T m.
  template <class T>
  static inline __attribute__((always_inline)) void grad_weight(const vec<T> m[IN], vec<T> to[TAPS]) {
    constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twentyfourth = T(1) / 24;
    const vec<T> sum1 = m[1] + m[2], sum2 = m[3] + m[4];
    to[0] = m[0] * T(0.25) - sum1 * sixth + sum2 * twentyfourth;
    to[1] = (m[2] - m[1]) * sixth + (m[3] - m[4]) * twelfth;
    to[2] = (sum2 - sum1) * sixth + m[5];
  }
};

// 64 products for 6x6 outputs instead of 324, with the points 0, 1, -1, 2, -2, 1/2, -1/2, inf; it errs by twice as much as F4:
//
//          1    0  -21/4    0    21/4    0   -1  0             1      0      0
//          0    1    1   -17/4  -17/4    1    1  0           -2/9   -2/9   -2/9            1  1  1  1   1   1     1   0
//          0   -1    1    17/4  -17/4   -1    1  0           -2/9    2/9   -2/9            0  1 -1  2  -2  1/2  -1/2  0
//   B^T =  0   1/2  1/4   -5/2   -5/4    2    1  0     G =   1/90   1/45   2/45    A^T =   0  1  1  4   4  1/4   1/4  0
//          0  -1/2  1/4    5/2   -5/4   -2    1  0           1/90  -1/45   2/45            0  1 -1  8  -8  1/8  -1/8  0
//          0    2    4    -5/2    -5   1/2    1  0          32/45  16/45   8/45            0  1  1 16  16  1/16 1/16  0
//          0   -2    4     5/2    -5  -1/2    1  0          32/45 -16/45   8/45            0  1 -1 32 -32  1/32 -1/32 1
//          0   -1    0    21/4     0  -21/4   0  1             0      0      1
struct F6 {
  static constexpr int OUT = 6, IN = 8, TAPS = 3;

  template <class V>
  static inline __attribute__((always_inline)) void input(const V d[IN], V to[IN]) {
    const V even1 = d[2] + d[6] - 4.25f * d[4], odd1 = d[1] + d[5] - 4.25f * d[3];
    const V even2 = d[6] + 0.25f * d[2] - 1.25f * d[4], odd2 = 0.5f * d[1] - 2.5f * d[3] + 2 * d[5];
    const V even3 = d[6] + 4 * d[2] - 5 * d[4], odd3 = 2 * d[1] - 2.5f * d[3] + 0.5f * d[5];
    to[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
    to[1] = even1 + odd1;
    to[2] = even1 - odd1;
    to[3] = even2 + odd2;
    to[4] = even2 - odd2;
    to[5] = even3 + odd3;
    to[6] = even3 - odd3;
    to[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
  }

  template <class T>
  static inline __attribute__((always_inline)) void weight(const vec<T> g[TAPS], vec<T> to[IN]) {
    constexpr T ninth = T(1) / 9, fortyfifth = T(1) / 45;
    const vec<T> outer1 = (g[0] + g[2]) * (-2 * ninth), inner1 = g[1] * (2 * ninth);
    const vec<T> outer2 = (g[0] + 4 * g[2]) * (T(0.5) * fortyfifth), inner2 = g[1] * fortyfifth;
    const vec<T> outer3 = (4 * g[0] + g[2]) * (8 * fortyfifth), inner3 = g[1] * (16 * fortyfifth);
    to[0] = g[0];
    to[1] = outer1 - inner1;
    to[2] = outer1 + inner1;
    to[3] = outer2 + inner2;
    to[4] = outer2 - inner2;
    to[5] = outer3 + inner3;
    to[6] = outer3 - inner3;
    to[7] = g[2];
  }

  template <class V>
  static inline __attribute__((always_inline)) void output(const V m[IN], V to[OUT]) {
    const V sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    const V sum3 = m[5] + m[6], difference3 = m[5] - m[6];
    to[0] = m[0] + sum1 + sum2 + sum3;
    to[1] = difference1 + 2 * difference2 + 0.5f * difference3;
    to[2] = sum1 + 4 * sum2 + 0.25f * sum3;
    to[3] = difference1 + 8 * difference2 + 0.125f * difference3;
    to[4] = sum1 + 16 * sum2 + 0.0625f * sum3;
    to[5] = difference1 + 32 * difference2 + 0.03125f * difference3 + m[7];
  }
};

// F(2, 5), 6 products for 2 outputs instead of 10, with the points of F4:
//
//          1/4     0     0     0     0
//         -1/6  -1/6  -1/6  -1/6  -1/6    A^T =  1  1  1  1  1  0
//   G =   -1/6   1/6  -1/6   1/6  -1/6           0  1 -1  2 -2  1
//          1/24  1/12   1/6   1/3   2/3
//          1/24 -1/12   1/6  -1/3   2/3
//            0     0     0     0     1
struct F2of5 {
  static constexpr int OUT = 2, IN = 6, TAPS = 5;

  template <class V>
  static inline __attribute__((always_inline)) void input(const V d[IN], V to[IN]) { F4::input(d, to); }

  template <class T>
  static inline __attribute__((always_inline)) void weight(const vec<T> g[TAPS], vec<T> to[IN]) {
    constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twentyfourth = T(1) / 24;
    const vec<T> even = (g[0] + g[2] + g[4]) * -sixth, odd = (g[1] + g[3]) * sixth;
    const vec<T> even2 = g[0] * twentyfourth + (g[2] + 4 * g[4]) * sixth, odd2 = (g[1] + 4 * g[3]) * twelfth;
    to[0] = g[0] * T(0.25);
    to[1] = even - odd;
    to[2] = even + odd;
    to[3] = even2 + odd2;
    to[4] = even2 - odd2;
    to[5] = g[4];
  }

  template <class V>
  static inline __attribute__((always_inline)) void output(const V m[IN], V to[OUT]) {
    to[0] = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
    to[1] = (m[1] - m[2]) + 2 * (m[3] - m[4]) + m[5];
  }

  template <class V>
  static inline __attribute__((always_inline)) void grad_output(const V y[OUT], V to[IN]) {
    to[0] = y[0];
    to[1] = y[0] + y[1];
    to[2] = y[0] - y[1];
    to[3] = y[0] + 2 * y[1];
    to[4] = y[0] - 2 * y[1];
    to[5] = y[1];
  }

  template <class T>
  static inline __attribute__((always_inline)) void grad_weight(const vec<T> m[IN], vec<T> to[TAPS]) {
    constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twentyfourth = T(1) / 24;
    const vec<T> sum1 = (m[1] + m[2]) * sixth, sum2 = m[3] + m[4], difference1 = (m[2] - m[1]) * sixth, difference2 = (m[3] - m[4]) * twelfth;
    to[0] = m[0] * T(0.25) - sum1 + sum2 * twentyfourth;
    to[1] = difference1 + difference2;
    to[2] = sum2 * sixth - sum1;
    to[3] = difference1 + 4 * difference2;
    to[4] = 4 * sixth * sum2 - sum1 + m[5];
  }
};

// F(4, 5), 8 products for 4 outputs instead of 20, with the points of F6 and its A^T as far as a^3:
//
//           1      0      0      0      0
//         -2/9   -2/9   -2/9   -2/9   -2/9
//         -2/9    2/9   -2/9    2/9   -2/9
//   G =   1/90   1/45   2/45   4/45   8/45
//         1/90  -1/45   2/45  -4/45   8/45
//        32/45  16/45   8/45   4/45   2/45
//        32/45 -16/45   8/45  -4/45   2/45
//           0      0      0      0      1
struct F4of5 {
  static constexpr int OUT = 4, IN = 8, TAPS = 5;

  template <class V>
  static inline __attribute__((always_inline)) void input(const V d[IN], V to[IN]) { F6::input(d, to); }

  template <class T>
  static inline __attribute__((always_inline)) void weight(const vec<T> g[TAPS], vec<T> to[IN]) {
    constexpr T ninth = T(1) / 9, fortyfifth = T(1) / 45;
    const vec<T> even1 = (g[0] + g[2] + g[4]) * (-2 * ninth), odd1 = (g[1] + g[3]) * (2 * ninth);
    const vec<T> even2 = (g[0] + 4 * g[2] + 16 * g[4]) * (T(0.5) * fortyfifth), odd2 = (g[1] + 4 * g[3]) * fortyfifth;
    const vec<T> even3 = (16 * g[0] + 4 * g[2] + g[4]) * (2 * fortyfifth), odd3 = (4 * g[1] + g[3]) * (4 * fortyfifth);
    to[0] = g[0];
    to[1] = even1 - odd1;
    to[2] = even1 + odd1;
    to[3] = even2 + odd2;
    to[4] = even2 - odd2;
    to[5] = even3 + odd3;
    to[6] = even3 - odd3;
    to[7] = g[4];
  }

  template <class V>
  static inline __attribute__((always_inline)) void output(const V m[IN], V to[OUT]) {
    const V sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    const V sum3 = m[5] + m[6], difference3 = m[5] - m[6];
    to[0] = m[0] + sum1 + sum2 + sum3;
    to[1] = difference1 + 2 * difference2 + 0.5f * difference3;
    to[2] = sum1 + 4 * sum2 + 0.25f * sum3;
    to[3] = difference1 + 8 * difference2 + 0.125f * difference3 + m[7];
  }
};

// What is done along a picture's columns, and along its rows: points and taps are numbered row by row.
template <class COLUMNS, class ROWS>
struct Both {
  using Y = COLUMNS;
  using X = ROWS;
  static constexpr int OUTS = Y::OUT * X::OUT, POINTS = Y::IN * X::IN, TAPS = Y::TAPS * X::TAPS;
};

}  // namespace winograd
}  // namespace TORCHCONV_ISA
}  // namespace torchconv
