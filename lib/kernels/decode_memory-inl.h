// How decode reads K and V: in turns, and what is prefetched when. Nothing here shows in the results' bits.

#if defined(FOVEA_LIB_KERNELS_DECODE_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_LIB_KERNELS_DECODE_MEMORY_INL_H_
#undef FOVEA_LIB_KERNELS_DECODE_MEMORY_INL_H_
#else
#define FOVEA_LIB_KERNELS_DECODE_MEMORY_INL_H_
#endif

#include "hwy/highway.h"
#include "lib/kernels/convert-inl.h"
#include "lib/kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Keys whose K rows, and then as many V rows, are read in one go: 4 or 8 KB of each at head_dim 128 in f32. All rows of q share them while they
// are in L1.
constexpr size_t kChunkKeys = kTileKeys == 4 ? 16 : 8;

// How the walk over K and V meets the memory system; all of it measured (bench_decode), none of it visible in the results' bits.
// - On 32 registers each row is walked to its end before the next, and by an unrolled body: the prefetchers go by the instruction that loads, and
//   see one stride then. Four rows side by side, column by column, were read at half the speed; on 16 registers they are prefetched.
// - K of the next block and V of this one are read in turns of kChunkKeys rows: two streams are faster than one.
// - Rows are addressed by a stride: pointers out of memory had to wait for older stores, and cost a third of the speed.
// - Many rows of q fill the scheduler with waiting FMAs: the rows to come are prefetched into L2 then.
// - On 16 registers they always are, by prefetches spread over the FMAs of a turn, that go through memory line by line (ToCome). In bursts, or only
//   while the first rows of q walk, they fill the queues of memory, and reading and multiplying take turns: 4 rows of q lost a quarter. Where memory
//   alone is the limit, with 1 or 2 rows of q, both products prefetch K and V, two streams at any time: 1.15 times the speed on Zen 1 (f32; 16-bit
//   types with one row 1.05). With 4 rows that is slower.
// - The hardware's prefetchers stop at the end of a page, which is what a turn reads at head_dim 128 in f32: the next page of the same stream is
//   begun for them, one turn ahead.
// - No bool and no struct by value is passed through the stack: compilers store its bytes one by one and load them as words, which waits.

// Rows of q from which on the scheduler is full, on 32 registers.
constexpr size_t kPrefetchFrom = 5;
// An int8 row is two cache lines at head_dim 128, and where its rows are prefetched they go by 16 at a time.
template <class T>
constexpr int32_t kPrefetchRows = (sizeof(T) == 1 ? 2 : 1) * (kTileKeys == 4 ? static_cast<int32_t>(kChunkKeys) : 12);

// On 16 registers the products prefetch the rows to come between their FMAs.
constexpr bool kPrefetchesInLoops = kTileKeys == 4;

// What a pass over a chunk of rows prefetches: kChunkKeys rows of `bytes` bytes, `stride` bytes apart. Rows without gaps are walked line by line,
// others in the order of the products. pass: 0 for the first rows of q, 1 for others; where there are others, each takes half of the lines (the third
// and later passes the second's once more). other: where not null, the product prefetches half of its own rows and half of as many there, those of
// the other product's next turn (ReadsTwoStreams): Q K^T the first halves, P V the second ones.
struct ToCome {
  const char* rows;
  int64_t stride, bytes;
  int64_t pass;
  const char* other;
};

// No rows to come: those at `rows`, which are about to be read, again and again.
template <class T>
HWY_INLINE ToCome OwnRows(const T* rows, size_t dim) {
  return {reinterpret_cast<const char*>(rows), 0, static_cast<int64_t>(dim * sizeof(T)), 0, nullptr};
}
// Whether a line of each page of the turn after those rows is prefetched too: the page is looked up a turn before the prefetches stand in line behind
// that. f32 is read 1.04 to 1.15 times as fast for it, the more the less of L3 is free for page tables; narrow types by as much slower.
template <class T>
constexpr bool kBeginsPages = kPrefetchesInLoops && sizeof(T) == 4;

// A loop's prefetches: at every kEvery-th step kLines lines, the second `line` bytes from the first, the third and fourth `pair` bytes from those;
// `step` bytes on at the next one.
struct LineWalk {
  const char* at;
  int64_t line, pair, step;
};
template <int kLines, int kEvery>
HWY_INLINE void PrefetchLines(LineWalk& walk, size_t n) {
  static_assert(kLines == 1 || kLines == 2 || kLines == 4, "");
  if (kEvery > 1 && n % kEvery > 0) return;
  __builtin_prefetch(walk.at, 0, 2);
  if constexpr (kLines > 1) __builtin_prefetch(walk.at + walk.line, 0, 2);
  if constexpr (kLines > 2) __builtin_prefetch(walk.at + walk.pair, 0, 2), __builtin_prefetch(walk.at + walk.pair + walk.line, 0, 2);
  walk.at += walk.step;
}
// The walk of two streams from `rows`, and as far from to_come.other, half of the kLines lines for each.
template <int kLines>
HWY_INLINE LineWalk TwoStreams(const ToCome* to_come, const char* rows) {
  const int64_t other = to_come->other - to_come->rows;
  return {rows, kLines == 2 ? other : 64, other, 32 * kLines};
}

// Narrow types are converted once for 4 rows of q. On 32 registers a row of V is walked in parts then, which costs the 16-bit types more than that.
template <class T>
constexpr bool kWidensOnce = kTileKeys == 8 ? sizeof(T) == 1 : sizeof(T) < 4;

// On 32 registers. Rows with gaps between them are no stream to the hardware's prefetchers. Bytes come faster than they are converted.
template <class T>
HWY_INLINE bool PrefetchesRows(T /*its type*/, size_t num_rows, int64_t stride, size_t dim) {
  return (num_rows >= kPrefetchFrom && sizeof(T) > 1) || stride != static_cast<int64_t>(dim);
}

// A row into L2.
template <class T>
HWY_INLINE void PrefetchRow(const T* row, size_t dim) {
  constexpr size_t kLine = 64 / sizeof(T);
  size_t c = 0;
  for (; c + 8 * kLine <= dim; c += 8 * kLine) {
    const T* at = row + c;
    __builtin_prefetch(at, 0, 2), __builtin_prefetch(at + kLine, 0, 2), __builtin_prefetch(at + 2 * kLine, 0, 2);
    __builtin_prefetch(at + 3 * kLine, 0, 2), __builtin_prefetch(at + 4 * kLine, 0, 2), __builtin_prefetch(at + 5 * kLine, 0, 2);
    __builtin_prefetch(at + 6 * kLine, 0, 2), __builtin_prefetch(at + 7 * kLine, 0, 2);
  }
  for (; c < dim; c += kLine) __builtin_prefetch(row + c, 0, 2);
}

// The beginning of what a stream reads in its next turn.
template <class T>
HWY_INLINE void PrefetchTurn(const T* rows) {
  if (sizeof(T) == 1) return;
  PrefetchRow(reinterpret_cast<const char*>(rows), 8 * 64);
}

// LoadF32, but a cache line in two loads.
template <class T>
HWY_INLINE hn::Vec<DF> LoadRow(DF d, const T* p) {
  return LoadF32(d, p);
}
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
// Zen 4's prefetchers follow two loads of 32 bytes, and fall behind where each line is loaded by one instruction: bf16 came from memory at 26 and at
// 18 GB/s.
template <class D>
HWY_INLINE hn::Vec<D> LoadLine(D d, const hn::TFromD<D>* p) {
  const hn::Half<D> half;
  return hn::Combine(d, hn::LoadU(half, p + hn::Lanes(half)), hn::LoadU(half, p));
}
HWY_INLINE hn::Vec<DF> LoadRow(DF d, const float* p) { return LoadLine(d, p); }
#endif

// Prefetches of a loop over a chunk's keys and kBytes bytes of each row from `offset` on. kPasses: among how many passes over the rows of q they are
// shared out.
template <size_t kBytes, int kPasses>
struct ColumnsAhead {
  static constexpr int kParts = kBytes < 64 ? 64 / kBytes : 1;  // of a line
  static constexpr int kLines = kBytes > 64 ? kBytes / 64 : 1, kEvery = kParts * kPasses;

  static HWY_INLINE LineWalk Start(const ToCome* to_come, size_t offset, size_t keys) {
    if (!kPrefetchesInLoops) return {};
    const int64_t part = static_cast<int64_t>(offset / kBytes);  // as if all columns before had been passed by loops of this width
    const int64_t rows = static_cast<int64_t>(keys);
    if (kPasses == 1 && kLines > 1 && to_come->other) {
      return TwoStreams<kLines>(to_come, to_come->rows + rows * to_come->bytes / 2 + part * rows * (32 * kLines));
    }
    if (to_come->stride == to_come->bytes) {
      const int64_t before = to_come->pass * rows * to_come->bytes / kPasses;
      return {to_come->rows + before + part * rows / kEvery * (64 * kLines), 64, 128, 64 * kLines};
    }
    // Passes, and parts of a line, take turns with the rows.
    const int64_t turn = (to_come->pass + kPasses * (part % kParts)) % static_cast<int64_t>(kChunkKeys);
    return {to_come->rows + static_cast<int64_t>(offset) + turn * to_come->stride, 64, 128, kEvery * to_come->stride};
  }
  static HWY_INLINE void Prefetch(LineWalk& walk, size_t j) {
    if constexpr (kPrefetchesInLoops) PrefetchLines<kLines, kEvery>(walk, j);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();

#endif  // include guard
