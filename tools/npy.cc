#include "tools/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bytes of a .npy file are taken as they are: little-endian hosts only"
#endif

namespace fovea::tools {
namespace {

// NumPy writes headers of about 100 bytes; only a structured dtype, which is refused anyway, comes near this.
constexpr size_t kMaxHeader = 1 << 20;
constexpr std::string_view kMagic = "\x93NUMPY";

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// The header is a Python dict literal with three keys, and nothing but white space around it:
//   {'descr': '<f4', 'fortran_order': False, 'shape': (2, 12, 128, 32), }
class HeaderParser {
 public:
  HeaderParser(const std::string& path, std::string_view text) : path_(path), text_(text) {}

  Header Parse() {
    Header header;
    bool have_descr = false, have_order = false, have_shape = false;
    Expect('{');
    while (!Accept('}')) {
      const std::string key = String();
      bool* have = key == "descr"           ? &have_descr
                   : key == "fortran_order" ? &have_order
                   : key == "shape"         ? &have_shape
                                            : nullptr;
      if (!have) Refuse(path_, "damaged header: unknown key '{}'", key);
      if (*have) Refuse(path_, "damaged header: '{}' twice", key);
      *have = true;
      Expect(':');
      if (have == &have_descr) {
        if (Peek() == '[') Refuse(path_, "a structured dtype; float32, float16, uint8 or bool is wanted");
        header.descr = String();
      } else if (have == &have_order) {
        header.fortran_order = Bool();
      } else {
        header.shape = Shape();
      }
      if (!Accept(',') && Peek() != '}') Damaged("',' or '}'");
    }
    if (!have_descr || !have_order || !have_shape) {
      Refuse(path_, "damaged header: no '{}'", !have_descr ? "descr" : !have_order ? "fortran_order" : "shape");
    }
    if (Peek() != '\0' || pos_ != text_.size()) Damaged("the end");
    return header;
  }

 private:
  // The next character that is not white space; 0 at the end.
  char Peek() {
    while (pos_ < text_.size() && std::strchr(" \t\r\n\f", text_[pos_]) && text_[pos_] != '\0') ++pos_;
    return pos_ < text_.size() ? text_[pos_] : '\0';
  }
  bool Accept(char c) {
    if (Peek() != c || pos_ == text_.size()) return false;
    ++pos_;
    return true;
  }
  void Expect(char c) {
    if (!Accept(c)) Damaged(std::string("'") + c + "'");
  }
  [[noreturn]] void Damaged(const std::string& wanted) {
    Refuse(path_, "damaged header: {} expected at byte {} of it", wanted, pos_);
  }

  std::string String() {
    const char quote = Peek();
    if (quote != '\'' && quote != '"') Damaged("a string");
    const size_t end = text_.find_first_of(std::string{quote, '\\', '\n', '\0'}, pos_ + 1);
    if (end == std::string_view::npos || text_[end] != quote) Damaged("a plain string");
    const std::string value(text_.substr(pos_ + 1, end - pos_ - 1));
    // It goes into messages: no control characters of a damaged file on the user's terminal.
    if (!std::all_of(value.begin(), value.end(), [](char c) { return c >= ' ' && c <= '~'; })) Damaged("plain ASCII");
    pos_ = end + 1;
    return value;
  }

  bool Bool() {
    Peek();
    for (const std::string_view word : {"True", "False"}) {
      if (text_.substr(pos_, word.size()) == word) {
        pos_ += word.size();
        return word == "True";
      }
    }
    Damaged("True or False");
  }

  int64_t Int() {
    if (!std::isdigit(static_cast<unsigned char>(Peek()))) Damaged("a number");
    int64_t value = 0;
    for (; pos_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[pos_])); ++pos_) {
      if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, text_[pos_] - '0', &value)) {
        Refuse(path_, "a dimension of the shape is above 2^63 - 1");
      }
    }
    if (pos_ < text_.size() && text_[pos_] == 'L') ++pos_;  // Python 2 wrote long integers so
    return value;
  }

  // A tuple: (), (n,), (n, m), (n, m,); "(n)" is a number in Python, not a tuple.
  std::vector<int64_t> Shape() {
    std::vector<int64_t> shape;
    Expect('(');
    while (!Accept(')')) {
      shape.push_back(Int());
      if (!Accept(',') && (Peek() != ')' || shape.size() == 1)) Damaged("','");
    }
    return shape;
  }

  const std::string& path_;
  std::string_view text_;
  size_t pos_ = 0;
};

std::string TypeName(const std::string& descr) {
  static constexpr std::pair<char, const char*> kKinds[] = {
      {'f', "float"}, {'i', "int"}, {'u', "uint"}, {'c', "complex"}};
  for (const auto& [kind, name] : kKinds) {
    if (descr.size() == 3 && descr[1] == kind && std::isdigit(static_cast<unsigned char>(descr[2]))) {
      return fmt::format("{}{} (descr '{}')", name, 8 * (descr[2] - '0'), descr);
    }
  }
  if (descr.find('O') != std::string::npos) return fmt::format("Python objects (descr '{}')", descr);
  return fmt::format("descr '{}'", descr);
}

NpyType TypeOf(const std::string& path, const std::string& descr) {
  if (descr == "|u1" || descr == "<u1" || descr == ">u1") return NpyType::kU8;
  if (descr == "|b1" || descr == "<b1" || descr == ">b1") return NpyType::kBool;
  if (descr == "<f4") return NpyType::kF32;
  if (descr == "<f2") return NpyType::kF16;
  if (descr.size() > 1 && descr[0] == '>') {
    Refuse(path, "big-endian data, {}; little-endian is wanted: save array.astype(array.dtype.newbyteorder('<'))",
           TypeName(descr));
  }
  for (const char* kind : {"f4", "f2"}) {
    if (descr == kind || descr == std::string("=") + kind || descr == std::string("|") + kind) {
      Refuse(path, "the byte order of descr '{}' is not stated; '<{}' is wanted", descr, kind);
    }
  }
  Refuse(path, "dtype {}; float32, float16, uint8 or bool is wanted", TypeName(descr));
}

void ReadBytes(const std::string& path, std::FILE* file, void* to, size_t bytes, const char* what) {
  if (bytes > 0 && std::fread(to, 1, bytes, file) != bytes) {
    if (std::ferror(file)) Refuse(path, "{}", std::strerror(errno));
    Refuse(path, "truncated: the file ends within its {}", what);
  }
}

std::string HeaderBytes(const std::vector<int64_t>& shape) {
  std::string dict = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{}), }}",
                                 fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  // Magic, version, length (10 bytes) and the dict, padded so that the data begins at a multiple of 64 and a newline
  // ends the header.
  dict.append(63 - (10 + dict.size()) % 64, ' ');
  dict += '\n';
  std::string header(kMagic);
  header += {'\x01', '\x00', static_cast<char>(dict.size() & 0xff), static_cast<char>(dict.size() >> 8)};
  return header + dict;
}

bool WriteArray(const NpyOutput& output, std::FILE* file) {
  const std::string header = HeaderBytes(output.shape);
  size_t count = 1;
  for (const int64_t extent : output.shape) count *= static_cast<size_t>(extent);
  return std::fwrite(header.data(), 1, header.size(), file) == header.size() &&
         (count == 0 || std::fwrite(output.data, sizeof(float), count, file) == count);
}

std::vector<OutputFile> Files(const std::vector<NpyOutput>& outputs) {
  std::vector<OutputFile> files;
  for (const NpyOutput& output : outputs) {
    files.push_back({output.path, [&output](std::FILE* file) { return WriteArray(output, file); }});
  }
  return files;
}

}  // namespace

const char* TypeText(NpyType type) {
  return type == NpyType::kF32 ? "float32" : type == NpyType::kF16 ? "float16" : type == NpyType::kU8 ? "uint8" : "bool";
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

NpyArray ReadNpy(const std::string& path) {
  struct stat info;
  // Before fopen, which would wait for a writer on a named pipe.
  if (stat(path.c_str(), &info) != 0) Refuse(path, "{}", std::strerror(errno));
  if (!S_ISREG(info.st_mode)) Refuse(path, "not a regular file");
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file) Refuse(path, "{}", std::strerror(errno));

  unsigned char prefix[12];  // magic, major, minor, and 2 or 4 bytes of header length
  if (info.st_size == 0) Refuse(path, "an empty file");
  ReadBytes(path, file.get(), prefix, 6, "magic bytes");
  if (std::memcmp(prefix, kMagic.data(), kMagic.size()) != 0) {
    const bool zip = std::memcmp(prefix, "PK\x03\x04", 4) == 0;
    Refuse(path, "not a .npy file{}", zip ? ": an .npz archive; save each array with numpy.save" : "");
  }
  ReadBytes(path, file.get(), prefix + 6, 2, "format version");
  const int major = prefix[6], minor = prefix[7];
  if (major < 1 || major > 3 || minor != 0) Refuse(path, ".npy format {}.{}; 1.0, 2.0 and 3.0 are known", major, minor);
  const size_t length_bytes = major == 1 ? 2 : 4;
  ReadBytes(path, file.get(), prefix + 8, length_bytes, "header");
  size_t length = 0;
  for (size_t i = length_bytes; i-- > 0;) length = length << 8 | prefix[8 + i];
  if (length > kMaxHeader) Refuse(path, "damaged: a header of {} bytes", length);

  std::string text(length, '\0');
  ReadBytes(path, file.get(), text.data(), length, "header");
  const Header header = HeaderParser(path, text).Parse();
  NpyArray array;
  array.type = TypeOf(path, header.descr);
  array.shape = header.shape;
  // NumPy says False for arrays that are both; an array of one dimension is the same in either order.
  if (header.fortran_order && header.shape.size() > 1) {
    Refuse(path, "Fortran order; C order is wanted: save numpy.ascontiguousarray(array)");
  }

  // The product of the extents that are not 0 must fit as well: fovea multiplies them again, as strides.
  int64_t bytes = array.type == NpyType::kF32 ? 4 : array.type == NpyType::kF16 ? 2 : 1;
  bool empty = false;
  for (const int64_t extent : array.shape) {
    empty = empty || extent == 0;
    if (extent != 0 && __builtin_mul_overflow(bytes, extent, &bytes)) {
      Refuse(path, "shape {} is more bytes than 2^63 - 1", ShapeText(array.shape));
    }
  }
  if (empty) bytes = 0;
  const int64_t present = static_cast<int64_t>(info.st_size) - static_cast<int64_t>(8 + length_bytes + length);
  if (present != bytes) {
    Refuse(path, "{}: shape {} needs {} bytes of data, the file has {}", present < bytes ? "truncated" : "oversized",
           ShapeText(array.shape), bytes, std::max<int64_t>(present, 0));
  }
  void* to = nullptr;
  if (array.type == NpyType::kF32) {
    array.f32.resize(static_cast<size_t>(bytes) / 4);
    to = array.f32.data();
  } else if (array.type == NpyType::kF16) {
    array.f16.resize(static_cast<size_t>(bytes) / 2);
    to = array.f16.data();
  } else {
    array.u8.resize(static_cast<size_t>(bytes));
    to = array.u8.data();
  }
  ReadBytes(path, file.get(), to, static_cast<size_t>(bytes), "data");
  return array;
}

void CheckOutputs(const std::vector<NpyOutput>& outputs) { CheckOutputFiles(Files(outputs)); }

void WriteNpy(const std::vector<NpyOutput>& outputs) { WriteOutputFiles(Files(outputs)); }

}  // namespace fovea::tools
