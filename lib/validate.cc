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
// against its extents), then the fields of params group by group, and CheckParams, which calls them in order.

namespace fovea {
namespace {

constexpr fovea_status kInvalid = FOVEA_ERR_INVALID_ARGUMENT;
constexpr fovea_status kUnsupported = FOVEA_ERR_UNSUPPORTED;

// No dimension of a tensor spans more elements than this, and no product of extents exceeds it: beyond any address
// space, and small enough that sums over dimensions, bytes and pairs of tensors below and in plan.cc cannot overflow
// int64.
constexpr int64_t kMaxElements = int64_t{1} << 56;

constexpr int kDims = 4;  // batch, head, row, column
constexpr const char* kStrideNames[kDims] = {"stride_batch", "stride_head", "stride_row", "stride_col"};

// "q", or "outs[2]" where index >= 0; the text is only made for a message.
struct Name {
  const char* base;
  int index = -1;
};
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

// The memory behind a tensor or array. Strides are in elements, and 0 where the extent is at most 1.
struct View {
  Name name;
  uintptr_t begin, end;  // its bytes lie in [begin, end); both 0 where an extent is 0
  int64_t element_bytes;
  int64_t extent[kDims], stride[kDims];
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
enum class Takes { kF32, kU8, kFloats };

bool IsTaken(Takes takes, fovea_dtype dtype) {
  if (takes == Takes::kU8) return dtype == FOVEA_U8;
  return dtype == FOVEA_F32 || (takes == Takes::kFloats && (dtype == FOVEA_BF16 || dtype == FOVEA_F16));
}

const char* TakesText(Takes takes) { return takes == Takes::kU8 ? "U8" : takes == Takes::kF32 ? "F32" : "F32, BF16 or F16"; }

struct Expected {
  Name name;
  Takes takes;
  bool required;
  bool strided_columns;  // stride_col is read
};

bool IsPresent(const fovea_tensor& t) { return t.dtype != FOVEA_DTYPE_NONE; }

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
  if (!want.strided_columns && t->stride_col != 0 && t->stride_col != 1) {
    return Fail(kInvalid, "%s.stride_col = %" PRId64 ": must be 0 or 1, columns are contiguous", Text(name).text,
                t->stride_col);
  }
  const int64_t stride[kDims] = {t->stride_batch, t->stride_head, t->stride_row,
                                 want.strided_columns ? t->stride_col : 1};
  const int64_t element_bytes = DtypeBytes(t->dtype);
  const void* data = check == CheckData::kYes ? t->data : nullptr;
  if (fovea_status s = MakeView(name, data, element_bytes, extent, stride, view); s != FOVEA_OK) return s;
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

// ---- Fields of params -----------------------------------------------------------------------------------------------

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

fovea_status CheckExtents(fovea_attention_params* p) {
  if (fovea_status s = CheckPositive("batch", p->batch); s != FOVEA_OK) return s;
  if (fovea_status s = CheckPositive("num_q_heads", p->num_q_heads); s != FOVEA_OK) return s;
  if (fovea_status s = CheckPositive("num_kv_heads", p->num_kv_heads); s != FOVEA_OK) return s;
  if (p->num_q_heads % p->num_kv_heads != 0) {
    return Fail(kInvalid, "num_kv_heads = %" PRId64 ": must divide num_q_heads = %" PRId64, p->num_kv_heads,
                p->num_q_heads);
  }
  if (fovea_status s = CheckLength("q_len", p->q_len); s != FOVEA_OK) return s;
  if (fovea_status s = CheckLength("kv_len", p->kv_len); s != FOVEA_OK) return s;
  if (fovea_status s = CheckPositive("head_dim", p->head_dim); s != FOVEA_OK) return s;
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
  if (fovea_status s = CheckCount("batch * num_q_heads * q_len * head_dim", p->batch, p->num_q_heads, q_rows, dim);
      s != FOVEA_OK) {
    return s;
  }
  if (fovea_status s = CheckCount("batch * num_kv_heads * kv_len * head_dim", p->batch, p->num_kv_heads, kv_rows, dim);
      s != FOVEA_OK) {
    return s;
  }
  if (fovea_status s = CheckCount("total_q * num_q_heads * head_dim", p->total_q, p->num_q_heads, dim, 1);
      s != FOVEA_OK) {
    return s;
  }
  if (fovea_status s = CheckCount("total_kv * num_kv_heads * head_dim", p->total_kv, p->num_kv_heads, dim, 1); s != FOVEA_OK) {
    return s;
  }
  // The kernels count these in int32.
  const struct {
    const char* name;
    int64_t value;
  } counted[] = {{"batch", p->batch}, {"num_kv_heads", p->num_kv_heads}, {"head_dim", p->head_dim}, {"v_head_dim", p->v_head_dim}};
  for (const auto& c : counted) {
    if (c.value > kMaxLength) return Fail(kUnsupported, "%s = %" PRId64 ": must be below 2^30", c.name, c.value);
  }
  return FOVEA_OK;
}

bool IsZero(const fovea_tensor& t) {
  return t.data == nullptr && (t.dtype | t.reserved) == 0 &&
         (t.stride_batch | t.stride_head | t.stride_row | t.stride_col | t.reserved1 | t.reserved2) == 0;
}

fovea_status CheckReserved(const fovea_attention_params& p) {
  const char* set = p.block_table != nullptr     ? "block_table"
                    : p.block_table_stride != 0  ? "block_table_stride"
                    : p.num_pages != 0           ? "num_pages"
                    : p.page_size != 0           ? "page_size"
                    : p.q_positions != nullptr   ? "q_positions"
                    : p.kv_positions != nullptr  ? "kv_positions"
                    : p.q_positions_stride != 0  ? "q_positions_stride"
                    : p.kv_positions_stride != 0 ? "kv_positions_stride"
                    : !IsZero(p.k_scale)         ? "k_scale"
                    : !IsZero(p.v_scale)         ? "v_scale"
                    : !IsZero(p.k_channel_scale) ? "k_channel_scale"
                    : !(p.dropout_p == 0)        ? "dropout_p"
                    : p.reserved != 0            ? "reserved"
                    : p.dropout_seed != 0        ? "dropout_seed"
                    : p.dropout_offset != 0      ? "dropout_offset"
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
  if (fovea_status s = CheckEnum("causal", p->causal, 1); s != FOVEA_OK) return s;
  if (fovea_status s = CheckEnum("q_align", p->q_align, FOVEA_Q_ALIGN_BOTTOM_RIGHT); s != FOVEA_OK) return s;
  if (fovea_status s = CheckEnum("mask_align", p->mask_align, FOVEA_MASK_ALIGN_RIGHT); s != FOVEA_OK) return s;
  if (fovea_status s = CheckEnum("scores_stage", p->scores_stage, FOVEA_SCORES_PROBABILITIES); s != FOVEA_OK) return s;
  if (IsPresent(p->scores) != (p->scores_stage != FOVEA_SCORES_NONE)) {
    return Fail(kInvalid, "scores_stage = %s: must %s", fovea_scores_stage_str(p->scores_stage),
                IsPresent(p->scores) ? "say what scores receives" : "be NONE where scores is not given");
  }
  if (p->q_offset < -kMaxLength || p->q_offset > kMaxLength) {
    return Fail(kInvalid, "q_offset = %" PRId64 ": must be within +-%" PRId64, p->q_offset, kMaxLength);
  }
  if (p->q_offset != 0 && p->q_offsets != nullptr) {
    return Fail(kInvalid, "q_offset = %" PRId64 ": must be 0 where q_offsets is given", p->q_offset);
  }
  if (fovea_status s = CheckWindow("window_left", &p->window_left); s != FOVEA_OK) return s;
  if (fovea_status s = CheckWindow("window_right", &p->window_right); s != FOVEA_OK) return s;
  if (fovea_status s = CheckLength("mask_kv_len", p->mask_kv_len); s != FOVEA_OK) return s;
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

struct Side {
  const char *lens_name, *cu_name, *len_name, *total_name;
  const int32_t *lens, *cu;
  int64_t len, total;
};

// lens or cu_seqlens of queries or of keys.
fovea_status CheckLengths(const Side& side, int64_t batch) {
  if (side.lens != nullptr && side.cu != nullptr) {
    return Fail(kInvalid, "%s is given: must be NULL where %s is given", side.lens_name, side.cu_name);
  }
  if (side.lens != nullptr) {
    for (int64_t b = 0; b < batch; ++b) {
      if (side.lens[b] < 0 || side.lens[b] > side.len) {
        return Fail(kInvalid, "%s[%" PRId64 "] = %" PRId32 ": must be in [0, %s = %" PRId64 "]", side.lens_name, b,
                    side.lens[b], side.len_name, side.len);
      }
    }
  }
  if (side.cu != nullptr) {
    if (side.cu[0] != 0) return Fail(kInvalid, "%s[0] = %" PRId32 ": must be 0", side.cu_name, side.cu[0]);
    for (int64_t b = 0; b < batch; ++b) {
      // Non-negative by induction, so the difference cannot overflow.
      if (side.cu[b + 1] < side.cu[b] || side.cu[b + 1] - side.cu[b] > kMaxLength) {
        return Fail(kInvalid, "%s[%" PRId64 "] = %" PRId32 ": must be %s its predecessor, %" PRId32, side.cu_name,
                    b + 1, side.cu[b + 1], side.cu[b + 1] < side.cu[b] ? "at least" : "less than 2^30 above",
                    side.cu[b]);
      }
    }
    if (side.cu[batch] > side.total) {
      return Fail(kInvalid, "%s[%" PRId64 "] = %" PRId32 ": must be at most %s = %" PRId64, side.cu_name, batch,
                  side.cu[batch], side.total_name, side.total);
    }
  }
  return FOVEA_OK;
}

// What mask and bias must hold over all sequences.
struct MaskExtent {
  int64_t rows, cols;
};

// Every sequence's lengths, positions and mask rows. Where no array tells sequences apart, one stands for all.
fovea_status CheckSequences(const fovea_attention_params& p, MaskExtent* mask) {
  const Side q = {"q_lens", "cu_seqlens_q", "q_len", "total_q", p.q_lens, p.cu_seqlens_q, p.q_len, p.total_q};
  const Side kv = {"kv_lens", "cu_seqlens_kv", "kv_len", "total_kv", p.kv_lens, p.cu_seqlens_kv, p.kv_len, p.total_kv};
  if (fovea_status s = CheckLengths(q, p.batch); s != FOVEA_OK) return s;
  if (fovea_status s = CheckLengths(kv, p.batch); s != FOVEA_OK) return s;
  const bool differ = q.lens != nullptr || q.cu != nullptr || kv.lens != nullptr || kv.cu != nullptr ||
                      p.q_offsets != nullptr || p.mask_offsets != nullptr;
  int64_t mask_rows = 0, longest_kv = 0;
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
    if (kv.cu != nullptr && IsPresent(p.scores) && kv_len > p.kv_len) {
      return Fail(kInvalid,
                  "kv_len = %" PRId64 ": must be at least %" PRId64 ", the keys of sequence %" PRId64
                  ", where scores is given",
                  p.kv_len, kv_len, b);
    }
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
  mask->rows = mask_rows;
  mask->cols = p.mask_kv_len != 0 ? p.mask_kv_len : kv.cu != nullptr ? longest_kv : p.kv_len;
  return FOVEA_OK;
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

fovea_status CheckTensors(CheckData check, const MaskExtent& mask, fovea_attention_params* p) {
  const int64_t q_batch = p->cu_seqlens_q != nullptr ? 1 : p->batch;
  const int64_t q_rows = p->cu_seqlens_q != nullptr ? p->total_q : p->q_len;
  const int64_t kv_batch = p->cu_seqlens_kv != nullptr ? 1 : p->batch;
  const int64_t kv_rows = p->cu_seqlens_kv != nullptr ? p->total_kv : p->kv_len;
  const int64_t q_extent[] = {q_batch, p->num_q_heads, q_rows, p->head_dim};
  const int64_t k_extent[] = {kv_batch, p->num_kv_heads, kv_rows, p->head_dim};
  const int64_t v_extent[] = {kv_batch, p->num_kv_heads, kv_rows, p->v_head_dim};
  const int64_t out_extent[] = {q_batch, p->num_q_heads, q_rows, p->v_head_dim};
  const int64_t lse_extent[] = {q_batch, p->num_q_heads, q_rows, 1};
  const int64_t scores_extent[] = {q_batch, p->num_q_heads, q_rows, p->kv_len};
  const int64_t mask_extent[] = {p->batch, p->num_q_heads, mask.rows, mask.cols};
  const struct {
    Expected want;
    const int64_t (&extent)[kDims];
    fovea_tensor* tensor;
  } tensors[] = {
      {{{"out"}, Takes::kFloats, true, false}, out_extent, &p->out},
      {{{"lse"}, Takes::kF32, false, false}, lse_extent, &p->lse},
      {{{"scores"}, Takes::kF32, false, true}, scores_extent, &p->scores},
      {{{"q"}, Takes::kFloats, true, false}, q_extent, &p->q},
      {{{"k"}, Takes::kFloats, true, false}, k_extent, &p->k},
      {{{"v"}, Takes::kFloats, true, false}, v_extent, &p->v},
      {{{"mask"}, Takes::kU8, false, true}, mask_extent, &p->mask},
      {{{"bias"}, Takes::kFloats, false, true}, mask_extent, &p->bias},
  };
  constexpr int kOutputs = 3;
  View views[16];
  int n = 0;
  for (const auto& t : tensors) {
    if (fovea_status s = CheckTensor(t.want, t.extent, check, t.tensor, &views[n++]); s != FOVEA_OK) return s;
  }
  // q_lens and cu_seqlens_q exclude each other, as do kv_lens and cu_seqlens_kv.
  const struct {
    const char* name;
    const void* data;
    int64_t rows, stride, cols;
  } arrays[] = {
      {"alibi_slopes", p->alibi_slopes, p->batch, p->alibi_stride_batch, p->num_q_heads},
      {"sinks", p->sinks, 1, 0, p->num_q_heads},
      {"q_offsets", p->q_offsets, 1, 0, p->batch},
      {"mask_offsets", p->mask_offsets, 1, 0, p->batch},
      {p->q_lens != nullptr ? "q_lens" : "cu_seqlens_q", p->q_lens != nullptr ? p->q_lens : p->cu_seqlens_q, 1, 0,
       p->q_lens != nullptr ? p->batch : p->batch + 1},
      {p->kv_lens != nullptr ? "kv_lens" : "cu_seqlens_kv", p->kv_lens != nullptr ? p->kv_lens : p->cu_seqlens_kv, 1, 0,
       p->kv_lens != nullptr ? p->batch : p->batch + 1},
  };
  for (const auto& a : arrays) {
    if (a.data == nullptr) continue;
    const int64_t extent[] = {a.rows, 1, 1, a.cols}, stride[] = {a.stride, 0, 0, 1};
    if (fovea_status s = MakeView({a.name}, a.data, 4, extent, stride, &views[n++]); s != FOVEA_OK) return s;
  }
  if (check == CheckData::kNo) return FOVEA_OK;
  for (int i = 0; i < kOutputs; ++i) {
    if (fovea_status s = CheckDistinct(views[i]); s != FOVEA_OK) return s;
    for (int j = i + 1; j < n; ++j) {
      if (fovea_status s = CheckDisjoint(views[i], views[j]); s != FOVEA_OK) return s;
    }
  }
  return p->alibi_slopes != nullptr ? CheckSlopes(*p) : FOVEA_OK;
}

bool SameElements(const View& a, const View& b) {
  return a.begin == b.begin && a.end == b.end && a.element_bytes == b.element_bytes && std::equal(a.stride, a.stride + kDims, b.stride);
}

}  // namespace

fovea_status CheckParams(const fovea_attention_params* user, CheckData data, fovea_attention_params* p) {
  MaskExtent mask = {0, 0};
  if (fovea_status s = CopyStruct(user, "params", "fovea_attention_params_init", p); s != FOVEA_OK) return s;
  if (fovea_status s = CheckReserved(*p); s != FOVEA_OK) return s;
  if (fovea_status s = CheckExtents(p); s != FOVEA_OK) return s;
  if (fovea_status s = CheckOptions(p); s != FOVEA_OK) return s;
  if (fovea_status s = CheckSequences(*p, &mask); s != FOVEA_OK) return s;
  return CheckTensors(data, mask, p);
}

fovea_status CheckExec(const fovea_exec* user, fovea_exec* e) {
  if (fovea_status s = CopyStruct(user, "exec", "fovea_exec_init", e); s != FOVEA_OK) return s;
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
  if (fovea_status s = CheckPositive("n", n); s != FOVEA_OK) return s;
  if (outs == nullptr || lses == nullptr || out == nullptr) {
    return Fail(kInvalid, "%s = NULL: must be given", outs == nullptr ? "outs" : lses == nullptr ? "lses" : "out");
  }
  if (fovea_status s = CheckPositive("batch", batch); s != FOVEA_OK) return s;
  if (fovea_status s = CheckPositive("num_heads", num_heads); s != FOVEA_OK) return s;
  if (fovea_status s = CheckLength("rows", rows); s != FOVEA_OK) return s;
  if (fovea_status s = CheckPositive("v_head_dim", v_head_dim); s != FOVEA_OK) return s;
  if (fovea_status s =
          CheckCount("batch * num_heads * rows * v_head_dim", batch, num_heads, std::max<int64_t>(rows, 1), v_head_dim);
      s != FOVEA_OK) {
    return s;
  }
  const int64_t out_extent[] = {batch, num_heads, rows, v_head_dim}, lse_extent[] = {batch, num_heads, rows, 1};
  const auto check = [](Name name, Takes takes, const int64_t(&extent)[kDims], const fovea_tensor& tensor, View* view) {
    fovea_tensor t = tensor;
    return CheckTensor({name, takes, true, false}, extent, CheckData::kYes, &t, view);
  };
  View out_view, lse_view = {};  // an lse that is not given overlaps nothing
  if (fovea_status s = check({"out"}, Takes::kFloats, out_extent, *out, &out_view); s != FOVEA_OK) return s;
  if (fovea_status s = CheckDistinct(out_view); s != FOVEA_OK) return s;
  if (lse != nullptr) {
    if (fovea_status s = check({"lse"}, Takes::kF32, lse_extent, *lse, &lse_view); s != FOVEA_OK) return s;
    if (fovea_status s = CheckDistinct(lse_view); s != FOVEA_OK) return s;
    if (fovea_status s = CheckDisjoint(out_view, lse_view); s != FOVEA_OK) return s;
  }
  for (int32_t i = 0; i < n; ++i) {
    View part_out, part_lse;
    if (fovea_status s = check({"outs", i}, Takes::kFloats, out_extent, outs[i], &part_out); s != FOVEA_OK) return s;
    if (fovea_status s = check({"lses", i}, Takes::kF32, lse_extent, lses[i], &part_lse); s != FOVEA_OK) return s;
    // The first part may be joined in place.
    if (i != 0 || !SameElements(out_view, part_out)) {
      if (fovea_status s = CheckDisjoint(out_view, part_out); s != FOVEA_OK) return s;
    }
    if (i != 0 || !SameElements(lse_view, part_lse)) {
      if (fovea_status s = CheckDisjoint(lse_view, part_lse); s != FOVEA_OK) return s;
    }
    if (fovea_status s = CheckDisjoint(out_view, part_lse); s != FOVEA_OK) return s;
    if (fovea_status s = CheckDisjoint(lse_view, part_out); s != FOVEA_OK) return s;
  }
  return FOVEA_OK;
}

fovea_status CheckLinear(const fovea_linear_params* user, CheckData data, fovea_linear_params* p) {
  if (fovea_status s = CopyStruct(user, "params", "fovea_linear_params_init", p); s != FOVEA_OK) return s;
  if (fovea_status s = CheckLength("tokens", p->tokens); s != FOVEA_OK) return s;
  const struct {
    const char* name;
    int64_t value;
  } features[] = {{"in_features", p->in_features}, {"out_features", p->out_features}};
  for (const auto& f : features) {
    if (fovea_status s = CheckPositive(f.name, f.value); s != FOVEA_OK) return s;
    if (f.value > kMaxLength) return Fail(kUnsupported, "%s = %" PRId64 ": must be below 2^30", f.name, f.value);
  }
  const int64_t rows = std::max<int64_t>(p->tokens, 1);
  if (fovea_status s = CheckCount("tokens * in_features", rows, p->in_features, 1, 1); s != FOVEA_OK) return s;
  if (fovea_status s = CheckCount("tokens * out_features", rows, p->out_features, 1, 1); s != FOVEA_OK) return s;
  if (fovea_status s = CheckCount("in_features * out_features", p->in_features, p->out_features, 1, 1); s != FOVEA_OK) return s;
  const int64_t x_extent[] = {1, 1, p->tokens, p->in_features}, w_extent[] = {1, 1, p->out_features, p->in_features};
  const int64_t bias_extent[] = {1, 1, 1, p->out_features}, y_extent[] = {1, 1, p->tokens, p->out_features};
  View y, x, w, bias;
  if (fovea_status s = CheckTensor({{"y"}, Takes::kFloats, true, false}, y_extent, data, &p->y, &y); s != FOVEA_OK) return s;
  if (fovea_status s = CheckTensor({{"x"}, Takes::kFloats, true, false}, x_extent, data, &p->x, &x); s != FOVEA_OK) return s;
  if (fovea_status s = CheckTensor({{"w"}, Takes::kFloats, true, false}, w_extent, data, &p->w, &w); s != FOVEA_OK) return s;
  if (fovea_status s = CheckTensor({{"bias"}, Takes::kFloats, false, false}, bias_extent, data, &p->bias, &bias); s != FOVEA_OK) return s;
  if (data == CheckData::kNo) return FOVEA_OK;
  if (fovea_status s = CheckDistinct(y); s != FOVEA_OK) return s;
  if (fovea_status s = CheckDisjoint(y, x); s != FOVEA_OK) return s;
  if (fovea_status s = CheckDisjoint(y, w); s != FOVEA_OK) return s;
  return CheckDisjoint(y, bias);
}

}  // namespace fovea
