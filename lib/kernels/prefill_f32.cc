#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/prefill_f32.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/prefill-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea {
namespace HWY_NAMESPACE {

HWY_NOINLINE void PrefillF32(const AttentionTask& t, const KernelScratch& s) { Prefill<float>(t, s); }

// (lane, key) pairs that the task computes once dead blocks are skipped, for describe(): reads mask and bias only. padded: count the empty
// lanes of tiles too.
HWY_NOINLINE int64_t LivePairs(const AttentionTask& t, const KernelScratch& s, bool padded) {
  Tile tiles[kMaxTiles];
  const size_t num_tiles = SetUpTiles(t, s, tiles);
  int64_t pairs = 0;
  for (size_t n = 0; n < num_tiles; ++n) {
    const int64_t lanes = padded ? static_cast<int64_t>(TileLanes(tiles[n])) : tiles[n].lanes;
    int32_t lo, hi;
    KeyUnion(t, &tiles[n], 1, &lo, &hi);
    for (int32_t kb = lo / kBlockKeys * kBlockKeys; kb <= hi; kb += kBlockKeys) {
      const BlockWork w = FindBlockWork(t, tiles[n], kb, false);
      if (w.begin < w.end) pairs += lanes * (w.end - w.begin);
    }
  }
  return pairs;
}

}  // namespace HWY_NAMESPACE
}  // namespace fovea
HWY_AFTER_NAMESPACE();
