#include "lib/validate_parts.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <limits>

#include "lib/dtype.h"

// Reading order: numbers and lengths, the struct itself, MakeView (the memory behind a tensor or array), CheckTensor
// (one tensor against its extents), and the views of a call held against one another.

namespace fovea {
namespace {

constexpr const char* kStrideNames[kDims] = {"stride_batch", "stride_head", "stride_row", "stride_col"};

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

}  // namespace

NameText Text(Name name) {
  NameText t;
  if (name.index < 0) {
    std::snprintf(t.text, sizeof t.text, "%s", name.base);
  } else {
    std::snprintf(t.text, sizeof t.text, "%s[%d]", name.base, name.index);
  }
  return t;
}

// ---- Fields ---------------------------------------------------------------------------------------------------------

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

fovea_status CheckExtent(const char* name, int64_t value) {
  FOVEA_TRY(CheckPositive(name, value));
  if (value > kMaxLength) return Fail(kUnsupported, "%s = %" PRId64 ": must be below 2^30", name, value);
  return FOVEA_OK;
}

fovea_status CheckLengths(const Lengths& side) {
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

fovea_status CheckScaled(const char* name, const fovea_tensor& scale, const char* of_name, const fovea_tensor& of) {
  if (!IsGiven(scale) || of.dtype == FOVEA_I8) return FOVEA_OK;
  return Fail(kInvalid, "%s is given: must be absent where %s.dtype = %s, scales are those of I8", name, of_name,
              fovea_dtype_str(of.dtype));
}

// ---- The structs themselves -----------------------------------------------------------------------------------------

fovea_status CopyStruct(const void* user, size_t known, const char* name, const char* init, void* copy) {
  if (user == nullptr) return Fail(kInvalid, "%s = NULL: must be given", name);
  uint64_t size;
  std::memcpy(&size, user, sizeof size);
  // Far above any version's size: an uninitialized struct_size must not send the search for a zero tail astray.
  if (size < known || size > kMaxStructSize) {
    return Fail(kInvalid, "%s.struct_size = %" PRIu64 ": must be %zu, call %s first", name, size, known, init);
  }
  const char* bytes = static_cast<const char*>(user);
  for (uint64_t i = known; i < size; ++i) {
    if (bytes[i] != 0) {
      return Fail(kUnsupported,
                  "%s.struct_size = %" PRIu64 ": a field at byte %" PRIu64
                  " is set that this version, whose struct has %zu bytes, does not know",
                  name, size, i, known);
    }
  }
  std::memcpy(copy, user, known);
  const uint64_t struct_size = known;
  std::memcpy(copy, &struct_size, sizeof struct_size);
  return FOVEA_OK;
}

// ---- Tensors and arrays ---------------------------------------------------------------------------------------------

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
      *t = {};
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

fovea_status Views::CheckOutputs(bool in_place) const {
  for (int i = 0; i < outputs_; ++i) {
    FOVEA_TRY(CheckDistinct(views_[i]));
    for (int j = i + 1; j < n_; ++j) {
      if (!(in_place && i == 0 && j == 1)) FOVEA_TRY(CheckDisjoint(views_[i], views_[j]));
    }
  }
  return FOVEA_OK;
}

}  // namespace fovea
