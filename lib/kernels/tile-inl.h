// The register tile of both matrix products: R broadcast rows x NV vectors of query lanes, R * NV accumulators.
//
//   QK^T:  S^T[key][lane] = sum_k  K[key][k] * Q^T[k][lane]        rows are keys, one pointer each
//   PV:    O^T[d][lane]  += sum_j  V[j][d]   * P^T[j][lane]        rows are R neighbouring columns of V
//
// 32 registers: 8 x 3 accumulators + 3 operands + 1 broadcast = 28. 16 registers: 4 x 3 + 3 + 1 = 16, all of them.
// Accumulators are named locals passed by reference: g++ spills arrays to the stack (64% of peak instead of 98%), and SVE vectors can be
// neither array elements nor struct members. `asm` on the loop's pointers keeps clang from rotating the loop, which needs a 17th register.

#if defined(FOVEA_LIB_KERNELS_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_TILE_INL_H_
#undef FOVEA_LIB_KERNELS_TILE_INL_H_
#else
#define FOVEA_LIB_KERNELS_TILE_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/kernel_params.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// G of lib/NUMERICS.md: keys whose maximum is decided and whose sum is taken together. One constant per target.
#if HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR || \
    HWY_TARGET == HWY_EMU128 || (defined(HWY_SSE2) && HWY_TARGET == HWY_SSE2)
constexpr int kTileKeys = 4;
#else
constexpr int kTileKeys = 8;
#endif

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;

// Whether the third operand vector stays in memory: 12 + 3 + 1 registers leave clang none to spare, and it spills an accumulator (half the speed).
constexpr bool kThirdFromMemory = kTileKeys == 4 && HWY_COMPILER_CLANG;

// An element of a row is what one step of the reduction multiplies: a float, or a pair of bf16, for which bf16_dot-inl.h overloads these.
template <class V>
HWY_INLINE V BroadcastElement(const float* x, V /*type*/) {
  return hn::Set(DF(), *x);
}
template <class V>
HWY_INLINE V MulAddElement(const float* /*type*/, V x, V v, V sum) {
#if HWY_TARGET == HWY_AVX2 && HWY_COMPILER_GCC_ACTUAL
  // Left to choose the form, g++ 12 moves sums about and reads v from memory in every FMA where QkTile has pieces (2% of the speed).
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum.raw) : "x"(x.raw), "x"(v.raw));
  return sum;
#else
  return hn::MulAdd(x, v, sum);
#endif
}

// One row: NV accumulators += x * v. b: where the operand vectors lie.
template <int NV, class T, class V>
HWY_INLINE void FmaRow(const T* x, V v0, V v1, V v2, const float*& b, V& a0, V& a1, V& a2) {
  const DF d;
  const auto vx = BroadcastElement(x, v0);
  a0 = MulAddElement(x, vx, v0, a0);
  if constexpr (NV > 1) a1 = MulAddElement(x, vx, v1, a1);
  if constexpr (NV > 2 && !kThirdFromMemory) a2 = MulAddElement(x, vx, v2, a2);
  if constexpr (NV > 2 && kThirdFromMemory) {
    asm volatile("" : "+r"(b));  // one load per row, as the FMA's memory operand
    a2 = MulAddElement(x, vx, hn::Load(d, b + 2 * hn::Lanes(d)), a2);
  }
}

// One step of the reduction: R rows, x0 .. x(R-1), against the NV vectors at b. Rows past R are not touched.
template <int R, int NV, class T, class V>
HWY_INLINE void FmaStep(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, const T* x5, const T* x6,
                        const T* x7, const float*& b, V& a0, V& b0, V& c0, V& a1, V& b1, V& c1, V& a2,
                        V& b2, V& c2, V& a3, V& b3, V& c3, V& a4, V& b4, V& c4, V& a5, V& b5, V& c5, V& a6, V& b6, V& c6,
                        V& a7, V& b7, V& c7) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const V v0 = hn::Load(d, b);
  V v1 = v0, v2 = v0;
  if constexpr (NV > 1) v1 = hn::Load(d, b + N);
  if constexpr (NV > 2 && !kThirdFromMemory) v2 = hn::Load(d, b + 2 * N);
  FmaRow<NV>(x0, v0, v1, v2, b, a0, b0, c0);
  if constexpr (R > 1) FmaRow<NV>(x1, v0, v1, v2, b, a1, b1, c1);
  if constexpr (R > 2) FmaRow<NV>(x2, v0, v1, v2, b, a2, b2, c2);
  if constexpr (R > 3) FmaRow<NV>(x3, v0, v1, v2, b, a3, b3, c3);
  if constexpr (R > 4) FmaRow<NV>(x4, v0, v1, v2, b, a4, b4, c4);
  if constexpr (R > 5) FmaRow<NV>(x5, v0, v1, v2, b, a5, b5, c5);
  if constexpr (R > 6) FmaRow<NV>(x6, v0, v1, v2, b, a6, b6, c6);
  if constexpr (R > 7) FmaRow<NV>(x7, v0, v1, v2, b, a7, b7, c7);
  b += NV * N;
}

// Two steps, at columns i and i + 1 of the rows.
template <int R, int NV, class T, class V>
HWY_INLINE void FmaTwoSteps(size_t& i, const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, const T* x5, const T* x6,
                            const T* x7, const float*& b, V& a0, V& b0, V& c0, V& a1, V& b1, V& c1, V& a2,
                            V& b2, V& c2, V& a3, V& b3, V& c3, V& a4, V& b4, V& c4, V& a5, V& b5, V& c5, V& a6, V& b6, V& c6,
                            V& a7, V& b7, V& c7) {
  FmaStep<R, NV>(x0 + i, x1 + i, x2 + i, x3 + i, x4 + i, x5 + i, x6 + i, x7 + i, b, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3,
                 b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
  asm volatile("" : "+r"(i), "+r"(b));
  FmaStep<R, NV>(x0 + i + 1, x1 + i + 1, x2 + i + 1, x3 + i + 1, x4 + i + 1, x5 + i + 1, x6 + i + 1, x7 + i + 1, b, a0, b0,
                 c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
  asm volatile("" : "+r"(i), "+r"(b));
}

// Rows that a group's products prefetch into L2 as they go, those of kTileKeys keys of K and of V: a line of each for every two steps. All at once
// they would fill the queues of memory, and the products would wait for them.
struct Ahead {
  const char *k, *v;
  int64_t k_stride, v_stride;  // bytes
  int64_t step;                // bytes that two steps pass of a row: lines are 64, so fewer prefetch some twice
};

// S^T of kTileKeys keys (rows k[0 .. kTileKeys)) against the tile's Q^T [dim][NV * N]; dim in elements of T. Between the steps: piece(r) of other
// work for each r < kTileKeys, if kPieces; what `ahead` says, if kAhead (else it may be null).
template <int NV, bool kPieces, bool kAhead, class T, class V, class Piece>
HWY_INLINE void QkTile(const T* const* HWY_RESTRICT k, const float* qt, size_t dim, const Piece& piece, const Ahead* ahead, V& a0, V& b0, V& c0,
                       V& a1, V& b1, V& c1, V& a2, V& b2, V& c2, V& a3, V& b3, V& c3, V& a4, V& b4, V& c4, V& a5, V& b5, V& c5,
                       V& a6, V& b6, V& c6, V& a7, V& b7, V& c7) {
  constexpr int R = kTileKeys;
  const T *k0 = k[0], *k1 = k[1], *k2 = k[2], *k3 = k[3];
  const T *k4 = k0, *k5 = k0, *k6 = k0, *k7 = k0;
  if constexpr (R == 8) k4 = k[4], k5 = k[5], k6 = k[6], k7 = k[7];
  constexpr size_t kParts = kPieces || kAhead ? R : 1;
  const size_t steps = (dim + 2 * kParts - 1) / (2 * kParts) * 2;  // even
  const char *next_k = kAhead ? ahead->k : nullptr, *next_v = kAhead ? ahead->v : nullptr;
  size_t i = 0;
  for (size_t r = 0; r < kParts; ++r) {
    const size_t end = kParts > 1 ? HWY_MIN(i + steps, dim) : dim;
    const char *at_k = next_k, *at_v = next_v;
    // Two steps per turn: the exit of a 64-step loop is mispredicted otherwise.
    for (; i + 2 <= end; i += 2) {
      if constexpr (kAhead) {
        __builtin_prefetch(at_k, 0, 2), __builtin_prefetch(at_v, 0, 2);
        at_k += ahead->step, at_v += ahead->step;
      }
      FmaTwoSteps<R, NV>(i, k0, k1, k2, k3, k4, k5, k6, k7, qt, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6,
                         a7, b7, c7);
    }
    if constexpr (kAhead) next_k += ahead->k_stride, next_v += ahead->v_stride;
    if constexpr (kPieces) {
      piece(r);
      asm volatile("" : "+r"(i));  // or the pieces left when the steps are over become a loop of their own
    }
  }
  if (i < dim) {
    FmaStep<R, NV>(k0 + i, k1 + i, k2 + i, k3 + i, k4 + i, k5 + i, k6 + i, k7 + i, qt, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3,
                   b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
  }
}

// R rows of NV vectors at o += the accumulators.
template <int R, int NV, class V>
HWY_INLINE void AddRows(float* HWY_RESTRICT o, V a0, V b0, V c0, V a1, V b1, V c1, V a2, V b2, V c2, V a3, V b3, V c3, V a4, V b4,
                        V c4, V a5, V b5, V c5, V a6, V b6, V c6, V a7, V b7, V c7) {
  const DF d;
  const size_t N = hn::Lanes(d), L = NV * N;
  const auto add = [&](V x, float* to) HWY_ATTR { hn::Store(hn::Add(hn::Load(d, to), x), d, to); };
  const auto row = [&](size_t r, V a, V b, V c) HWY_ATTR {
    if (r >= size_t{R}) return;
    add(a, o + r * L);
    if constexpr (NV > 1) add(b, o + r * L + N);
    if constexpr (NV > 2) add(c, o + r * L + 2 * N);
  };
  row(0, a0, b0, c0), row(1, a1, b1, c1), row(2, a2, b2, c2), row(3, a3, b3, c3);
  row(4, a4, b4, c4), row(5, a5, b5, c5), row(6, a6, b6, c6), row(7, a7, b7, c7);
}

// O^T rows [0, R) of ot += sum over n keys (pairs of them, if T is a pair) of V[j][R columns from col] * P^T[j]. A row's bits do not depend on R. The
// sum of a block starts at 0 and is added once: rounding grows with keys per block plus blocks, not with keys.
template <int R, int NV, class T>
HWY_INLINE void PvRows(const T* const* HWY_RESTRICT v, size_t col, size_t n, const float* p, float* HWY_RESTRICT ot) {
  const DF d;
  using V = hn::Vec<DF>;
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
  V b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0, b5 = a0, b6 = a0, b7 = a0;
  V c0 = a0, c1 = a0, c2 = a0, c3 = a0, c4 = a0, c5 = a0, c6 = a0, c7 = a0;
  const T* const* end = v + n;
  for (; v != end; ++v) {
    const T* x = *v + col;
    FmaStep<R, NV>(x, x + 1, x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, p, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4,
                   b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
    asm volatile("" : "+r"(v), "+r"(p));
  }
  AddRows<R, NV>(ot, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
}

// PV for all v_head_dim columns; the last ones by narrower tiles of the same arithmetic.
template <int NV, class T>
HWY_NOINLINE void PvTile(const T* const* HWY_RESTRICT v, size_t v_head_dim, size_t n, const float* HWY_RESTRICT p,
                         float* HWY_RESTRICT ot) {
  const size_t L = NV * hn::Lanes(DF());
  size_t col = 0;
  for (; col + kTileKeys <= v_head_dim; col += kTileKeys) PvRows<kTileKeys, NV>(v, col, n, p, ot + col * L);
  if constexpr (kTileKeys == 8) {
    if (col + 4 <= v_head_dim) PvRows<4, NV>(v, col, n, p, ot + col * L), col += 4;
  }
  if (col + 2 <= v_head_dim) PvRows<2, NV>(v, col, n, p, ot + col * L), col += 2;
  if (col < v_head_dim) PvRows<1, NV>(v, col, n, p, ot + col * L);
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
