#include "lib/validate.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "lib/dtype.h"
#include "lib/error.h"

// Reading order: Overlap and OverlapsItself (does an output share memory with anything), CheckTensor (one tensor
// against its extents), then the fields of params group by group, and CheckParams, which calls them in order; behind
// it the same for RoPE, the cache, linear and the layer, whose tensors and arrays are gathered in Views.

namespace fovea {
namespace {

constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT;
constexpr fovea_status kUnsupported = FOVEA_ERR_UNSUPPORTED;

// No dimension of a tensor spans more elements than this, and no product of extents exceeds it: beyond any address
// space, and small enough that sums over dimensions, bytes and pairs of tensors below and in plan.cc cannot overflow
// int64.
constexpr int64_t kMaxElements = int64_t{1} << 56;

constexpr const char* kStrideNames[kDims] = {"stride_batch", "stride_head", "stride_row", "stride_col"};

struct NameText {
  char text[32];
};
NameText Text(Name name) {
  NameText t;
  if (name.index < 0) {
    std::snprintf(t.text, sizeof t.text, "%s", name.base);
  } else {
    std::snprintf(t.text, sizeof t.text, "%s[%d]", name.base, name.index);
  }
  return t;
}

// ---- Overlap --------------------------------------------------------------------------------------------------------

// Is there a solution of sum x_i * step_i = target with 0 <= x_i <= count_i? A search over the terms by falling step.
// At each it tries only those x that leave a target which the remaining terms can reach and which their gcd divides; a
// dense remainder (it reaches every such target: a contiguous block, two coprime strides) ends the search at once.
// Layouts met in practice take a handful of steps. The question is NP-hard in general, hence the cap.
class BoundedSum {
 public:
  void Add(int64_t step, int64_t count) {
    if (count == 0) return;
    int at = 0;
    while (at < num_terms_ && terms_[at].step > step) ++at;
    if (at < num_terms_ && terms_[at].step == step) {
      terms_[at].count += count;
      return;
    }
    for (int i = num_terms_; i > at; --i) terms_[i] = terms_[i - 1];
    terms_[at].step = step;
    terms_[at].count = count;
    ++num_terms_;
  }

  bool Reaches(int64_t target) {
    if (num_terms_ == 0) return target == 0;
    Prepare();
    return Search(terms_, target);
  }

 private:
  struct Term {
    int64_t step, count;
    // Of this term and all after it: the largest sum, the gcd of the steps, and whether every multiple of gcd up to
    // reach is a sum.
    int64_t reach, gcd;
    bool dense;
    // x * step = target (mod next gcd) exactly if x = target / gcd * inverse (mod period).
    int64_t period, inverse;
  };

  void Prepare() {
    Term* last = &terms_[num_terms_ - 1];
    last->reach = last->step * last->count;
    last->gcd = last->step;
    last->dense = true;
    for (Term* t = last - 1; t >= terms_; --t) {
      const Term& next = t[1];
      t->reach = next.reach + t->step * t->count;
      t->gcd = std::gcd(t->step, next.gcd);
      t->dense = next.dense && t->gcd == next.gcd && t->step <= next.reach + next.gcd;
      t->period = next.gcd / t->gcd;
      t->inverse = Inverse(t->step / t->gcd % t->period, t->period);
    }
  }

  bool Search(const Term* t, int64_t target) {
    if (target < 0 || target > t->reach || target % t->gcd != 0) return false;
    if (t->dense) return true;
    const Term& next = t[1];
    const int64_t last = std::min(t->count, target / t->step);
    int64_t x = target > next.reach ? (target - next.reach + t->step - 1) / t->step : 0;
    const int64_t residue = MultiplyModulo(target / t->gcd % t->period, t->inverse, t->period);
    x += (residue - x % t->period + t->period) % t->period;
    for (; x <= last; x += t->period) {
      if (--steps_left_ < 0) return false;
      if (Search(&next, target - x * t->step)) return true;
    }
    return false;
  }

  static int64_t MultiplyModulo(int64_t a, int64_t b, int64_t modulus) {
    __extension__ using Wide = __int128;
    return static_cast<int64_t>(static_cast<Wide>(a) * b % modulus);
  }

  // Extended Euclid: the inverse of a modulo modulus, to which a is coprime; 0 for modulus 1.
  static int64_t Inverse(int64_t a, int64_t modulus) {
    int64_t r0 = modulus, r1 = a, s0 = 0, s1 = 1;
    while (r1 != 0) {
      const int64_t quotient = r0 / r1;
      r0 = std::exchange(r1, r0 - quotient * r1);
      s0 = std::exchange(s1, s0 - quotient * s1);
    }
    return (s0 % modulus + modulus) % modulus;
  }

  Term terms_[2 * kDims + 1];  // two tensors' dimensions and the bytes within an element
  int num_terms_ = 0;
  // About a millisecond. Past it the answer is "no": only a layout built to defeat the search gets there, and refusing
  // a call that may well be right would be the worse mistake.
  int steps_left_ = 100000;
};

int64_t Magnitude(int64_t x) { return x < 0 ? -x : x; }

void AddBytes(const View& view, BoundedSum* sum) {
  sum->Add(1, view.element_bytes - 1);
  for (int d = 0; d < kDims; ++d) {
    if (view.stride[d] != 0) sum->Add(Magnitude(view.stride[d]) * view.element_bytes, view.extent[d] - 1);
  }
}

// Whether some byte belongs to both.
bool Overlap(const View& a, const View& b) {
  if (a.begin >= b.end || b.begin >= a.end) return false;
  // A byte of a is a.begin + (a sum of a's steps). Counted downwards from its last byte, one of b is b.end - 1 - (a sum
  // of b's steps). They meet where the two sums add up to the distance; negative strides merely count from the other
  // end.
  BoundedSum sum;
  AddBytes(a, &sum);
  AddBytes(b, &sum);
  return sum.Reaches(static_cast<int64_t>(b.end - 1 - a.begin));
}

bool SameElements(const View& a, const View& b) {
  return a.begin == b.begin && a.end == b.end && a.element_bytes == b.element_bytes && std::equal(a.stride, a.stride + kDims, b.stride);
}

// Whether two different indices mean the same element.
bool OverlapsItself(const View& view) {
  if (view.begin == view.end) return false;
  int64_t step[kDims], count[kDims];
  int n = 0;
  for (int d = 0; d < kDims; ++d) {
    if (view.extent[d] <= 1) continue;
    if (view.stride[d] == 0) return true;
    int at = n++;
    for (; at > 0 && step[at - 1] > Magnitude(view.stride[d]); --at) {
      step[at] = step[at - 1];
      count[at] = count[at - 1];
    }
    step[at] = Magnitude(view.stride[d]);
    count[at] = view.extent[d] - 1;
  }
  // The difference of the two indices is a non-zero vector x with sum x_i * step_i = 0 and |x_i| <= count_i. Let `top`
  // be its non-zero place of the largest step, and x_top >= 1 without loss. A step above all that smaller ones reach
  // (proper nesting, nearly every layout) cannot be it. Shifting each x_i to start at 0 makes it a BoundedSum.
  int64_t reach = 0;
  for (int top = 0; top < n; reach += step[top] * count[top], ++top) {
    if (step[top] > reach) continue;
    BoundedSum sum;
    sum.Add(step[top], count[top] - 1);
    for (int i = 0; i < top; ++i) sum.Add(step[i], 2 * count[i]);
    if (sum.Reaches(reach - step[top])) return true;
  }
  return false;
}

fovea_status CheckDistinct(const View& output) {
  if (!OverlapsItself(output)) return FOVEA_OK;
  const NameText name = Text(output.name);
  for (int d = 0; d < kDims; ++d) {
    if (output.extent[d] > 1 && output.stride[d] == 0) {
      return Fail(kInvalid, "%s.%s = 0: must not be 0 for an output whose extent there is %" PRId64, name.text,
                  kStrideNames[d], output.extent[d]);
    }
  }
  return Fail(kInvalid,
              "%s overlaps itself: strides %" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 " over extents %" PRId64
              ", %" PRId64 ", %" PRId64 ", %" PRId64 " must give every element a place of its own",
              name.text, output.stride[0], output.stride[1], output.stride[2], output.stride[3], output.extent[0],
              output.extent[1], output.extent[2], output.extent[3]);
}

fovea_status CheckDisjoint(const View& output, const View& other) {
  if (!Overlap(output, other)) return FOVEA_OK;
  return Fail(kInvalid, "%s overlaps %s: an output must share memory with nothing else", Text(output.name).text,
              Text(other.name).text);
}

// ---- One tensor -----------------------------------------------------------------------------------------------------

// Makes the view of elements at data, empty where data is NULL; refuses strides past kMaxElements. Never dereferences
// data.
fovea_status MakeView(Name name, const void* data, int64_t element_bytes, const int64_t (&extent)[kDims],
                      const int64_t (&stride)[kDims], View* view) {
  view->name = name;
  view->element_bytes = element_bytes;
  int64_t low = 0, high = 0;  // element offsets
  bool empty = false;
  for (int d = 0; d < kDims; ++d) {
    view->extent[d] = extent[d];
    view->stride[d] = 0;
    if (extent[d] <= 1) {
      empty |= extent[d] == 0;
      continue;
    }
    view->stride[d] = stride[d];
    int64_t span;
    if (__builtin_mul_overflow(extent[d] - 1, stride[d], &span) || span > kMaxElements || span < -kMaxElements) {
      return Fail(kInvalid, "%s.%s = %" PRId64 ": over an extent of %" PRId64 " it must span at most 2^56 elements",
                  Text(name).text, kStrideNames[d], stride[d], extent[d]);
    }
    (span < 0 ? low : high) += span;
  }
  view->begin = view->end = 0;
  if (empty || data == nullptr) return FOVEA_OK;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t below = static_cast<uintptr_t>(-low * element_bytes);
  const uintptr_t above = static_cast<uintptr_t>((high + 1) * element_bytes);
  if (below > address || above > std::numeric_limits<uintptr_t>::max() - address) {
    return Fail(kInvalid, "%s.data = %p: its strides must not lead out of the address space", Text(name).text, data);
  }
  view->begin = address - below;
  view->end = address + above;
  return FOVEA_OK;
}

// The dtypes that a tensor may have.
enum class Takes { kF32, kU8, kFloats, kFloatsOrI8 };

bool IsTaken(Takes takes, fovea_dtype dtype) {
  if (takes == Takes::kU8) return dtype == FOVEA_U8;
  if (takes == Takes::kFloatsOrI8 && dtype == FOVEA_I8) return true;
  return dtype == FOVEA_F32 || (takes != Takes::kF32 && (dtype == FOVEA_BF16 || dtype == FOVEA_F16));
}

const char* TakesText(Takes takes) {
  switch (takes) {
    case Takes::kF32:
      return "F32";
    case Takes::kU8:
      return "U8";
    case Takes::kFloats:
      return "F32, BF16 or F16";
    case Takes::kFloatsOrI8:
      return "F32, BF16, F16 or I8";
  }
  return "";
}

// kStrided: stride_col is read.
enum class Columns { kContiguous, kStrided };

struct Expected {
  Name name;
  bool required;
  Takes takes;
  Columns columns;
};

bool IsGiven(const fovea_tensor& t) { return t.dtype != FOVEA_DTYPE_NONE; }

// Checks one tensor against its extents, zeroes the strides that no index uses (so that later arithmetic cannot meet an
// absurd value there), and gives its view.
fovea_status CheckTensor(const Expected& want, const int64_t (&extent)[kDims], CheckData check, fovea_tensor* t,
                         View* view) {
  const Name name = want.name;
  view->begin = view->end = 0;
  if (t->reserved != 0 || t->reserved1 != 0 || t->reserved2 != 0) {
    return Fail(kUnsupported, "%s.reserved = %" PRId32 ", %" PRId64 ", %" PRId64 ": this version wants zeros",
                Text(name).text, t->reserved, t->reserved1, t->reserved2);
  }
  if (!IsTaken(want.takes, t->dtype)) {
    if (t->dtype == FOVEA_DTYPE_NONE) {
      if (want.required) {
        return Fail(kInvalid, "%s.dtype = NONE: must be %s", Text(name).text, TakesText(want.takes));
      }
      if (t->data != nullptr) {
        return Fail(kInvalid, "%s.dtype = NONE: must be %s where %s.data is given", Text(name).text,
                    TakesText(want.takes), Text(name).text);
      }
      return FOVEA_OK;
    }
    if (t->dtype < FOVEA_DTYPE_NONE || t->dtype > FOVEA_Q8_0) {
      return Fail(kInvalid, "%s.dtype = %" PRId32 ": must be a fovea_dtype", Text(name).text, t->dtype);
    }
    return Fail(kUnsupported, "%s.dtype = %s: this version takes %s", Text(name).text, fovea_dtype_str(t->dtype),
                TakesText(want.takes));
  }
  const bool strided_columns = want.columns == Columns::kStrided;
  if (!strided_columns && t->stride_col != 0 && t->stride_col != 1) {
    return Fail(kInvalid, "%s.stride_col = %" PRId64 ": must be 0 or 1, columns are contiguous", Text(name).text,
                t->stride_col);
  }
  const int64_t stride[kDims] = {t->stride_batch, t->stride_head, t->stride_row, strided_columns ? t->stride_col : 1};
  const int64_t element_bytes = DtypeBytes(t->dtype);
  const void* data = check == CheckData::kYes ? t->data : nullptr;
  FOVEA_TRY(MakeView(name, data, element_bytes, extent, stride, view));
  t->stride_batch = view->stride[0];
  t->stride_head = view->stride[1];
  t->stride_row = view->stride[2];
  t->stride_col = view->stride[3];
  if (check == CheckData::kNo) return FOVEA_OK;
  if (t->data == nullptr && extent[0] != 0 && extent[1] != 0 && extent[2] != 0 && extent[3] != 0) {
    return Fail(kInvalid,
                "%s.data = NULL: must be given, its extents are %" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64,
                Text(name).text, extent[0], extent[1], extent[2], extent[3]);
  }
  if ((reinterpret_cast<uintptr_t>(t->data) & static_cast<uintptr_t>(element_bytes - 1)) != 0) {
    return Fail(kInvalid, "%s.data = %p: must be aligned to its element, %" PRId64 " bytes", Text(name).text, t->data,
                element_bytes);
  }
  return FOVEA_OK;
}

// Lengths of a call's queries or new rows, or of its keys.
struct Side {
  const char *lens_name, *cu_name, *len_name, *total_name;
  const int32_t *lens, *cu;
  int64_t batch, len, total;

  // Extents of a tensor that has these rows.
  int64_t Entries() const { return cu != nullptr ? 1 : batch; }
  int64_t Rows() const { return cu != nullptr ? total : len; }
};
template <class Params>
Side QuerySide(const Params& p) {
  return {"q_lens", "cu_seqlens_q", "q_len", "total_q", p.q_lens, p.cu_seqlens_q, p.batch, p.q_len, p.total_q};
}
template <class Params>
Side KvSide(const Params& p) {
  return {"kv_lens", "cu_seqlens_kv", "kv_len", "total_kv", p.kv_lens, p.cu_seqlens_kv, p.batch, p.kv_len, p.total_kv};
}

// The views of a call's tensors and arrays: outputs first, so that they are held against everything after them.
class Views {
 public:
  Views(ViewList* list, int outputs, CheckData data = CheckData::kYes) : list_(*list), data_(data) {
    list_.n = 0;
    list_.outputs = outputs;
  }

  fovea_status AddTensor(Name name, bool required, const int64_t (&extent)[kDims], fovea_tensor* t,
                         Takes takes = Takes::kFloats, Columns columns = Columns::kContiguous) {
    return CheckTensor({name, required, takes, columns}, extent, data_, t, &list_.views[list_.n++]);
  }
  // [rows][cols] of 4 bytes, stride apart.
  fovea_status AddArray(Name name, const void* data, int64_t rows, int64_t stride, int64_t cols) {
    const int64_t extent[] = {rows, 1, 1, cols}, strides[] = {stride, 0, 0, 1};
    return MakeView(name, data, 4, extent, strides, &list_.views[list_.n++]);
  }
  fovea_status AddArray(Name name, const void* data, int64_t n) { return AddArray(name, data, 1, 0, n); }
  // An entry for each row of the side; stride: from sequence to sequence.
  fovea_status AddRowArray(Name name, const int32_t* data, int64_t stride, const Side& side) {
    return AddArray(name, data, side.Entries(), stride, side.Rows());
  }
  // At most one of the two is given.
  fovea_status AddLengths(const Side& side) {
    return side.lens != nullptr ? AddArray({side.lens_name}, side.lens, side.batch)
                                : AddArray({side.cu_name}, side.cu, side.batch + 1);
  }
  // in_place: the second view may be exactly the first.
  fovea_status CheckOutputs(bool in_place = false) const {
    const View* const views = list_.views;
    for (int i = 0; i < list_.outputs; ++i) {
      FOVEA_TRY(CheckDistinct(views[i]));
      for (int j = i + 1; j < list_.n; ++j) {
        if (!(in_place && i == 0 && j == 1)) FOVEA_TRY(CheckDisjoint(views[i], views[j]));
      }
    }
    return FOVEA_OK;
  }
  const View& operator[](int i) const { return list_.views[i]; }
  int size() const { return list_.n; }

 private:
  ViewList& list_;
  const CheckData data_;
};

// ---- The structs themselves -----------------------------------------------------------------------------------------

template <typename Struct>
fovea_status CopyStruct(const Struct* user, const char* name, const char* init, Struct* copy) {
  // Far above any version's size: an uninitialized struct_size must not send the search for a zero tail astray.
  if (user == nullptr) return Fail(kInvalid, "%s = NULL: must be given", name);
  const uint64_t size = user->struct_size;
  if (size < sizeof(Struct) || size > kMaxStructSize) {
    return Fail(kInvalid, "%s.struct_size = %" PRIu64 ": must be %zu, call %s first", name, size, sizeof(Struct), init);
  }
  const char* bytes = reinterpret_cast<const char*>(user);
  for (uint64_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] != 0) {
      return Fail(kUnsupported,
                  "%s.struct_size = %" PRIu64 ": a field at byte %" PRIu64
                  " is set that this version, whose struct has %zu bytes, does not know",
                  name, size, i, sizeof(Struct));
    }
  }
  std::memcpy(copy, user, sizeof(Struct));
  copy->struct_size = sizeof(Struct);
  return FOVEA_OK;
}

// ---- Fields that several calls have ---------------------------------------------------------------------------------

fovea_status CheckPositive(const char* name, int64_t value) {
  if (value > 0) return FOVEA_OK;
  return Fail(kInvalid, "%s = %" PRId64 ": must be positive", name, value);
}

fovea_status CheckLength(const char* name, int64_t value) {
  if (value >= 0 && value <= kMaxLength) return FOVEA_OK;
  return Fail(kInvalid, "%s = %" PRId64 ": must be in [0, %" PRId64 "]", name, value, kMaxLength);
}

fovea_status CheckEnum(const char* name, int32_t value, int32_t last) {
  if (value >= 0 && value <= last) return FOVEA_OK;
  return Fail(kInvalid, "%s = %" PRId32 ": must be in [0, %" PRId32 "]", name, value, last);
}

fovea_status CheckCount(const char* names, int64_t a, int64_t b, int64_t c, int64_t d) {
  int64_t count;
  if (!__builtin_mul_overflow(a, b, &count) && !__builtin_mul_overflow(count, c, &count) &&
      !__builtin_mul_overflow(count, d, &count) && count <= kMaxElements) {
    return FOVEA_OK;
  }
  return Fail(kInvalid, "%s = %" PRId64 " * %" PRId64 " * %" PRId64 " * %" PRId64 ": must be at most 2^56", names, a, b,
              c, d);
}

// What kernels count in int32.
fovea_status CheckExtent(const char* name, int64_t value) {
  FOVEA_TRY(CheckPositive(name, value));
  if (value > kMaxLength) return Fail(kUnsupported, "%s = %" PRId64 ": must be below 2^30", name, value);
  return FOVEA_OK;
}

bool IsZero(const fovea_tensor& t) {
  return t.data == nullptr && (t.dtype | t.reserved) == 0 &&
         (t.stride_batch | t.stride_head | t.stride_row | t.stride_col | t.reserved1 | t.reserved2) == 0;
}

// lens or cu_seqlens of queries or of keys.
fovea_status CheckLengths(const Side& side) {
  if (side.lens != nullptr && side.cu != nullptr) {
    return Fail(kInvalid, "%s is given: must be NULL where %s is given", side.lens_name, side.cu_name);
  }
  if (side.lens != nullptr) {
    for (int64_t b = 0; b < side.batch; ++b) {
      if (side.lens[b] < 0 || side.lens[b] > side.len) {
        return Fail(kInvalid, "%s[%" PRId64 "] = %" PRId32 ": must be in [0, %s = %" PRId64 "]", side.lens_name, b,
                    side.lens[b], side.len_name, side.len);
      }
    }
  }
  if (side.cu != nullptr) {
    if (side.cu[0] != 0) return Fail(kInvalid, "%s[0] = %" PRId32 ": must be 0", side.cu_name, side.cu[0]);
    for (int64_t b = 0; b < side.batch; ++b) {
      // Non-negative by induction, so the difference cannot overflow.
      if (side.cu[b + 1] < side.cu[b] || side.cu[b + 1] - side.cu[b] > kMaxLength) {
        return Fail(kInvalid, "%s[%" PRId64 "] = %" PRId32 ": must be %s its predecessor, %" PRId32, side.cu_name,
                    b + 1, side.cu[b + 1], side.cu[b + 1] < side.cu[b] ? "at least" : "less than 2^30 above",
                    side.cu[b]);
      }
    }
    if (side.cu[side.batch] > side.total) {
      return Fail(kInvalid, "%s[%" PRId64 "] = %" PRId32 ": must be at most %s = %" PRId64, side.cu_name, side.batch,
                  side.cu[side.batch], side.total_name, side.total);
    }
  }
  return FOVEA_OK;
}

// Scales are an int8 tensor's.
fovea_status CheckScaled(const char* name, const fovea_tensor& scale, const char* of_name, const fovea_tensor& of) {
  if (!IsGiven(scale) || of.dtype == FOVEA_I8) return FOVEA_OK;
  return Fail(kInvalid, "%s is given: must be absent where %s.dtype = %s, scales are those of I8", name, of_name,
              fovea_dtype_str(of.dtype));
}

// ---- Fields of attention --------------------------------------------------------------------------------------------

fovea_status CheckExtents(fovea_attention_params* p) {
  FOVEA_TRY(CheckPositive("batch", p->batch));
  FOVEA_TRY(CheckPositive("num_q_heads", p->num_q_heads));
  FOVEA_TRY(CheckPositive("num_kv_heads", p->num_kv_heads));
  if (p->num_q_heads % p->num_kv_heads != 0) {
    return Fail(kInvalid, "num_kv_heads = %" PRId64 ": must divide num_q_heads = %" PRId64, p->num_kv_heads,
                p->num_q_heads);
  }
  FOVEA_TRY(CheckLength("q_len", p->q_len));
  FOVEA_TRY(CheckLength("kv_len", p->kv_len));
  FOVEA_TRY(CheckPositive("head_dim", p->head_dim));
  if (p->v_head_dim == 0) p->v_head_dim = p->head_dim;
  if (p->v_head_dim < 0) {
    return Fail(kInvalid, "v_head_dim = %" PRId64 ": must be positive, or 0 for head_dim", p->v_head_dim);
  }
  if (p->total_q < 0 || (p->total_q > 0 && p->cu_seqlens_q == nullptr)) {
    return Fail(kInvalid, "total_q = %" PRId64 ": must be %s", p->total_q,
                p->total_q < 0 ? "at least 0" : "0 without cu_seqlens_q");
  }
  if (p->total_kv < 0 || (p->total_kv > 0 && p->cu_seqlens_kv == nullptr)) {
    return Fail(kInvalid, "total_kv = %" PRId64 ": must be %s", p->total_kv,
                p->total_kv < 0 ? "at least 0" : "0 without cu_seqlens_kv");
  }
  // So that plan.cc may multiply extents. Broadcasting inputs can make these large where no tensor is.
  const int64_t dim = std::max(p->head_dim, p->v_head_dim);
  const int64_t q_rows = std::max<int64_t>(p->q_len, 1), kv_rows = std::max<int64_t>(p->kv_len, 1);
  FOVEA_TRY(CheckCount("batch * num_q_heads * q_len * head_dim", p->batch, p->num_q_heads, q_rows, dim));
  FOVEA_TRY(CheckCount("batch * num_kv_heads * kv_len * head_dim", p->batch, p->num_kv_heads, kv_rows, dim));
  FOVEA_TRY(CheckCount("total_q * num_q_heads * head_dim", p->total_q, p->num_q_heads, dim, 1));
  FOVEA_TRY(CheckCount("total_kv * num_kv_heads * head_dim", p->total_kv, p->num_kv_heads, dim, 1));
  FOVEA_TRY(CheckExtent("batch", p->batch));
  FOVEA_TRY(CheckExtent("num_kv_heads", p->num_kv_heads));
  FOVEA_TRY(CheckExtent("head_dim", p->head_dim));
  FOVEA_TRY(CheckExtent("v_head_dim", p->v_head_dim));
  return FOVEA_OK;
}

fovea_status CheckReserved(const fovea_attention_params& p) {
  const char* set = !(p.dropout_p == 0)     ? "dropout_p"
                    : p.reserved != 0       ? "reserved"
                    : p.dropout_seed != 0   ? "dropout_seed"
                    : p.dropout_offset != 0 ? "dropout_offset"
                                            : nullptr;
  if (set == nullptr) return FOVEA_OK;
  return Fail(kUnsupported, "%s is set: this version does not support it, it must be 0", set);
}

fovea_status CheckWindow(const char* name, int64_t* window) {
  if (*window < -1) return Fail(kInvalid, "%s = %" PRId64 ": must be at least 0, or -1 for open", name, *window);
  // A key and a position are less than 2^31 apart.
  if (*window >= std::numeric_limits<int32_t>::max()) *window = -1;
  return FOVEA_OK;
}

fovea_status CheckOptions(fovea_attention_params* p) {
  if (std::isinf(p->scale))
    return Fail(kInvalid, "scale = %g: must be finite, or NaN for the default", double{p->scale});
  if (std::isnan(p->scale)) p->scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p->head_dim)));
  if (!(p->logits_soft_cap >= 0) || std::isinf(p->logits_soft_cap)) {
    return Fail(kInvalid, "logits_soft_cap = %g: must be finite and positive, or 0 for none",
                double{p->logits_soft_cap});
  }
  FOVEA_TRY(CheckEnum("causal", p->causal, 1));
  FOVEA_TRY(CheckEnum("q_align", p->q_align, FOVEA_Q_ALIGN_BOTTOM_RIGHT));
  FOVEA_TRY(CheckEnum("mask_align", p->mask_align, FOVEA_MASK_ALIGN_RIGHT));
  FOVEA_TRY(CheckEnum("scores_stage", p->scores_stage, FOVEA_SCORES_PROBABILITIES));
  if (IsGiven(p->scores) != (p->scores_stage != FOVEA_SCORES_NONE)) {
    return Fail(kInvalid, "scores_stage = %s: must %s", fovea_scores_stage_str(p->scores_stage),
                IsGiven(p->scores) ? "say what scores receives" : "be NONE where scores is not given");
  }
  if (p->q_offset < -kMaxLength || p->q_offset > kMaxLength) {
    return Fail(kInvalid, "q_offset = %" PRId64 ": must be within +-%" PRId64, p->q_offset, kMaxLength);
  }
  if (p->q_offset != 0 && p->q_offsets != nullptr) {
    return Fail(kInvalid, "q_offset = %" PRId64 ": must be 0 where q_offsets is given", p->q_offset);
  }
  if (p->q_positions != nullptr &&
      (p->q_offset != 0 || p->q_offsets != nullptr || p->q_align != FOVEA_Q_ALIGN_TOP_LEFT)) {
    return Fail(kInvalid, "q_positions is given: q_offset, q_offsets and q_align must be at their defaults then");
  }
  FOVEA_TRY(CheckWindow("window_left", &p->window_left));
  FOVEA_TRY(CheckWindow("window_right", &p->window_right));
  FOVEA_TRY(CheckLength("mask_kv_len", p->mask_kv_len));
  if (p->alibi_slopes == nullptr && p->alibi_stride_batch != 0) {
    return Fail(kInvalid, "alibi_stride_batch = %" PRId64 ": must be 0 without alibi_slopes", p->alibi_stride_batch);
  }
  int64_t span;
  if (__builtin_mul_overflow(p->batch, p->alibi_stride_batch, &span) || span > kMaxElements || span < -kMaxElements) {
    return Fail(kInvalid,
                "alibi_stride_batch = %" PRId64 ": over a batch of %" PRId64 " it must span at most 2^56 elements",
                p->alibi_stride_batch, p->batch);
  }
  return FOVEA_OK;
}

fovea_status CheckPaging(const fovea_attention_params& p) {
  if (p.block_table == nullptr) {
    const std::pair<const char*, int64_t> fields[] = {
        {"block_table_stride", p.block_table_stride}, {"num_pages", p.num_pages}, {"page_size", p.page_size}};
    for (const auto& [name, value] : fields) {
      if (value != 0) return Fail(kInvalid, "%s = %" PRId64 ": must be 0 without block_table", name, value);
    }
    return FOVEA_OK;
  }
  if (p.cu_seqlens_kv != nullptr) {
    return Fail(kInvalid, "cu_seqlens_kv is given: must be NULL where block_table is given");
  }
  FOVEA_TRY(CheckPositive("page_size", p.page_size));
  FOVEA_TRY(CheckLength("page_size", p.page_size));
  if (p.num_pages < 0 || p.num_pages > std::numeric_limits<int32_t>::max()) {
    return Fail(kInvalid, "num_pages = %" PRId64 ": must be in [0, 2^31 - 1]", p.num_pages);
  }
  return CheckCount("num_pages * num_kv_heads * page_size * head_dim", p.num_pages, p.num_kv_heads, p.page_size,
                    std::max(p.head_dim, p.v_head_dim));
}

// What mask and bias, and arrays of rows per sequence, must hold over all sequences.
struct Needed {
  int64_t mask_rows, mask_cols, longest_q, longest_kv;
};

// The distance between the rows of sequences in an array that needs `cols` of each.
fovea_status CheckArrayStride(const char* name, int64_t stride, int64_t batch, int64_t cols, const char* what) {
  // 0: one row for all. A smaller one than cols would let sequences run into one another.
  if (stride < 0 || (stride != 0 && batch > 1 && stride < cols)) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 0, or at least %" PRId64 ", the %s of the longest sequence", name,
                stride, cols, what);
  }
  int64_t span;
  if (__builtin_mul_overflow(batch, stride, &span) || span > kMaxElements) {
    return Fail(kInvalid, "%s = %" PRId64 ": over a batch of %" PRId64 " it must span at most 2^56 elements", name,
                stride, batch);
  }
  return FOVEA_OK;
}

int64_t TableColumns(const fovea_attention_params& p, int64_t kv_len) {
  return (kv_len + p.page_size - 1) / p.page_size;
}

// Positions of one side: their array's stride, and the values, which may be negative only down to `least`.
struct PositionSide {
  const char *name, *stride_name;
  const int32_t* data;
  int64_t stride, least, longest;
  const Side& rows;
};
fovea_status CheckPositions(const fovea_attention_params& p, const PositionSide& side) {
  if (side.stride != 0 && (side.data == nullptr || side.rows.cu != nullptr)) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 0 %s %s", side.stride_name, side.stride,
                side.data == nullptr ? "without" : "with", side.data == nullptr ? side.name : side.rows.cu_name);
  }
  if (side.data == nullptr) return FOVEA_OK;
  FOVEA_TRY(CheckArrayStride(side.stride_name, side.stride, p.batch, side.longest, "rows"));
  const bool queries = side.data == p.q_positions;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int32_t* values = queries ? QPositions(p, b) : KvPositions(p, b);
    const int64_t n = queries ? QLen(p, b) : KvLen(p, b);
    int32_t low = 0, high = 0;
    for (int64_t i = 0; i < n; ++i) {
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
    }
    if (high <= kMaxLength && low >= side.least) continue;
    int64_t i = 0;
    while (values[i] <= kMaxLength && values[i] >= side.least) ++i;
    return Fail(kInvalid, "%s[%" PRId64 "][%" PRId64 "] = %" PRId32 ": must be %s 2^30", side.name, b, i, values[i],
                queries ? "within +-" : "below");
  }
  return FOVEA_OK;
}

// Every sequence's lengths, positions and mask rows. Where no array tells sequences apart, one stands for all.
fovea_status CheckSequences(const fovea_attention_params& p, Needed* needed) {
  const Side q = QuerySide(p), kv = KvSide(p);
  FOVEA_TRY(CheckLengths(q));
  FOVEA_TRY(CheckLengths(kv));
  const bool differ = q.lens != nullptr || q.cu != nullptr || kv.lens != nullptr || kv.cu != nullptr ||
                      p.q_offsets != nullptr || p.mask_offsets != nullptr;
  int64_t mask_rows = 0, longest_q = 0, longest_kv = 0;
  for (int64_t b = 0; b < (differ ? p.batch : 1); ++b) {
    if (p.q_offsets != nullptr && (p.q_offsets[b] < -kMaxLength || p.q_offsets[b] > kMaxLength)) {
      return Fail(kInvalid, "q_offsets[%" PRId64 "] = %" PRId32 ": must be within +-%" PRId64, b, p.q_offsets[b],
                  kMaxLength);
    }
    const int64_t mask_offset = p.mask_offsets != nullptr ? p.mask_offsets[b] : 0;
    if (mask_offset < 0) {
      return Fail(kInvalid, "mask_offsets[%" PRId64 "] = %" PRId64 ": must be at least 0", b, mask_offset);
    }
    const int64_t kv_len = KvLen(p, b), q_len = QLen(p, b);
    if (kv.cu != nullptr && IsGiven(p.scores) && kv_len > p.kv_len) {
      return Fail(kInvalid,
                  "kv_len = %" PRId64 ": must be at least %" PRId64 ", the keys of sequence %" PRId64
                  ", where scores is given",
                  p.kv_len, kv_len, b);
    }
    longest_q = std::max(longest_q, q_len);
    longest_kv = std::max(longest_kv, kv_len);
    if (q_len == 0) continue;
    mask_rows = std::max(mask_rows, mask_offset + q_len);
    const int64_t first = PositionOffset(p, b), last = first + q_len - 1;
    if (first < -(kMaxLength + 1) || last > kMaxLength + 1) {
      const Name name = p.q_offsets != nullptr ? Name{"q_offsets", static_cast<int>(b)} : Name{"q_offset"};
      return Fail(kInvalid,
                  "%s = %" PRId64 ": positions of sequence %" PRId64 ", %" PRId64 " to %" PRId64
                  ", must be within +-2^30",
                  Text(name).text, p.q_offsets != nullptr ? p.q_offsets[b] : p.q_offset, b, first, last);
    }
  }
  needed->mask_rows = mask_rows;
  needed->mask_cols = p.mask_kv_len != 0 ? p.mask_kv_len : kv.cu != nullptr ? longest_kv : p.kv_len;
  needed->longest_q = longest_q;
  needed->longest_kv = longest_kv;
  if (p.block_table != nullptr) {
    const int64_t columns = TableColumns(p, longest_kv);
    FOVEA_TRY(CheckArrayStride("block_table_stride", p.block_table_stride, p.batch, columns, "pages"));
  }
  constexpr int64_t kAny = std::numeric_limits<int32_t>::min();
  FOVEA_TRY(CheckPositions(
      p, {"q_positions", "q_positions_stride", p.q_positions, p.q_positions_stride, -kMaxLength, longest_q, q}));
  return CheckPositions(
      p, {"kv_positions", "kv_positions_stride", p.kv_positions, p.kv_positions_stride, kAny, longest_kv, kv});
}

fovea_status CheckSlopes(const fovea_attention_params& p) {
  const int64_t rows = p.alibi_stride_batch == 0 ? 1 : p.batch;
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      const float slope = p.alibi_slopes[b * p.alibi_stride_batch + h];
      if (!(std::fabs(slope) <= 1e38f)) {
        return Fail(kInvalid, "alibi_slopes[%" PRId64 "][%" PRId64 "] = %g: must be finite, at most 1e38 in size", b, h, double{slope});
      }
    }
  }
  return FOVEA_OK;
}

// layer: the views of the layer around the attention, or NULL.
fovea_status CheckTensors(CheckData data, const Needed& needed, const ViewList* layer, fovea_attention_params* p) {
  const Side q = QuerySide(*p), kv = KvSide(*p);
  const bool paged = p->block_table != nullptr;
  const int64_t q_heads = p->num_q_heads, q_entries = q.Entries(), q_rows = q.Rows(), kv_heads = p->num_kv_heads;
  const int64_t kv_entries = paged ? p->num_pages : kv.Entries(), kv_rows = paged ? p->page_size : kv.Rows();
  const int64_t scale_extent[] = {kv_entries, kv_heads, kv_rows, 1};
  const int64_t channel_extent[] = {p->batch, kv_heads, 1, p->head_dim};
  const int64_t mask_extent[] = {p->batch, q_heads, needed.mask_rows, needed.mask_cols};
  constexpr int kOutputs = 3, kOptions = 9;  // out, lse, scores; q, k, v and their scales; then options
  ViewList list;
  Views views(&list, kOutputs, data);
  FOVEA_TRY(views.AddTensor({"out"}, true, {q_entries, q_heads, q_rows, p->v_head_dim}, &p->out));
  FOVEA_TRY(views.AddTensor({"lse"}, false, {q_entries, q_heads, q_rows, 1}, &p->lse, Takes::kF32));
  const int64_t scores_extent[] = {q_entries, q_heads, q_rows, p->kv_len};
  FOVEA_TRY(views.AddTensor({"scores"}, false, scores_extent, &p->scores, Takes::kF32, Columns::kStrided));
  FOVEA_TRY(views.AddTensor({"q"}, true, {q_entries, q_heads, q_rows, p->head_dim}, &p->q));
  FOVEA_TRY(views.AddTensor({"k"}, true, {kv_entries, kv_heads, kv_rows, p->head_dim}, &p->k, Takes::kFloatsOrI8));
  FOVEA_TRY(views.AddTensor({"v"}, true, {kv_entries, kv_heads, kv_rows, p->v_head_dim}, &p->v, Takes::kFloatsOrI8));
  FOVEA_TRY(views.AddTensor({"k_scale"}, false, scale_extent, &p->k_scale, Takes::kF32));
  FOVEA_TRY(views.AddTensor({"v_scale"}, false, scale_extent, &p->v_scale, Takes::kF32));
  FOVEA_TRY(views.AddTensor({"k_channel_scale"}, false, channel_extent, &p->k_channel_scale, Takes::kF32));
  FOVEA_TRY(views.AddTensor({"mask"}, false, mask_extent, &p->mask, Takes::kU8, Columns::kStrided));
  FOVEA_TRY(views.AddTensor({"bias"}, false, mask_extent, &p->bias, Takes::kFloats, Columns::kStrided));
  FOVEA_TRY(CheckScaled("k_scale", p->k_scale, "k", p->k));
  FOVEA_TRY(CheckScaled("v_scale", p->v_scale, "v", p->v));
  FOVEA_TRY(CheckScaled("k_channel_scale", p->k_channel_scale, "k", p->k));
  FOVEA_TRY(views.AddArray({"alibi_slopes"}, p->alibi_slopes, p->batch, p->alibi_stride_batch, q_heads));
  FOVEA_TRY(views.AddArray({"sinks"}, p->sinks, q_heads));
  FOVEA_TRY(views.AddArray({"q_offsets"}, p->q_offsets, p->batch));
  FOVEA_TRY(views.AddArray({"mask_offsets"}, p->mask_offsets, p->batch));
  FOVEA_TRY(views.AddLengths(q));
  FOVEA_TRY(views.AddLengths(kv));
  const int64_t table_columns = paged ? TableColumns(*p, needed.longest_kv) : 0;
  FOVEA_TRY(views.AddArray({"block_table"}, p->block_table, p->batch, p->block_table_stride, table_columns));
  // Of padded sides only the longest sequence's rows are read.
  const int64_t q_read = q.cu != nullptr ? q.total : needed.longest_q;
  const int64_t kv_read = kv.cu != nullptr ? kv.total : needed.longest_kv;
  FOVEA_TRY(views.AddArray({"q_positions"}, p->q_positions, q_entries, p->q_positions_stride, q_read));
  FOVEA_TRY(views.AddArray({"kv_positions"}, p->kv_positions, kv.Entries(), p->kv_positions_stride, kv_read));
  if (data == CheckData::kNo) return FOVEA_OK;
  // out, q, k, v and scales are the layer's own. Its outputs are held against lse, scores and all options; its inputs
  // against lse and scores.
  for (int i = 0; layer != nullptr && i < layer->n; ++i) {
    const bool output = i < layer->outputs;
    for (int j = 1; j < (output ? views.size() : kOutputs); ++j) {
      if (j >= kOutputs && j < kOptions) continue;
      const View &of_layer = layer->views[i], &option = views[j];
      FOVEA_TRY(output ? CheckDisjoint(of_layer, option) : CheckDisjoint(option, of_layer));
    }
  }
  FOVEA_TRY(views.CheckOutputs());
  return p->alibi_slopes != nullptr ? CheckSlopes(*p) : FOVEA_OK;
}

fovea_status CheckFields(CheckData data, const ViewList* layer, fovea_attention_params* p) {
  Needed needed = {0, 0, 0, 0};
  FOVEA_TRY(CheckReserved(*p));
  FOVEA_TRY(CheckExtents(p));
  FOVEA_TRY(CheckOptions(p));
  FOVEA_TRY(CheckPaging(*p));
  FOVEA_TRY(CheckSequences(*p, &needed));
  return CheckTensors(data, needed, layer, p);
}

}  // namespace

fovea_status CheckParams(const fovea_attention_params* user, CheckData data, fovea_attention_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_attention_params_init", p));
  return CheckFields(data, nullptr, p);
}

fovea_status CheckExec(const fovea_exec* user, fovea_exec* e) {
  FOVEA_TRY(CopyStruct(user, "exec", "fovea_exec_init", e));
  constexpr int32_t kMaxThreads = 1024;
  if (e->num_threads < 0 || e->num_threads > kMaxThreads) {
    return Fail(kInvalid, "exec.num_threads = %" PRId32 ": must be in [0, %" PRId32 "]", e->num_threads, kMaxThreads);
  }
  if ((e->flags & ~static_cast<uint32_t>(FOVEA_BATCH_INVARIANT)) != 0) {
    return Fail(kUnsupported, "exec.flags = 0x%" PRIx32 ": this version knows FOVEA_BATCH_INVARIANT = 0x%x", e->flags,
                FOVEA_BATCH_INVARIANT);
  }
  if (e->workspace == nullptr && e->workspace_bytes != 0) {
    return Fail(kInvalid, "exec.workspace_bytes = %zu: must be 0 where exec.workspace is NULL", e->workspace_bytes);
  }
  if (e->error_text == nullptr && e->error_capacity != 0) {
    return Fail(kInvalid, "exec.error_capacity = %zu: must be 0 where exec.error_text is NULL", e->error_capacity);
  }
  return FOVEA_OK;
}

fovea_status CheckMerge(int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch, int64_t num_heads,
                        int64_t rows, int64_t v_head_dim, const fovea_tensor* out, const fovea_tensor* lse) {
  FOVEA_TRY(CheckPositive("n", n));
  if (outs == nullptr || lses == nullptr || out == nullptr) {
    return Fail(kInvalid, "%s = NULL: must be given", outs == nullptr ? "outs" : lses == nullptr ? "lses" : "out");
  }
  FOVEA_TRY(CheckPositive("batch", batch));
  FOVEA_TRY(CheckPositive("num_heads", num_heads));
  FOVEA_TRY(CheckLength("rows", rows));
  FOVEA_TRY(CheckPositive("v_head_dim", v_head_dim));
  FOVEA_TRY(CheckCount("batch * num_heads * rows * v_head_dim", batch, num_heads, std::max<int64_t>(rows, 1), v_head_dim));
  const int64_t out_extent[] = {batch, num_heads, rows, v_head_dim}, lse_extent[] = {batch, num_heads, rows, 1};
  const auto check = [](Name name, Takes takes, const int64_t(&extent)[kDims], const fovea_tensor& tensor, View* view) {
    fovea_tensor t = tensor;
    return CheckTensor({name, true, takes, Columns::kContiguous}, extent, CheckData::kYes, &t, view);
  };
  View out_view, lse_view = {};  // an lse that is not given overlaps nothing
  FOVEA_TRY(check({"out"}, Takes::kFloats, out_extent, *out, &out_view));
  FOVEA_TRY(CheckDistinct(out_view));
  if (lse != nullptr) {
    FOVEA_TRY(check({"lse"}, Takes::kF32, lse_extent, *lse, &lse_view));
    FOVEA_TRY(CheckDistinct(lse_view));
    FOVEA_TRY(CheckDisjoint(out_view, lse_view));
  }
  for (int32_t i = 0; i < n; ++i) {
    View part_out, part_lse;
    FOVEA_TRY(check({"outs", i}, Takes::kFloats, out_extent, outs[i], &part_out));
    FOVEA_TRY(check({"lses", i}, Takes::kF32, lse_extent, lses[i], &part_lse));
    // The first part may be joined in place.
    if (i != 0 || !SameElements(out_view, part_out)) FOVEA_TRY(CheckDisjoint(out_view, part_out));
    if (i != 0 || !SameElements(lse_view, part_lse)) FOVEA_TRY(CheckDisjoint(lse_view, part_lse));
    FOVEA_TRY(CheckDisjoint(out_view, part_lse));
    FOVEA_TRY(CheckDisjoint(lse_view, part_out));
  }
  return FOVEA_OK;
}

// ---- RoPE and the KV cache -----------------------------------------------------------------------------------------

namespace {

// Fields of a fovea_rope_params, by their full names where it is part of another struct.
struct RopeNames {
  const char *rotary_dim, *num_positions, *table_batch, *interleaved, *reserved, *cos, *sin;
  const char *position_offset, *position_offsets, *position_ids, *position_ids_stride;
};
#define FOVEA_ROPE_NAMES(prefix)                                                                                   \
  {prefix "rotary_dim", prefix "num_positions", prefix "table_batch", prefix "interleaved", prefix "reserved",     \
   prefix "cos", prefix "sin", prefix "position_offset", prefix "position_offsets", prefix "position_ids",         \
   prefix "position_ids_stride"}
constexpr RopeNames kRopeNames = FOVEA_ROPE_NAMES("");
constexpr RopeNames kPartRopeNames = FOVEA_ROPE_NAMES("rope.");
constexpr RopeNames kKvRopeNames = FOVEA_ROPE_NAMES("kv_rope.");
#undef FOVEA_ROPE_NAMES

// Lengths of new rows; the same fields in every struct that has them.
template <class Params>
fovea_status CheckNewRows(const Params& p, const char* heads_name, int64_t heads, int64_t dim) {
  FOVEA_TRY(CheckPositive("batch", p.batch));
  FOVEA_TRY(CheckPositive(heads_name, heads));
  FOVEA_TRY(CheckLength("q_len", p.q_len));
  FOVEA_TRY(CheckPositive("head_dim", p.head_dim));
  if (p.total_q < 0 || (p.total_q > 0 && p.cu_seqlens_q == nullptr)) {
    return Fail(kInvalid, "total_q = %" PRId64 ": must be %s", p.total_q,
                p.total_q < 0 ? "at least 0" : "0 without cu_seqlens_q");
  }
  FOVEA_TRY(CheckCount("batch * heads * q_len * head_dim", p.batch, heads, std::max<int64_t>(p.q_len, 1), dim));
  FOVEA_TRY(CheckCount("total_q * heads * head_dim", p.total_q, heads, dim, 1));
  return CheckLengths(QuerySide(p));
}

// The stride of an array of which each new row has an entry.
fovea_status CheckRowStride(const char* name, int64_t stride, bool may_share, const Side& rows) {
  if (rows.cu != nullptr) return FOVEA_OK;
  int64_t span;
  if ((stride >= rows.len || (stride == 0 && (may_share || rows.batch == 1))) &&
      !__builtin_mul_overflow(rows.batch, stride, &span)) {
    return FOVEA_OK;
  }
  return Fail(kInvalid, "%s = %" PRId64 ": must be at least q_len = %" PRId64 "%s", name, stride, rows.len,
              may_share ? ", or 0 for one row of all sequences" : "");
}

// All of p but its positions; its lengths are known to be right.
fovea_status CheckRotation(const RopeNames& names, fovea_rope_params* p, Views* views) {
  if (p->rotary_dim == 0) p->rotary_dim = p->head_dim;
  if (p->rotary_dim < 0 || p->rotary_dim > p->head_dim || p->rotary_dim % 2 != 0) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be even and at most head_dim = %" PRId64, names.rotary_dim,
                p->rotary_dim, p->head_dim);
  }
  FOVEA_TRY(CheckLength(names.num_positions, p->num_positions));
  if (p->table_batch == 0) p->table_batch = 1;
  if (p->table_batch != 1 && p->table_batch != p->batch) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 1 (or 0) or batch = %" PRId64, names.table_batch, p->table_batch,
                p->batch);
  }
  FOVEA_TRY(CheckEnum(names.interleaved, p->interleaved, 1));
  if (p->reserved != 0) return Fail(kUnsupported, "%s = %" PRId32 ": must be 0", names.reserved, p->reserved);
  if (p->position_offsets != nullptr && p->position_ids != nullptr) {
    return Fail(kInvalid, "%s is given: must be NULL where %s is given", names.position_offsets, names.position_ids);
  }
  if (p->position_offset != 0 && (p->position_offsets != nullptr || p->position_ids != nullptr)) {
    return Fail(kInvalid, "%s = %" PRId64 ": must be 0 where %s is given", names.position_offset, p->position_offset,
                p->position_ids != nullptr ? names.position_ids : names.position_offsets);
  }
  if (p->position_ids != nullptr) {
    FOVEA_TRY(CheckRowStride(names.position_ids_stride, p->position_ids_stride, true, QuerySide(*p)));
  }
  const int64_t extent[] = {p->table_batch, 1, p->num_positions, p->rotary_dim / 2};
  FOVEA_TRY(views->AddTensor({names.cos}, true, extent, &p->cos));
  return views->AddTensor({names.sin}, true, extent, &p->sin);
}

// The positions of p, which is right else. skips: -1 in it leaves a row out, and its position unread.
fovea_status CheckRowPositions(const RopeNames& names, const int32_t* skips, int64_t skips_stride, const fovea_rope_params& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t len = QLen(p, b), first = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[b] : 0;
    const int32_t* skip = skips == nullptr            ? nullptr
                          : p.cu_seqlens_q != nullptr ? skips + first
                                                      : skips + b * skips_stride;
    if (p.position_ids != nullptr) {
      const int32_t* ids = p.position_ids + (p.cu_seqlens_q != nullptr ? first : b * p.position_ids_stride);
      for (int64_t i = 0; i < len; ++i) {
        if (skip != nullptr && skip[i] == -1) continue;
        if (ids[i] < 0 || ids[i] >= p.num_positions) {
          return Fail(kInvalid,
                      "%s of row %" PRId64 " of sequence %" PRId64 " = %" PRId32 ": must be in [0, %s = %" PRId64 ")",
                      names.position_ids, i, b, ids[i], names.num_positions, p.num_positions);
        }
      }
      continue;
    }
    const int64_t offset = p.position_offsets != nullptr ? p.position_offsets[b] : p.position_offset;
    int64_t used_begin = 0, used_end = len;
    while (skip != nullptr && used_begin < used_end && skip[used_begin] == -1) ++used_begin;
    while (skip != nullptr && used_begin < used_end && skip[used_end - 1] == -1) --used_end;
    if (used_begin == used_end) continue;
    if (offset < -used_begin || offset > p.num_positions - used_end) {
      return Fail(kInvalid,
                  "%s of sequence %" PRId64 " = %" PRId64 ": its positions, %" PRId64
                  " rows, must be in [0, %s = %" PRId64 ")",
                  p.position_offsets != nullptr ? names.position_offsets : names.position_offset, b, offset, len,
                  names.num_positions, p.num_positions);
    }
  }
  return FOVEA_OK;
}

// The lengths of new rows, and their heads.
void TakeLengths(const Side& rows, int64_t num_heads, int64_t head_dim, fovea_rope_params* rope) {
  rope->batch = rows.batch;
  rope->num_heads = num_heads;
  rope->q_len = rows.len;
  rope->head_dim = head_dim;
  rope->q_lens = rows.lens;
  rope->cu_seqlens_q = rows.cu;
  rope->total_q = rows.total;
}

// A rotation that is part of another struct, whose lengths it takes.
fovea_status CopyRotation(const char* name, const fovea_rope_params* user, const Side& rows, int64_t num_heads,
                          int64_t head_dim, fovea_rope_params* rope) {
  FOVEA_TRY(CopyStruct(user, name, "fovea_rope_params_init", rope));
  if ((rope->batch | rope->num_heads | rope->q_len | rope->head_dim | rope->total_q) != 0 || rope->q_lens != nullptr ||
      rope->cu_seqlens_q != nullptr || !IsZero(rope->x) || !IsZero(rope->out)) {
    return Fail(kInvalid, "%s: its batch, num_heads, q_len, head_dim, x, out, q_lens, cu_seqlens_q and total_q must be 0", name);
  }
  TakeLengths(rows, num_heads, head_dim, rope);
  return FOVEA_OK;
}

// Where new rows go: every entry and slot that is written to.
fovea_status CheckPlaces(const fovea_kv_append_params& p) {
  const bool paged = p.block_table != nullptr || p.slot_mapping != nullptr;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t len = QLen(p, b);
    if (len == 0) continue;
    if (p.slot_mapping != nullptr) {
      const int32_t* slots =
          p.slot_mapping + (p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[b] : b * p.slot_mapping_stride);
      const int64_t num_slots = p.num_pages * p.page_size;
      for (int64_t i = 0; i < len; ++i) {
        if (slots[i] < -1 || slots[i] >= num_slots) {
          return Fail(kInvalid,
                      "slot_mapping of row %" PRId64 " of sequence %" PRId64 " = %" PRId32
                      ": must be in [0, num_pages * page_size = %" PRId64 "), or -1 to skip the row",
                      i, b, slots[i], num_slots);
        }
      }
      continue;
    }
    const int64_t start = p.kv_starts != nullptr ? p.kv_starts[b] : 0;
    const int64_t room = paged ? p.block_table_stride * p.page_size : p.capacity;
    if (start < 0 || start > room - len) {
      return Fail(kInvalid,
                  "kv_starts[%" PRId64 "] = %" PRId64 ": must be at least 0 and leave room for %" PRId64
                  " rows in %s = %" PRId64,
                  b, start, len, paged ? "block_table_stride * page_size" : "capacity", room);
    }
    if (!paged) continue;
    for (int64_t e = start / p.page_size; e <= (start + len - 1) / p.page_size; ++e) {
      const int32_t page = p.block_table[b * p.block_table_stride + e];
      if (page < 0 || page >= p.num_pages) {
        return Fail(kInvalid,
                    "block_table[%" PRId64 "][%" PRId64 "] = %" PRId32 ": must be in [0, num_pages = %" PRId64 ")", b,
                    e, page, p.num_pages);
      }
    }
  }
  return FOVEA_OK;
}

fovea_status CheckQuantizedDim(const char* name, int64_t dim, const char* cache_name, const fovea_tensor& cache) {
  if (cache.dtype != FOVEA_I8 || dim <= kMaxQuantizedColumns) return FOVEA_OK;
  return Fail(kUnsupported, "%s = %" PRId64 ": must be at most %" PRId64 " where %s.dtype = I8", name, dim, kMaxQuantizedColumns,
              cache_name);
}

// Columns of new keys are divided by these.
fovea_status CheckChannelScales(const fovea_kv_append_params& p) {
  const fovea_tensor& t = p.k_channel_scale;
  for (int64_t b = 0; b < (t.stride_batch == 0 ? 1 : p.batch); ++b) {
    for (int64_t h = 0; h < (t.stride_head == 0 ? 1 : p.num_kv_heads); ++h) {
      const float* scale = static_cast<const float*>(t.data) + (b * t.stride_batch + h * t.stride_head);
      for (int64_t c = 0; c < p.head_dim; ++c) {
        if (std::isfinite(scale[c]) && scale[c] != 0) continue;
        return Fail(kInvalid, "k_channel_scale[%" PRId64 "][%" PRId64 "][0][%" PRId64 "] = %g: must be finite and not 0",
                    b, h, c, double{scale[c]});
      }
    }
  }
  return FOVEA_OK;
}

// Which of the three kinds of cache it is, that nothing of the others is set, and its extents.
fovea_status CheckCacheKind(const fovea_kv_append_params& p) {
  const bool paged = p.block_table != nullptr || p.slot_mapping != nullptr;
  if (p.block_table != nullptr && p.slot_mapping != nullptr) {
    return Fail(kInvalid, "slot_mapping is given: must be NULL where block_table is given");
  }
  if (p.slot_mapping != nullptr && p.kv_starts != nullptr) {
    return Fail(kInvalid, "kv_starts is given: must be NULL where slot_mapping is given");
  }
  const struct {
    const char* name;
    int64_t value;
    bool used;
  } fields[] = {{"capacity", p.capacity, !paged},
                {"num_pages", p.num_pages, paged},
                {"page_size", p.page_size, paged},
                {"block_table_stride", p.block_table_stride, p.block_table != nullptr},
                {"slot_mapping_stride", p.slot_mapping_stride, p.slot_mapping != nullptr}};
  for (const auto& f : fields) {
    if (!f.used && f.value != 0) {
      return Fail(kInvalid, "%s = %" PRId64 ": must be 0 for a cache that is %s", f.name, f.value,
                  !paged                     ? "contiguous"
                  : p.block_table != nullptr ? "paged by block_table"
                                             : "paged by slot_mapping");
    }
  }
  FOVEA_TRY(CheckLength("capacity", p.capacity));
  FOVEA_TRY(CheckLength("num_pages", p.num_pages));
  FOVEA_TRY(CheckLength("page_size", p.page_size));
  FOVEA_TRY(CheckLength("block_table_stride", p.block_table_stride));
  if (paged) FOVEA_TRY(CheckPositive("page_size", p.page_size));
  if (p.slot_mapping != nullptr) {
    FOVEA_TRY(CheckRowStride("slot_mapping_stride", p.slot_mapping_stride, false, QuerySide(p)));
  }
  return CheckCount(paged ? "num_pages * num_kv_heads * page_size * head_dim" : "batch * num_kv_heads * capacity * head_dim",
                    paged ? p.num_pages : p.batch, p.num_kv_heads, paged ? p.page_size : p.capacity, std::max(p.head_dim, p.v_head_dim));
}

}  // namespace

fovea_status CheckRope(const fovea_rope_params* user, fovea_rope_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_rope_params_init", p));
  FOVEA_TRY(CheckNewRows(*p, "num_heads", p->num_heads, p->head_dim));
  const Side q = QuerySide(*p);
  const int64_t extent[] = {q.Entries(), p->num_heads, q.Rows(), p->head_dim};
  ViewList list;
  Views views(&list, 1);
  FOVEA_TRY(views.AddTensor({"out"}, true, extent, &p->out));
  FOVEA_TRY(views.AddTensor({"x"}, true, extent, &p->x));
  FOVEA_TRY(CheckRotation(kRopeNames, p, &views));
  FOVEA_TRY(CheckRowPositions(kRopeNames, nullptr, 0, *p));
  FOVEA_TRY(views.AddArray({"position_offsets"}, p->position_offsets, p->batch));
  FOVEA_TRY(views.AddLengths(q));
  FOVEA_TRY(views.AddRowArray({"position_ids"}, p->position_ids, p->position_ids_stride, q));
  return views.CheckOutputs(p->x.dtype == p->out.dtype && SameElements(views[0], views[1]));
}

fovea_status CheckRopeTables(const fovea_rope_tables_params* user, fovea_rope_tables_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_rope_tables_params_init", p));
  if (p->rotary_dim <= 0 || p->rotary_dim > kMaxLength || p->rotary_dim % 2 != 0) {
    return Fail(kInvalid, "rotary_dim = %" PRId64 ": must be even and positive, below 2^30", p->rotary_dim);
  }
  FOVEA_TRY(CheckLength("num_positions", p->num_positions));
  if (p->first_position < 0 || p->first_position > kMaxLength + 1 - p->num_positions) {
    return Fail(kInvalid,
                "first_position = %" PRId64 ": must be at least 0, and %" PRId64 " positions from there at most 2^30",
                p->first_position, p->num_positions);
  }
  FOVEA_TRY(CheckEnum("scaling", p->scaling, FOVEA_ROPE_SCALING_LLAMA3));
  FOVEA_TRY(CheckEnum("yarn_truncate", p->yarn_truncate, 1));
  const bool dynamic = p->scaling == FOVEA_ROPE_SCALING_DYNAMIC_NTK, yarn = p->scaling == FOVEA_ROPE_SCALING_YARN;
  const bool llama3 = p->scaling == FOVEA_ROPE_SCALING_LLAMA3;
  // Each must be above its limit and finite, where its scaling reads it.
  const struct {
    const char* name;
    double value, above;
    bool read;
  } numbers[] = {{"base", p->base, 1.0, true},
                 {"beta_slow", p->beta_slow, 0.0, yarn},
                 {"beta_fast", p->beta_fast, p->beta_slow, yarn},
                 {"low_freq_factor", p->low_freq_factor, 0.0, llama3},
                 {"high_freq_factor", p->high_freq_factor, p->low_freq_factor, llama3}};
  for (const auto& n : numbers) {
    if (n.read && !(n.value > n.above && std::isfinite(n.value))) {
      return Fail(kInvalid, "%s = %g: must be finite and above %g", n.name, n.value, n.above);
    }
  }
  if (p->scaling != FOVEA_ROPE_SCALING_NONE && !(p->factor >= 1.0 && std::isfinite(p->factor))) {
    return Fail(kInvalid, "factor = %g: must be finite and at least 1", p->factor);
  }
  if (!std::isfinite(p->attention_factor) || p->attention_factor < 0.0) {
    return Fail(kInvalid, "attention_factor = %g: must be finite and positive, or 0 for the scaling's own",
                p->attention_factor);
  }
  if (dynamic || yarn || llama3) FOVEA_TRY(CheckPositive("original_max_position", p->original_max_position));
  if (dynamic) FOVEA_TRY(CheckLength("seq_len", p->seq_len));
  const int64_t extent[] = {1, 1, p->num_positions, p->rotary_dim / 2};
  FOVEA_TRY(CheckCount("num_positions * rotary_dim", p->num_positions, p->rotary_dim, 1, 1));
  ViewList list;
  Views views(&list, 2);
  FOVEA_TRY(views.AddTensor({"cos"}, true, extent, &p->cos));
  FOVEA_TRY(views.AddTensor({"sin"}, true, extent, &p->sin));
  return views.CheckOutputs();
}

fovea_status CheckKvAppend(const fovea_kv_append_params* user, fovea_kv_append_params* p, fovea_rope_params* rope) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_kv_append_params_init", p));
  if (p->v_head_dim == 0) p->v_head_dim = p->head_dim;
  FOVEA_TRY(CheckPositive("v_head_dim", p->v_head_dim));
  const int64_t dim = std::max(p->head_dim, p->v_head_dim);
  FOVEA_TRY(CheckNewRows(*p, "num_kv_heads", p->num_kv_heads, dim));
  FOVEA_TRY(CheckCacheKind(*p));
  const Side q = QuerySide(*p);
  const bool paged = p->block_table != nullptr || p->slot_mapping != nullptr;
  const int64_t entries = paged ? p->num_pages : p->batch, rows = paged ? p->page_size : p->capacity;
  if (!IsGiven(p->k_new) && !IsGiven(p->v_new))
    return Fail(kInvalid, "k_new and v_new: at least one must be given");
  const struct {
    Name new_name, cache_name, scale_name;
    const char* dim_name;
    fovea_tensor *fresh, *cache, *scale;
    int64_t dim;
  } sides[] = {{{"k_new"}, {"k_cache"}, {"k_scale"}, "head_dim", &p->k_new, &p->k_cache, &p->k_scale, p->head_dim},
               {{"v_new"}, {"v_cache"}, {"v_scale"}, "v_head_dim", &p->v_new, &p->v_cache, &p->v_scale, p->v_head_dim}};
  ViewList list;
  Views views(&list, 4);
  for (const auto& side : sides) {
    const int64_t extent[] = {entries, p->num_kv_heads, rows, side.dim};
    if (!IsGiven(*side.fresh) && IsGiven(*side.cache)) {
      return Fail(kInvalid, "%s is given: must be absent where %s is", side.cache_name.base, side.new_name.base);
    }
    FOVEA_TRY(views.AddTensor(side.cache_name, IsGiven(*side.fresh), extent, side.cache, Takes::kFloatsOrI8));
    const bool quantized = side.cache->dtype == FOVEA_I8;
    const int64_t scale_extent[] = {entries, p->num_kv_heads, rows, 1};
    FOVEA_TRY(views.AddTensor(side.scale_name, quantized, scale_extent, side.scale, Takes::kF32));
    FOVEA_TRY(CheckScaled(side.scale_name.base, *side.scale, side.cache_name.base, *side.cache));
    FOVEA_TRY(CheckQuantizedDim(side.dim_name, side.dim, side.cache_name.base, *side.cache));
  }
  for (const auto& side : sides) {
    const int64_t extent[] = {q.Entries(), p->num_kv_heads, q.Rows(), side.dim};
    FOVEA_TRY(views.AddTensor(side.new_name, false, extent, side.fresh));
  }
  const int64_t channel_extent[] = {p->batch, p->num_kv_heads, 1, p->head_dim};
  FOVEA_TRY(views.AddTensor({"k_channel_scale"}, false, channel_extent, &p->k_channel_scale, Takes::kF32));
  FOVEA_TRY(CheckScaled("k_channel_scale", p->k_channel_scale, "k_cache", p->k_cache));
  if (IsGiven(p->k_channel_scale)) FOVEA_TRY(CheckChannelScales(*p));
  FOVEA_TRY(CheckPlaces(*p));
  if (p->rope == nullptr) {
    *rope = {};
  } else {
    FOVEA_TRY(CopyRotation("rope", p->rope, q, p->num_kv_heads, p->head_dim, rope));
    if (!IsGiven(p->k_new)) return Fail(kInvalid, "rope is given: must be NULL where k_new is absent");
    FOVEA_TRY(CheckRotation(kPartRopeNames, rope, &views));
    FOVEA_TRY(CheckRowPositions(kPartRopeNames, p->slot_mapping, p->slot_mapping_stride, *rope));
    p->rope = rope;
  }
  FOVEA_TRY(views.AddLengths(q));
  FOVEA_TRY(views.AddArray({"kv_starts"}, p->kv_starts, p->batch));
  FOVEA_TRY(views.AddArray({"block_table"}, p->block_table, p->batch, p->block_table_stride, p->block_table_stride));
  FOVEA_TRY(views.AddRowArray({"slot_mapping"}, p->slot_mapping, p->slot_mapping_stride, q));
  FOVEA_TRY(views.AddRowArray({"rope.position_ids"}, rope->position_ids, rope->position_ids_stride, q));
  FOVEA_TRY(views.AddArray({"rope.position_offsets"}, rope->position_offsets, p->batch));
  return views.CheckOutputs();
}

fovea_status CheckLinear(const fovea_linear_params* user, CheckData data, fovea_linear_params* p) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_linear_params_init", p));
  FOVEA_TRY(CheckLength("tokens", p->tokens));
  FOVEA_TRY(CheckExtent("in_features", p->in_features));
  FOVEA_TRY(CheckExtent("out_features", p->out_features));
  const int64_t rows = std::max<int64_t>(p->tokens, 1);
  FOVEA_TRY(CheckCount("tokens * in_features", rows, p->in_features, 1, 1));
  FOVEA_TRY(CheckCount("tokens * out_features", rows, p->out_features, 1, 1));
  FOVEA_TRY(CheckCount("in_features * out_features", p->in_features, p->out_features, 1, 1));
  ViewList list;
  Views views(&list, 1, data);
  FOVEA_TRY(views.AddTensor({"y"}, true, {1, 1, p->tokens, p->out_features}, &p->y));
  FOVEA_TRY(views.AddTensor({"x"}, true, {1, 1, p->tokens, p->in_features}, &p->x));
  FOVEA_TRY(views.AddTensor({"w"}, true, {1, 1, p->out_features, p->in_features}, &p->w));
  FOVEA_TRY(views.AddTensor({"bias"}, false, {1, 1, 1, p->out_features}, &p->bias));
  return views.CheckOutputs();
}

// ---- The multi-head layer ------------------------------------------------------------------------------------------

namespace {

// Extents, and that all products of them which later code forms stay small.
fovea_status CheckMhaExtents(fovea_mha_params* p) {
  if (p->d_out == 0) p->d_out = p->d_model;
  if (p->d_kv == 0) p->d_kv = p->d_model;
  if (p->v_head_dim == 0) p->v_head_dim = p->head_dim;
  FOVEA_TRY(CheckExtent("batch", p->batch));
  FOVEA_TRY(CheckExtent("num_q_heads", p->num_q_heads));
  FOVEA_TRY(CheckExtent("num_kv_heads", p->num_kv_heads));
  FOVEA_TRY(CheckExtent("head_dim", p->head_dim));
  FOVEA_TRY(CheckExtent("v_head_dim", p->v_head_dim));
  FOVEA_TRY(CheckExtent("d_model", p->d_model));
  FOVEA_TRY(CheckExtent("d_out", p->d_out));
  FOVEA_TRY(CheckExtent("d_kv", p->d_kv));
  if (p->num_q_heads % p->num_kv_heads != 0) {
    return Fail(kInvalid, "num_kv_heads = %" PRId64 ": must divide num_q_heads = %" PRId64, p->num_kv_heads, p->num_q_heads);
  }
  // Each factor is below 2^30.
  const int64_t features = (p->num_q_heads + p->num_kv_heads) * p->head_dim + p->num_kv_heads * p->v_head_dim;
  if (features > kMaxLength || p->num_q_heads * p->v_head_dim > kMaxLength) {
    return Fail(kUnsupported, "num_q_heads, num_kv_heads, head_dim, v_head_dim = %" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                ": all columns of q, k and v must be below 2^30", p->num_q_heads, p->num_kv_heads, p->head_dim, p->v_head_dim);
  }
  const int64_t o_columns = p->num_q_heads * p->v_head_dim;
  const std::pair<Side, int64_t> sides[] = {{QuerySide(*p), std::max({p->d_model, p->d_out, features, o_columns})},
                                            {KvSide(*p), std::max(p->d_kv, features)}};
  for (const auto& [side, columns] : sides) {
    FOVEA_TRY(CheckLength(side.len_name, side.len));
    if (side.total != 0 && side.cu == nullptr) {
      return Fail(kInvalid, "%s = %" PRId64 ": must be 0 without cu_seqlens", side.total_name, side.total);
    }
    FOVEA_TRY(CheckLength(side.total_name, side.total));
    const int64_t rows = side.Entries() * side.Rows();
    if (rows > kMaxLength) {
      return Fail(kUnsupported, "batch * %s = %" PRId64 " * %" PRId64 ": must be below 2^30 tokens", side.len_name, p->batch, side.len);
    }
    FOVEA_TRY(CheckCount("tokens * columns", std::max<int64_t>(rows, 1), columns, 1, 1));
  }
  if (!(p->norm_eps >= 0) || std::isinf(p->norm_eps)) {
    return Fail(kInvalid, "norm_eps = %g: must be finite, at least 0", double{p->norm_eps});
  }
  if (p->reserved != 0) return Fail(kUnsupported, "reserved = %" PRId32 ": must be 0", p->reserved);
  return FOVEA_OK;
}

fovea_status CheckMhaLengths(const fovea_mha_params& p) {
  const bool cross = IsGiven(p.x_kv), cache = IsGiven(p.k_cache);
  FOVEA_TRY(CheckLengths(QuerySide(p)));
  if (!cross) {
    if (p.kv_len != 0) return Fail(kInvalid, "kv_len = %" PRId64 ": must be 0 without x_kv", p.kv_len);
    if (p.d_kv != p.d_model) return Fail(kInvalid, "d_kv = %" PRId64 ": must be 0 without x_kv", p.d_kv);
    if (p.cu_seqlens_kv != nullptr) return Fail(kInvalid, "cu_seqlens_kv is given: must be NULL without x_kv");
    if (p.kv_lens != nullptr && (cache || p.cu_seqlens_q != nullptr)) {
      return Fail(kInvalid, "kv_lens is given: must be NULL without x_kv where %s is given", cache ? "k_cache" : "cu_seqlens_q");
    }
    return CheckLengths({"kv_lens", "cu_seqlens_kv", "q_len", "total_kv", p.kv_lens, nullptr, p.batch, p.q_len, 0});
  }
  return CheckLengths(KvSide(p));
}

// All tensors and arrays but those of attention; zeroes the strides that no index uses.
fovea_status CheckMhaTensors(fovea_mha_params* p, fovea_rope_params* rope, fovea_rope_params* kv_rope, Views* views) {
  const bool packed_weight = IsGiven(p->w_qkv), cross = IsGiven(p->x_kv), paged = p->block_table != nullptr;
  const bool cache = IsGiven(p->k_cache) || IsGiven(p->v_cache);
  const Side q = QuerySide(*p), kv = KvSide(*p);
  const int64_t q_heads = p->num_q_heads, kv_heads = p->num_kv_heads;
  const int64_t q_cols = q_heads * p->head_dim, k_cols = kv_heads * p->head_dim, v_cols = kv_heads * p->v_head_dim;
  const int64_t all_cols = q_cols + k_cols + v_cols, o_cols = q_heads * p->v_head_dim;
  const int64_t entries = paged ? p->num_pages : p->batch, rows = paged ? p->page_size : p->capacity;
  const bool k_quantized = p->k_cache.dtype == FOVEA_I8, v_quantized = p->v_cache.dtype == FOVEA_I8;
  const char* const packed_only = packed_weight ? nullptr : "without w_qkv";
  const char* const unpacked_only = packed_weight ? "where w_qkv is given" : nullptr;
  constexpr const char* kNoScales = "where its cache is not I8";
  const char* const k_quantized_only = k_quantized ? nullptr : kNoScales;
  const char* const v_quantized_only = v_quantized ? nullptr : kNoScales;
  const struct {
    Name name;
    bool required;
    const char* refused;  // why it must be absent, or NULL
    fovea_tensor* tensor;
    int64_t extent[kDims];
    Takes takes = Takes::kFloats;
  } tensors[] = {
      {{"y"}, true, nullptr, &p->y, {q.Entries(), 1, q.Rows(), p->d_out}},
      {{"k_cache"}, cache, nullptr, &p->k_cache, {entries, kv_heads, rows, p->head_dim}, Takes::kFloatsOrI8},
      {{"v_cache"}, cache, nullptr, &p->v_cache, {entries, kv_heads, rows, p->v_head_dim}, Takes::kFloatsOrI8},
      {{"k_scale"}, k_quantized, k_quantized_only, &p->k_scale, {entries, kv_heads, rows, 1}, Takes::kF32},
      {{"v_scale"}, v_quantized, v_quantized_only, &p->v_scale, {entries, kv_heads, rows, 1}, Takes::kF32},
      {{"x"}, true, nullptr, &p->x, {q.Entries(), 1, q.Rows(), p->d_model}},
      {{"x_kv"}, false, nullptr, &p->x_kv, {kv.Entries(), 1, kv.Rows(), p->d_kv}},
      {{"wq"}, !packed_weight, unpacked_only, &p->wq, {1, 1, q_cols, p->d_model}},
      {{"wk"}, !packed_weight, unpacked_only, &p->wk, {1, 1, k_cols, p->d_kv}},
      {{"wv"}, !packed_weight, unpacked_only, &p->wv, {1, 1, v_cols, p->d_kv}},
      {{"w_qkv"}, false, nullptr, &p->w_qkv, {1, 1, all_cols, p->d_model}},
      {{"wo"}, true, nullptr, &p->wo, {1, 1, p->d_out, o_cols}},
      {{"bq"}, false, unpacked_only, &p->bq, {1, 1, 1, q_cols}},
      {{"bk"}, false, unpacked_only, &p->bk, {1, 1, 1, k_cols}},
      {{"bv"}, false, unpacked_only, &p->bv, {1, 1, 1, v_cols}},
      {{"b_qkv"}, false, packed_only, &p->b_qkv, {1, 1, 1, all_cols}},
      {{"bo"}, false, nullptr, &p->bo, {1, 1, 1, p->d_out}},
      {{"q_norm"}, false, nullptr, &p->q_norm, {1, 1, 1, p->head_dim}},
      {{"k_norm"}, false, nullptr, &p->k_norm, {1, 1, 1, p->head_dim}},
      {{"k_channel_scale"}, false, k_quantized_only, &p->k_channel_scale, {p->batch, kv_heads, 1, p->head_dim}, Takes::kF32},
  };
  for (const auto& t : tensors) {
    if (t.refused != nullptr && IsGiven(*t.tensor)) {
      return Fail(kInvalid, "%s is given: must be absent %s", t.name.base, t.refused);
    }
    FOVEA_TRY(views->AddTensor(t.name, t.required, t.extent, t.tensor, t.takes));
  }
  if (cross && packed_weight && p->d_kv != p->d_model) {
    return Fail(kInvalid, "d_kv = %" PRId64 ": must be d_model = %" PRId64 " where w_qkv is given", p->d_kv, p->d_model);
  }
  if (p->rope != nullptr) {
    FOVEA_TRY(CheckRotation(kPartRopeNames, rope, views));
    FOVEA_TRY(CheckRotation(p->kv_rope != nullptr ? kKvRopeNames : kPartRopeNames, kv_rope, views));
  }
  FOVEA_TRY(views->AddLengths(q));
  FOVEA_TRY(views->AddLengths(kv));
  FOVEA_TRY(views->AddArray({"kv_starts"}, p->kv_starts, p->batch));
  FOVEA_TRY(views->AddArray({"block_table"}, p->block_table, p->batch, p->block_table_stride, p->block_table_stride));
  FOVEA_TRY(views->AddArray({"rope.position_offsets"}, rope->position_offsets, p->batch));
  FOVEA_TRY(views->AddRowArray({"rope.position_ids"}, rope->position_ids, rope->position_ids_stride, q));
  FOVEA_TRY(views->AddArray({"kv_rope.position_offsets"}, kv_rope->position_offsets, p->batch));
  const Side fresh = QuerySide(*kv_rope);
  FOVEA_TRY(views->AddRowArray({"kv_rope.position_ids"}, kv_rope->position_ids, kv_rope->position_ids_stride, fresh));
  return FOVEA_OK;
}

fovea_status CheckMhaCache(const fovea_mha_params& p, CheckData data) {
  if (IsGiven(p.k_cache) != IsGiven(p.v_cache)) {
    const bool k = IsGiven(p.k_cache);
    return Fail(kInvalid, "%s.dtype = NONE: must be given where %s is", k ? "v_cache" : "k_cache", k ? "k_cache" : "v_cache");
  }
  if (!IsGiven(p.k_cache)) {
    const char* set = p.kv_starts != nullptr      ? "kv_starts"
                      : p.capacity != 0           ? "capacity"
                      : p.block_table != nullptr  ? "block_table"
                      : p.block_table_stride != 0 ? "block_table_stride"
                      : p.num_pages != 0          ? "num_pages"
                      : p.page_size != 0          ? "page_size"
                                                  : nullptr;
    return set == nullptr ? FOVEA_OK : Fail(kInvalid, "%s is given: must be 0 without k_cache and v_cache", set);
  }
  const fovea_kv_append_params append = MhaAppend(p);
  FOVEA_TRY(CheckCacheKind(append));
  FOVEA_TRY(CheckQuantizedDim("head_dim", p.head_dim, "k_cache", p.k_cache));
  FOVEA_TRY(CheckQuantizedDim("v_head_dim", p.v_head_dim, "v_cache", p.v_cache));
  if (data == CheckData::kNo) return FOVEA_OK;
  FOVEA_TRY(CheckPlaces(append));
  // Sequences without new rows are attended to as well.
  const int64_t room = MhaKvLen(p);
  for (int64_t b = 0; p.kv_starts != nullptr && b < p.batch; ++b) {
    if (p.kv_starts[b] < 0 || p.kv_starts[b] > room - QLen(append, b)) {
      return Fail(kInvalid, "kv_starts[%" PRId64 "] = %" PRId32 ": must be at least 0, and with the new rows at most %" PRId64, b,
                  p.kv_starts[b], room);
    }
  }
  return FOVEA_OK;
}

// The options of attention, with the lengths and positions of the layer.
fovea_status MhaAttention(const fovea_mha_params& p, fovea_attention_params* a) {
  if (p.attention == nullptr) {
    fovea_attention_params_init(a, sizeof *a);
  } else {
    FOVEA_TRY(CopyStruct(p.attention, "attention", "fovea_attention_params_init", a));
  }
  const bool cross = IsGiven(p.x_kv), cache = IsGiven(p.k_cache);
  const char* set = (a->batch | a->num_q_heads | a->num_kv_heads | a->q_len | a->kv_len | a->head_dim | a->v_head_dim) != 0
                        ? "batch, heads, lengths or dims"
                    : !IsZero(a->q) || !IsZero(a->k) || !IsZero(a->v) || !IsZero(a->out) ? "q, k, v or out"
                    : !IsZero(a->k_scale) || !IsZero(a->v_scale) || !IsZero(a->k_channel_scale) ? "k_scale, v_scale or k_channel_scale"
                    : a->q_lens != nullptr || a->kv_lens != nullptr                      ? "q_lens or kv_lens"
                    : a->cu_seqlens_q != nullptr || a->cu_seqlens_kv != nullptr          ? "cu_seqlens_q or cu_seqlens_kv"
                    : (a->total_q | a->total_kv) != 0                                    ? "total_q or total_kv"
                    : a->block_table != nullptr                                          ? "block_table"
                    : (a->block_table_stride | a->num_pages | a->page_size) != 0         ? "block_table_stride, num_pages or page_size"
                    : !cross && a->q_align != 0                                          ? "q_align"
                    : !cross && (a->q_offset != 0 || a->q_offsets != nullptr)            ? "q_offset or q_offsets"
                                                                                         : nullptr;
  if (set != nullptr) return Fail(kInvalid, "attention: its %s must be 0, the layer's own", set);
  a->batch = p.batch;
  a->num_q_heads = p.num_q_heads;
  a->num_kv_heads = p.num_kv_heads;
  a->head_dim = p.head_dim;
  a->v_head_dim = p.v_head_dim;
  a->q_len = p.q_len;
  a->q_lens = p.q_lens;
  a->cu_seqlens_q = p.cu_seqlens_q;
  a->total_q = p.total_q;
  a->kv_len = MhaKvLen(p);
  if (cache) {
    a->block_table = p.block_table;
    a->block_table_stride = p.block_table_stride;
    a->num_pages = p.num_pages;
    a->page_size = p.page_size;
    a->k_scale = p.k_scale;
    a->v_scale = p.v_scale;
    a->k_channel_scale = p.k_channel_scale;
  } else if (cross) {
    a->kv_lens = p.kv_lens;
    a->cu_seqlens_kv = p.cu_seqlens_kv;
    a->total_kv = p.total_kv;
  } else {
    a->kv_lens = p.kv_lens != nullptr ? p.kv_lens : p.q_lens;
    a->cu_seqlens_kv = p.cu_seqlens_q;
    a->total_kv = p.total_q;
  }
  if (!cross && a->q_positions == nullptr) a->q_offsets = p.kv_starts;
  return FOVEA_OK;
}

}  // namespace

int64_t MhaKvLen(const fovea_mha_params& p) {
  if (!IsGiven(p.k_cache)) return IsGiven(p.x_kv) ? p.kv_len : p.q_len;
  return p.block_table != nullptr ? std::min(p.block_table_stride * p.page_size, kMaxLength) : p.capacity;
}

fovea_kv_append_params MhaAppend(const fovea_mha_params& p) {
  fovea_kv_append_params a;
  fovea_kv_append_params_init(&a, sizeof a);
  const bool cross = IsGiven(p.x_kv);
  a.batch = p.batch;
  a.num_kv_heads = p.num_kv_heads;
  a.q_len = cross ? p.kv_len : p.q_len;
  a.head_dim = p.head_dim;
  a.v_head_dim = p.v_head_dim;
  a.q_lens = cross ? p.kv_lens : p.q_lens;
  a.cu_seqlens_q = cross ? p.cu_seqlens_kv : p.cu_seqlens_q;
  a.total_q = cross ? p.total_kv : p.total_q;
  a.k_cache = p.k_cache;
  a.v_cache = p.v_cache;
  a.kv_starts = p.kv_starts;
  a.capacity = p.capacity;
  a.block_table = p.block_table;
  a.block_table_stride = p.block_table_stride;
  a.num_pages = p.num_pages;
  a.page_size = p.page_size;
  a.k_scale = p.k_scale;
  a.v_scale = p.v_scale;
  a.k_channel_scale = p.k_channel_scale;
  return a;
}

bool HasPositions(const fovea_rope_params& rope) {
  return rope.position_ids != nullptr || rope.position_offsets != nullptr || rope.position_offset != 0;
}

fovea_status CheckMha(const fovea_mha_params* user, CheckData data, fovea_mha_params* p, fovea_rope_params* rope, fovea_rope_params* kv_rope,
                      fovea_attention_params* attention, ViewList* list) {
  FOVEA_TRY(CopyStruct(user, "params", "fovea_mha_params_init", p));
  FOVEA_TRY(CheckMhaExtents(p));
  FOVEA_TRY(CheckMhaLengths(*p));
  FOVEA_TRY(CheckMhaCache(*p, data));
  const bool cross = IsGiven(p->x_kv);
  const fovea_kv_append_params append = MhaAppend(*p);  // its lengths are those of new keys without a cache, too
  const Side q = QuerySide(*p), fresh = QuerySide(append);
  *rope = *kv_rope = {};
  TakeLengths(q, p->num_q_heads, p->head_dim, rope);
  TakeLengths(fresh, p->num_kv_heads, p->head_dim, kv_rope);
  if (p->kv_rope != nullptr && (p->rope == nullptr || !cross)) {
    return Fail(kInvalid, "kv_rope is given: must be NULL without %s", cross ? "rope" : "x_kv");
  }
  if (p->rope != nullptr) {
    FOVEA_TRY(CopyRotation("rope", p->rope, q, p->num_q_heads, p->head_dim, rope));
    const bool own_kv = p->kv_rope != nullptr;
    const fovea_rope_params* user_kv = own_kv ? p->kv_rope : p->rope;
    FOVEA_TRY(CopyRotation(own_kv ? "kv_rope" : "rope", user_kv, fresh, p->num_kv_heads, p->head_dim, kv_rope));
    if (cross && !own_kv) {  // rope's positions are those of q
      kv_rope->position_offset = kv_rope->position_ids_stride = 0;
      kv_rope->position_offsets = kv_rope->position_ids = nullptr;
    }
    if (!cross && !HasPositions(*rope)) rope->position_offsets = p->kv_starts;
    if (!HasPositions(*kv_rope)) kv_rope->position_offsets = p->kv_starts;
    // Only the rows that q has are rotated.
    for (int64_t b = 0; !cross && p->kv_lens != nullptr && b < p->batch; ++b) {
      if (p->kv_lens[b] > QLen(*p, b)) {
        return Fail(kInvalid, "kv_lens[%" PRId64 "] = %" PRId32 ": must be at most the sequence's %" PRId64 " rows where rope is given", b,
                    p->kv_lens[b], QLen(*p, b));
      }
    }
  }
  Views views(list, 5, data);
  FOVEA_TRY(CheckMhaTensors(p, rope, kv_rope, &views));
  if (data == CheckData::kYes) {
    FOVEA_TRY(views.CheckOutputs());
    if (IsGiven(p->k_channel_scale)) FOVEA_TRY(CheckChannelScales(MhaAppend(*p)));
  }
  return MhaAttention(*p, attention);
}

fovea_status CheckMhaAttention(const ViewList& views, fovea_attention_params* a) { return CheckFields(CheckData::kYes, &views, a); }

fovea_status CheckMhaPositions(const fovea_mha_params& p, const fovea_rope_params& rope, const fovea_rope_params& kv_rope) {
  RopeNames q_names = kPartRopeNames, kv_names = p.kv_rope != nullptr ? kKvRopeNames : kPartRopeNames;
  if (IsGiven(p.x_kv)) {  // what they stand at by default is no field of theirs
    if (!HasPositions(*p.rope)) q_names.position_offsets = "rope: the position of row 0 of x";
    if (p.kv_rope == nullptr || !HasPositions(*p.kv_rope)) {
      kv_names.position_offset = kv_names.position_offsets = "rope: the position of row 0 of x_kv";
    }
  }
  FOVEA_TRY(CheckRowPositions(q_names, nullptr, 0, rope));
  return IsGiven(p.x_kv) ? CheckRowPositions(kv_names, nullptr, 0, kv_rope) : FOVEA_OK;
}

}  // namespace fovea
