// What the argument checks are made of: one number, one struct, one tensor, the views of a call; and the checks of RoPE
// and of the cache that the layer shares with the calls of their own. Of the library's checks only, and MhaCall.
#ifndef FOVEA_LIB_VALIDATE_PARTS_H_
#define FOVEA_LIB_VALIDATE_PARTS_H_

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "fovea/fovea.h"
#include "lib/error.h"
#include "lib/overlap.h"
#include "lib/validate.h"

namespace fovea {

constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT;
constexpr fovea_status kUnsupported = FOVEA_ERR_UNSUPPORTED;

// No dimension of a tensor spans more elements than this, and no product of extents exceeds it: beyond any address
// space, and small enough that sums over dimensions, bytes and pairs of tensors here, in overlap.cc and in plan.cc
// cannot overflow int64.
constexpr int64_t kMaxElements = int64_t{1} << 56;

struct NameText {
  char text[32];
};
NameText Text(Name name);

// ---- Fields ---------------------------------------------------------------------------------------------------------

fovea_status CheckPositive(const char* name, int64_t value);
fovea_status CheckLength(const char* name, int64_t value);
fovea_status CheckEnum(const char* name, int32_t value, int32_t last);
// A product of extents.
fovea_status CheckCount(const char* names, int64_t a, int64_t b, int64_t c, int64_t d);
// What kernels count in int32.
fovea_status CheckExtent(const char* name, int64_t value);

// The lengths of one side of a call: of its queries or new rows, or of its keys.
struct Lengths {
  const char *lens_name, *cu_name, *len_name, *total_name;
  const int32_t *lens, *cu;
  int64_t batch, len, total;

  // Extents of a tensor that has these rows.
  int64_t Entries() const { return cu != nullptr ? 1 : batch; }
  int64_t Rows() const { return cu != nullptr ? total : len; }
};
template <class Params>
Lengths QueryLengths(const Params& p) {
  return {"q_lens", "cu_seqlens_q", "q_len", "total_q", p.q_lens, p.cu_seqlens_q, p.batch, p.q_len, p.total_q};
}
template <class Params>
Lengths KvLengths(const Params& p) {
  return {"kv_lens", "cu_seqlens_kv", "kv_len", "total_kv", p.kv_lens, p.cu_seqlens_kv, p.batch, p.kv_len, p.total_kv};
}
// The values of lens or cu; batch and len are right.
fovea_status CheckLengths(const Lengths& side);

// ---- The structs themselves -----------------------------------------------------------------------------------------

// known: the struct's size today. Its first field is struct_size.
fovea_status CopyStruct(const void* user, size_t known, const char* name, const char* init, void* copy);
template <class Struct>
fovea_status CopyStruct(const Struct* user, const char* name, const char* init, Struct* copy) {
  return CopyStruct(user, sizeof *user, name, init, copy);
}

// ---- Tensors and arrays ---------------------------------------------------------------------------------------------

inline bool IsGiven(const fovea_tensor& t) { return t.dtype != FOVEA_DTYPE_NONE; }

inline bool IsZero(const fovea_tensor& t) {
  return t.data == nullptr && (t.dtype | t.reserved) == 0 &&
         (t.stride_batch | t.stride_head | t.stride_row | t.stride_col | t.reserved1 | t.reserved2) == 0;
}

// The dtypes that a tensor may have.
enum class Takes { kF32, kU8, kFloats, kFloatsOrI8 };

// kStrided: stride_col is read.
enum class Columns { kContiguous, kStrided };

struct Expected {
  Name name;
  bool required;
  Takes takes;
  Columns columns;
};

// Makes the view of elements at data, empty where data is NULL; refuses strides past kMaxElements. Never dereferences
// data.
fovea_status MakeView(Name name, const void* data, int64_t element_bytes, const int64_t (&extent)[kDims],
                      const int64_t (&stride)[kDims], View* view);

// Checks one tensor against its extents, zeroes the strides that no index uses, all of an absent one's among them (so that later arithmetic cannot
// meet an absurd value there), and gives its view.
fovea_status CheckTensor(const Expected& want, const int64_t (&extent)[kDims], CheckData check, fovea_tensor* t,
                         View* view);

fovea_status CheckDistinct(const View& output);
fovea_status CheckDisjoint(const View& output, const View& other);

// Scales are an int8 tensor's.
fovea_status CheckScaled(const char* name, const fovea_tensor& scale, const char* of_name, const fovea_tensor& of);

// The views of a call's tensors and arrays: outputs first, so that they are held against everything after them.
class Views {
 public:
  Views() = default;  // Begin() comes first
  explicit Views(int outputs, CheckData data = CheckData::kYes) { Begin(outputs, data); }
  void Begin(int outputs, CheckData data) {
    n_ = 0;
    outputs_ = outputs;
    data_ = data;
  }

  fovea_status AddTensor(Name name, bool required, const int64_t (&extent)[kDims], fovea_tensor* t,
                         Takes takes = Takes::kFloats, Columns columns = Columns::kContiguous) {
    return CheckTensor({name, required, takes, columns}, extent, data_, t, Next());
  }
  // [rows][cols] of 4 bytes, stride apart. One that is not given has no view, but its stride is checked all the same.
  fovea_status AddArray(Name name, const void* data, int64_t rows, int64_t stride, int64_t cols) {
    if (data == nullptr && stride == 0) return FOVEA_OK;
    const int64_t extent[] = {rows, 1, 1, cols}, strides[] = {stride, 0, 0, 1};
    return MakeView(name, data, 4, extent, strides, Next());
  }
  fovea_status AddArray(Name name, const void* data, int64_t n) { return AddArray(name, data, 1, 0, n); }
  // An entry for each of these rows; stride: from sequence to sequence.
  fovea_status AddRowArray(Name name, const int32_t* data, int64_t stride, const Lengths& rows) {
    return AddArray(name, data, rows.Entries(), stride, rows.Rows());
  }
  // At most one of the two is given.
  fovea_status AddLengths(const Lengths& side) {
    return side.lens != nullptr ? AddArray({side.lens_name}, side.lens, side.batch)
                                : AddArray({side.cu_name}, side.cu, side.batch + 1);
  }

  // in_place: the second view may be exactly the first.
  fovea_status CheckOutputs(bool in_place = false) const;

  const View& operator[](int i) const { return views_[i]; }
  int size() const { return n_; }
  int outputs() const { return outputs_; }

 private:
  View* Next() {
    assert(n_ < kMaxViews);
    return &views_[n_++];
  }

  static constexpr int kMaxViews = 40;
  View views_[kMaxViews];
  int n_, outputs_;
  CheckData data_;
};

// ---- RoPE and the cache (validate_rope.cc), for the layer -----------------------------------------------------------

// Fields of a fovea_rope_params, by their full names where it is part of another struct.
struct RopeNames {
  const char *rotary_dim, *num_positions, *table_batch, *interleaved, *reserved, *cos, *sin;
  const char *position_offset, *position_offsets, *position_ids, *position_ids_stride;
};
#define FOVEA_ROPE_NAMES(prefix)                                                                               \
  {prefix "rotary_dim", prefix "num_positions", prefix "table_batch", prefix "interleaved", prefix "reserved", \
   prefix "cos", prefix "sin", prefix "position_offset", prefix "position_offsets", prefix "position_ids",     \
   prefix "position_ids_stride"}
constexpr RopeNames kRopeNames = FOVEA_ROPE_NAMES("");
constexpr RopeNames kPartRopeNames = FOVEA_ROPE_NAMES("rope.");
constexpr RopeNames kKvRopeNames = FOVEA_ROPE_NAMES("kv_rope.");
#undef FOVEA_ROPE_NAMES

// The lengths of new rows, and their heads.
void TakeLengths(const Lengths& rows, int64_t num_heads, int64_t head_dim, fovea_rope_params* rope);
// A rotation that is part of another struct, whose lengths it takes.
fovea_status CopyRotation(const char* name, const fovea_rope_params* user, const Lengths& rows, int64_t num_heads,
                          int64_t head_dim, fovea_rope_params* rope);
// All of p but its positions; its lengths are known to be right.
fovea_status CheckRotation(const RopeNames& names, fovea_rope_params* p, Views* views);
// The positions of p, which is right else. skips: -1 in it leaves a row out, and its position unread.
fovea_status CheckRowPositions(const RopeNames& names, const int32_t* skips, int64_t skips_stride,
                               const fovea_rope_params& p);

// Which of the three kinds of cache it is, that nothing of the others is set, and its extents.
fovea_status CheckCacheKind(const fovea_kv_append_params& p);
// Where new rows go: every entry and slot that is written to.
fovea_status CheckPlaces(const fovea_kv_append_params& p);
// dim: columns of a row that is quantized at once.
fovea_status CheckQuantizedDim(const char* name, int64_t dim, const char* cache_name, const fovea_tensor& cache);
// Columns of new keys are divided by these.
fovea_status CheckChannelScales(const fovea_kv_append_params& p);

}  // namespace fovea

#endif  // FOVEA_LIB_VALIDATE_PARTS_H_
