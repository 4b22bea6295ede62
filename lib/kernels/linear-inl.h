// y = x W^T + bias. Many tokens: the register tile of QK^T without a softmax, blocked as BLIS does (Van Zee & van de
// Geijn 2015):
//
//   sum^T[row][token] += sum_k W[row][k] (broadcast) * x^T[k][token]      tokens in lanes, kLinearBlockK features at a
//   time
//
// x^T is packed once per chunk of tokens (linear.cc), by panels of kTileVecs vectors; W is packed block-wise, by groups of kTileKeys rows, and
// every panel reads that: a panel's x^T stays in L1 or L2 while all groups of the block pass. W is read from memory
// once per chunk and panel task, x^T once per kLinearBlockRows rows.
//
// Few tokens: dot products over W where it lies, each row read once, bound by reading it.

#if defined(FOVEA_LIB_KERNELS_LINEAR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_LINEAR_INL_H_
#undef FOVEA_LIB_KERNELS_LINEAR_INL_H_
#else
#define FOVEA_LIB_KERNELS_LINEAR_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/dot-inl.h"
#include "lib/kernels/linear_params.h"
#include "lib/kernels/query_tile-inl.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D1 = hn::CappedTag<float, 1>;

// packed[k][lane] = x[lane][k] of `rows` rows, zeros in lanes past them: tokens of a panel, and rows of W of a group.
template <class T>
HWY_NOINLINE void LinearPack(const void* x_data, int64_t stride, int32_t rows, int32_t k_count, int32_t lanes,
                             float* HWY_RESTRICT packed) {
  const T* const x = static_cast<const T*>(x_data);
  const size_t L = static_cast<size_t>(lanes), dim = static_cast<size_t>(k_count);
  int32_t lane = 0;
#if HWY_TARGET != HWY_SCALAR
  for (; lane + 4 <= rows; lane += 4) {
    const D4 d;
    const T *x0 = x + lane * stride, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    float* const dst = packed + lane;
    size_t k = 0;
    for (; k + 4 <= dim; k += 4) {
      auto r0 = LoadF32(d, x0 + k), r1 = LoadF32(d, x1 + k), r2 = LoadF32(d, x2 + k), r3 = LoadF32(d, x3 + k);
      Transpose4x4(r0, r1, r2, r3);
      hn::StoreU(r0, d, dst + k * L);
      hn::StoreU(r1, d, dst + (k + 1) * L);
      hn::StoreU(r2, d, dst + (k + 2) * L);
      hn::StoreU(r3, d, dst + (k + 3) * L);
    }
    if (k < dim) {
      const size_t n = dim - k;
      auto r0 = LoadF32N(d, x0 + k, n), r1 = LoadF32N(d, x1 + k, n), r2 = LoadF32N(d, x2 + k, n),
           r3 = LoadF32N(d, x3 + k, n);
      Transpose4x4(r0, r1, r2, r3);
      hn::StoreU(r0, d, dst + k * L);
      if (n > 1) hn::StoreU(r1, d, dst + (k + 1) * L);
      if (n > 2) hn::StoreU(r2, d, dst + (k + 2) * L);
    }
  }
#endif
  for (; lane < lanes; ++lane) {
    const T* const row = x + lane * stride;
    for (size_t k = 0; k < dim; ++k)
      packed[k * L + static_cast<size_t>(lane)] = lane < rows ? hn::GetLane(LoadF32(D1(), row + k)) : 0.0f;
  }
}

template <class T>
HWY_NOINLINE void LinearLoadRow(const void* x, int32_t n, float* row) {
  ConvertRow(static_cast<const T*>(x), static_cast<size_t>(n), row);
}

// sum[kTileKeys][NV * N] += a group's rows of W against a panel. The rows are packed as [k][row]: with a pointer per
// row g++ has none left on 16 registers, and folds operand loads into the FMAs, 13 loads for 12.
template <int NV>
HWY_NOINLINE void LinearGroup(const float* w, const float* xt, size_t k_count, float* HWY_RESTRICT sum) {
  const DF d;
  using V = hn::Vec<DF>;
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
  V b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0, b5 = a0, b6 = a0, b7 = a0;
  V c0 = a0, c1 = a0, c2 = a0, c3 = a0, c4 = a0, c5 = a0, c6 = a0, c7 = a0;
  for (const float* const end = w + k_count * kTileKeys; w != end; w += kTileKeys) {
    FmaStep<kTileKeys, NV>(w, w + 1, w + 2, w + 3, w + 4, w + 5, w + 6, w + 7, xt, a0, b0, c0, a1, b1, c1, a2, b2, c2,
                           a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7, b7, c7);
    asm volatile("" : "+r"(w), "+r"(xt));
  }
  AddRows<kTileKeys, NV>(sum, a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4, a5, b5, c5, a6, b6, c6, a7,
                         b7, c7);
}

template <int NV>
HWY_INLINE void LinearPanel(const LinearBlock& t, const float* xt, float* HWY_RESTRICT sum) {
  constexpr size_t kLine = 64 / sizeof(float);
  const size_t L = NV * hn::Lanes(DF()), k_count = static_cast<size_t>(t.k);
  const size_t groups = static_cast<size_t>(t.rows) / kTileKeys;
  // The next panel, which follows in memory, comes into L2 meanwhile. (Past the last one nothing is read: a prefetch
  // cannot fault.)
  const size_t share = (k_count * L / kLine + groups - 1) / groups;
  const float* next = xt + k_count * L;
  for (size_t g = 0; g < groups; ++g) {
    for (size_t line = 0; line < share; ++line, next += kLine) __builtin_prefetch(next, 0, 2);
    LinearGroup<NV>(t.w + g * kTileKeys * k_count, xt, k_count, sum + g * kTileKeys * L);
  }
}

HWY_NOINLINE void LinearMultiplyF32(const LinearBlock& t) {
  const size_t N = hn::Lanes(DF()), L = kTileVecs * N, lanes = static_cast<size_t>(t.lanes),
               k_count = static_cast<size_t>(t.k);
  const size_t rows = static_cast<size_t>(t.rows);
  size_t lane = 0;
  for (; lane + L <= lanes; lane += L) LinearPanel<3>(t, t.xt + lane * k_count, t.sum + lane * rows);
  if (lane + 2 * N == lanes) LinearPanel<2>(t, t.xt + lane * k_count, t.sum + lane * rows);
  if (lane + N == lanes) LinearPanel<1>(t, t.xt + lane * k_count, t.sum + lane * rows);
}

// Dot products taken together: 4 tokens x 4 rows on 32 registers (16 accumulators + 4 + 4), 4 x 2 on 16 (8 + 2 + 1): W
// is loaded once for 4 tokens.
constexpr size_t kDotRows = kTileKeys == 8 ? 4 : 2;
// Bytes by which they prefetch W: past the end of a row lies the next one, which is next.
constexpr size_t kDotAhead = 1024;

// One vector of a row of W against NQ tokens.
template <int NQ, class V>
HWY_INLINE void DotStep(V w, V x0, V x1, V x2, V x3, V& s0, V& s1, V& s2, V& s3) {
  s0 = hn::MulAdd(w, x0, s0);
  if constexpr (NQ > 1) s1 = hn::MulAdd(w, x1, s1);
  if constexpr (NQ > 2) s2 = hn::MulAdd(w, x2, s2);
  if constexpr (NQ > 3) s3 = hn::MulAdd(w, x3, s3);
}

// sums[token * NK + row] for columns [k, k + n) of NQ tokens (padded with zeros to whole vectors, pitch apart) and NK
// rows, 4 or 2. One accumulator per dot product, so that its bits do not depend on how many are computed together.
template <int NQ, size_t NK, class T>
HWY_INLINE void DotRows(const T* const* rows, size_t k, size_t n, const float* HWY_RESTRICT x, size_t pitch,
                        float* HWY_RESTRICT sums) {
  const DF d;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(d);
  const T *w0 = rows[0] + k, *w1 = rows[1] + k, *w2 = w0, *w3 = w0;
  if constexpr (NK > 2) w2 = rows[2] + k, w3 = rows[3] + k;
  x += k;
  V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  V c0 = a0, c1 = a0, c2 = a0, c3 = a0, e0 = a0, e1 = a0, e2 = a0, e3 = a0;
  const auto load_x = [&](size_t token, size_t i)
                          HWY_ATTR { return hn::Load(d, x + (token < NQ ? token : 0) * pitch + i); };
  const auto ahead = [&](const T* w, size_t i) HWY_ATTR { __builtin_prefetch(w + i + kDotAhead / sizeof(T), 0, 3); };
  size_t i = 0;
  for (; i + N <= n; i += N) {
    ahead(w0, i), ahead(w1, i);
    if constexpr (NK > 2) ahead(w2, i), ahead(w3, i);
    const V x0 = load_x(0, i), x1 = load_x(1, i), x2 = load_x(2, i), x3 = load_x(3, i);
    DotStep<NQ>(LoadF32(d, w0 + i), x0, x1, x2, x3, a0, a1, a2, a3);
    DotStep<NQ>(LoadF32(d, w1 + i), x0, x1, x2, x3, b0, b1, b2, b3);
    if constexpr (NK > 2) DotStep<NQ>(LoadF32(d, w2 + i), x0, x1, x2, x3, c0, c1, c2, c3);
    if constexpr (NK > 2) DotStep<NQ>(LoadF32(d, w3 + i), x0, x1, x2, x3, e0, e1, e2, e3);
  }
  if (i < n) {
    const V x0 = load_x(0, i), x1 = load_x(1, i), x2 = load_x(2, i), x3 = load_x(3, i);
    DotStep<NQ>(LoadF32N(d, w0 + i, n - i), x0, x1, x2, x3, a0, a1, a2, a3);
    DotStep<NQ>(LoadF32N(d, w1 + i, n - i), x0, x1, x2, x3, b0, b1, b2, b3);
    if constexpr (NK > 2) DotStep<NQ>(LoadF32N(d, w2 + i, n - i), x0, x1, x2, x3, c0, c1, c2, c3);
    if constexpr (NK > 2) DotStep<NQ>(LoadF32N(d, w3 + i, n - i), x0, x1, x2, x3, e0, e1, e2, e3);
  }
  if constexpr (NK > 2) {
    SumOfLanes4(a0, b0, c0, e0, sums);
    if constexpr (NQ > 1) SumOfLanes4(a1, b1, c1, e1, sums + 4);
    if constexpr (NQ > 2) SumOfLanes4(a2, b2, c2, e2, sums + 8);
    if constexpr (NQ > 3) SumOfLanes4(a3, b3, c3, e3, sums + 12);
  } else {
    SumOfLanes4(a0, b0, a1, b1, sums);
    if constexpr (NQ > 2) SumOfLanes4(a2, b2, a3, b3, sums + 4);
  }
}

// Dot products of NQ tokens with 4 rows of W: sums[token * sums_pitch + row * sums_step]. x: [token][pitch], zeros
// behind its columns. No chain of additions is longer than kLinearBlockK: after as many vectors a new sum begins.
template <int NQ, class T>
HWY_INLINE void DotTokens(const T* const* rows, size_t k_count, const float* x, size_t pitch, float* sums,
                          size_t sums_pitch, size_t sums_step) {
  constexpr size_t NK = NQ > 2 ? kDotRows : 4;
  const size_t step = static_cast<size_t>(kLinearBlockK) * hn::Lanes(DF());
  for (size_t r = 0; r < 4; r += NK) {
    for (size_t k = 0; k < k_count; k += step) {
      HWY_ALIGN float part[16];
      DotRows<NQ, NK>(rows + r, k, HWY_MIN(k_count - k, step), x, pitch, part);
      for (size_t t = 0; t < NQ; ++t) {
        for (size_t i = 0; i < NK; ++i) {
          float& sum = sums[t * sums_pitch + (r + i) * sums_step];
          sum = (k == 0 ? 0.0f : sum) + part[t * NK + i];
        }
      }
    }
  }
}

// The rows are walked as 4 streams, each a quarter of them: as long as a row follows the last one in memory, so does
// the hardware's prefetcher. All tokens pass over the 4 rows in turn before the next 4: a row comes from memory once.
template <class T>
HWY_NOINLINE void LinearDot(const LinearDots& t) {
  const T* const w = static_cast<const T*>(t.w);
  const size_t k_count = static_cast<size_t>(t.k), pitch = static_cast<size_t>(t.x_pitch),
               sums_pitch = static_cast<size_t>(t.sums_pitch);
  const int32_t quarter = (t.rows + 3) / 4;
  for (int32_t r = 0; r < quarter; ++r) {
    const T* rows[4];
    for (int32_t i = 0; i < 4; ++i) rows[i] = w + HWY_MIN(r + i * quarter, t.rows - 1) * t.w_stride;
    for (int32_t token = 0; token < t.tokens; token += 4) {
      const float* const x = t.x + static_cast<size_t>(token) * pitch;
      float* const sums = t.sums + static_cast<size_t>(token) * sums_pitch + r;
      const int32_t left = t.tokens - token;
      if (left == 1) DotTokens<1>(rows, k_count, x, pitch, sums, sums_pitch, static_cast<size_t>(quarter));
      if (left == 2) DotTokens<2>(rows, k_count, x, pitch, sums, sums_pitch, static_cast<size_t>(quarter));
      if (left == 3) DotTokens<3>(rows, k_count, x, pitch, sums, sums_pitch, static_cast<size_t>(quarter));
      if (left >= 4) DotTokens<4>(rows, k_count, x, pitch, sums, sums_pitch, static_cast<size_t>(quarter));
    }
  }
}

// y[token][row] = sum[row][lane] + bias[row] for the tokens of one panel; bias may be null. sum has rows of whole
// groups.
template <class T>
HWY_NOINLINE void LinearStoreY(const float* HWY_RESTRICT sum, int32_t lanes, int32_t tokens, int32_t rows,
                               const float* bias, void* y_data, int64_t stride) {
  const size_t L = static_cast<size_t>(lanes), n = static_cast<size_t>(rows);
  T* const y = static_cast<T*>(y_data);
#if HWY_TARGET != HWY_SCALAR
  const D4 d;
  for (int32_t lane = 0; lane < tokens; lane += 4) {
    const float* const src = sum + lane;
    const int32_t left = tokens - lane;
    T* const y0 = y + lane * stride;
    for (size_t r = 0; r < n; r += 4) {
      auto r0 = hn::LoadU(d, src + r * L), r1 = hn::LoadU(d, src + (r + 1) * L);
      auto r2 = hn::LoadU(d, src + (r + 2) * L), r3 = hn::LoadU(d, src + (r + 3) * L);
      Transpose4x4(r0, r1, r2, r3);
      const size_t columns = HWY_MIN(n - r, size_t{4});
      const auto b = !bias ? hn::Zero(d) : columns == 4 ? hn::LoadU(d, bias + r) : LoadF32N(d, bias + r, columns);
      const auto put = [&](int32_t i, hn::Vec<D4> v) HWY_ATTR {
        if (i >= left) return;
        if (columns == 4) {
          StoreF32(hn::Add(v, b), d, y0 + i * stride + r);
        } else {
          StoreF32N(hn::Add(v, b), d, y0 + i * stride + r, columns);
        }
      };
      put(0, r0), put(1, r1), put(2, r2), put(3, r3);
    }
  }
#else
  for (int32_t lane = 0; lane < tokens; ++lane) {
    for (size_t r = 0; r < n; ++r) {
      StoreF32(hn::Set(D1(), sum[r * L + static_cast<size_t>(lane)] + (bias ? bias[r] : 0.0f)), D1(),
               y + lane * stride + r);
    }
  }
#endif
}

// y[row] = sums[row] + bias[row] of one token.
template <class T>
HWY_NOINLINE void LinearStoreRow(const float* HWY_RESTRICT sums, int32_t rows, const float* bias, void* y_data) {
  const DF d;
  const size_t N = hn::Lanes(d), n = static_cast<size_t>(rows);
  T* const y = static_cast<T*>(y_data);
  size_t r = 0;
  for (; r + N <= n; r += N)
    StoreF32(hn::Add(hn::LoadU(d, sums + r), bias ? hn::LoadU(d, bias + r) : hn::Zero(d)), d, y + r);
  if (r == n) return;
  StoreF32N(hn::Add(LoadF32N(d, sums + r, n - r), bias ? LoadF32N(d, bias + r, n - r) : hn::Zero(d)), d, y + r, n - r);
}

#define FOVEA_LINEAR_KERNELS(T) {&LinearPack<T>, &LinearLoadRow<T>, &LinearDot<T>, &LinearStoreY<T>, &LinearStoreRow<T>}
extern const LinearTypeKernels kLinearKernels[3];
const LinearTypeKernels kLinearKernels[3] = {FOVEA_LINEAR_KERNELS(float), FOVEA_LINEAR_KERNELS(BF16),
                                             FOVEA_LINEAR_KERNELS(F16)};
#undef FOVEA_LINEAR_KERNELS

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
