// .npy files: what tools/npy.cc reads and writes, and each way in which a file can be damaged. tests/cli_test.py holds
// it against NumPy itself.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tools/npy.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace {

namespace fs = std::filesystem;
using fovea::tools::InputError;
using fovea::tools::NpyArray;
using fovea::tools::NpyType;
using fovea::tools::ReadNpy;
using fovea::tools::WriteNpy;

class Directory {
 public:
  Directory() {
    std::string name = (fs::temp_directory_path() / "fovea_npy_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Directory() { fs::remove_all(path_); }
  std::string operator/(const char* name) const { return (path_ / name).string(); }
  size_t entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

 private:
  fs::path path_;
};

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void Write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string File(const std::string& dict, const std::string& data, char major = 1, char minor = 0) {
  std::string file = "\x93NUMPY";
  file += major;
  file += minor;
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) file += static_cast<char>(dict.size() >> (8 * i) & 0xff);
  return file + dict + data;
}

std::string Dict(const std::string& shape, const std::string& descr = "<f4", const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Reads the bytes as a file.
NpyArray Read(const std::string& bytes) {
  const Directory directory;
  Write(directory / "a.npy", bytes);
  return ReadNpy(directory / "a.npy");
}

// The message with which the bytes are refused, "" if they are read.
std::string Refusal(const std::string& bytes) {
  try {
    Read(bytes);
  } catch (const InputError& error) {
    const std::string text = error.what();
    CHECK(text.find('\n') == std::string::npos);
    CHECK(text.find("a.npy: ") != std::string::npos);
    return text;
  }
  return "";
}

bool Has(const std::string& text, const char* part) {
  INFO(text);
  const bool has = text.find(part) != std::string::npos;
  CHECK(has);
  return has;
}

const std::string kGood = File(Dict("(2, 3)"), Floats({1, 2, 3, 4, 5, 6}));

}  // namespace

TEST_CASE("npy: versions 1.0, 2.0 and 3.0") {
  for (const char major : {'\1', '\2', '\3'}) {
    const NpyArray array = Read(File(Dict("(2, 3)"), Floats({1, 2, 3, 4, 5, 6}), major));
    CHECK(array.type == NpyType::kF32);
    CHECK(array.shape == std::vector<int64_t>{2, 3});
    CHECK(array.f32 == std::vector<float>{1, 2, 3, 4, 5, 6});
  }
  Has(Refusal(File(Dict("(1,)"), Floats({1}), 4)), "format 4.0");
  Has(Refusal(File(Dict("(1,)"), Floats({1}), 1, 1)), "format 1.1");
}

TEST_CASE("npy: uint8 and bool") {
  CHECK(Read(File(Dict("(3,)", "|u1"), std::string("\0\1\2", 3))).u8 == std::vector<uint8_t>{0, 1, 2});
  CHECK(Read(File(Dict("(2,)", "|b1"), std::string("\0\1", 2))).type == NpyType::kBool);
}

TEST_CASE("npy: float16") {
  const NpyArray array = Read(File(Dict("(3,)", "<f2"), std::string("\x00\x3c\x00\xc0\x01\x00", 6)));
  CHECK(array.type == NpyType::kF16);
  CHECK(array.f16 == std::vector<uint16_t>{0x3c00, 0xc000, 0x0001});
  Has(Refusal(File(Dict("(3,)", "<f2"), std::string(5, 0))), "needs 6 bytes of data, the file has 5");
}

TEST_CASE("npy: shapes") {
  CHECK(Read(File(Dict("()"), Floats({7}))).shape.empty());
  CHECK(Read(File(Dict("(0,)"), "")).shape == std::vector<int64_t>{0});
  CHECK(Read(File(Dict("(4, 0, 9)"), "")).shape == std::vector<int64_t>{4, 0, 9});
  CHECK(Read(File(Dict("(2, 1,)"), Floats({1, 2}))).shape == std::vector<int64_t>{2, 1});
  CHECK(Read(File(Dict("(2L, 1L)"), Floats({1, 2}))).shape == std::vector<int64_t>{2, 1});
  for (const char* shape : {"(2)", "2", "(,)", "(-2,)", "(2.0,)", "(2 1)", "(2,,1)", "[2]", "(2", "('2',)", "None"}) {
    CAPTURE(shape);
    Has(Refusal(File(Dict(shape), Floats({1, 2}))), "damaged header");
  }
}

TEST_CASE("npy: any spelling of the header that Python would read") {
  const std::string data = Floats({1, 2});
  CHECK(Read(File("{ \"shape\":(2,),\n\"fortran_order\" : False,'descr':'<f4'}", data)).f32 ==
        std::vector<float>{1, 2});
  CHECK(Read(File("  {'shape': (2, ), 'descr': '<f4', 'fortran_order': False,}   \n", data)).f32.size() == 2);
  // Fortran order is C order where there is but one dimension.
  CHECK(Read(File(Dict("(2,)", "<f4", "True"), data)).f32.size() == 2);
}

TEST_CASE("npy: damaged headers") {
  const std::string data = Floats({1});
  const std::string shape = "'shape': (1,)", order = "'fortran_order': False", descr = "'descr': '<f4'";
  Has(Refusal(File("{" + shape + ", " + order + "}", data)), "no 'descr'");
  Has(Refusal(File("{" + shape + ", " + descr + "}", data)), "no 'fortran_order'");
  Has(Refusal(File("{" + descr + ", " + order + "}", data)), "no 'shape'");
  Has(Refusal(File("{" + descr + ", " + descr + ", " + order + "}", data)), "'descr' twice");
  Has(Refusal(File("{" + descr + ", 'x': 1}", data)), "unknown key 'x'");
  Has(Refusal(File("{" + descr + " " + order + "," + shape + "}", data)), "',' or '}' expected");
  Has(Refusal(File("{" + descr + "," + order + "," + shape + "} x", data)), "the end expected");
  Has(Refusal(File("{" + descr + "," + order + "," + shape, data)), "damaged header");
  Has(Refusal(File("{" + descr + "," + order + "," + shape + "}" + std::string(1, '\0'), data)), "damaged header");
  Has(Refusal(File("{" + shape + ", 'fortran_order': 0, " + descr + "}", data)), "True or False");
  Has(Refusal(File("{" + shape + "," + order + ", 'descr': '<f4\\x20'}", data)), "a plain string");
  Has(Refusal(File("{" + shape + "," + order + ", 'descr': '\x1b[2J'}", data)), "plain ASCII");
  Has(Refusal(File("", data)), "'{' expected");
  Has(Refusal(File("    ", data)), "'{' expected");
}

TEST_CASE("npy: types, byte order and Fortran order are refused by name") {
  Has(Refusal(File(Dict("(1,)", "<f8"), std::string(8, 0))), "dtype float64 (descr '<f8')");
  Has(Refusal(File(Dict("(1,)", "=f2"), std::string(2, 0))), "'<f2' is wanted");
  Has(Refusal(File(Dict("(1,)", ">f2"), std::string(2, 0))), "big-endian data, float16");
  Has(Refusal(File(Dict("(1,)", "<i8"), std::string(8, 0))), "dtype int64");
  Has(Refusal(File(Dict("(1,)", "<i4"), std::string(4, 0))), "dtype int32");
  Has(Refusal(File(Dict("(1,)", "|i1"), std::string(1, 0))), "dtype int8");
  Has(Refusal(File(Dict("(1,)", "<c8"), std::string(8, 0))), "dtype complex64");
  Has(Refusal(File(Dict("(1,)", "|O"), std::string(8, 0))), "Python objects");
  Has(Refusal(File(Dict("(1,)", "<U3"), std::string(12, 0))), "descr '<U3'");
  Has(Refusal(File(Dict("(1,)", ""), std::string(4, 0))), "descr ''");
  Has(Refusal(File(Dict("(1,)", "=f4"), Floats({1}))), "not stated");
  Has(Refusal(File(Dict("(1,)", ">f4"), Floats({1}))), "big-endian data, float32 (descr '>f4')");
  Has(Refusal(File("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", Floats({1}))), "structured");
  Has(Refusal(File(Dict("(2, 1)", "<f4", "True"), Floats({1, 2}))), "Fortran order");
}

TEST_CASE("npy: a file cut anywhere, or longer by one byte, is refused") {
  for (size_t size = 0; size < kGood.size(); ++size) {
    CAPTURE(size);
    CHECK(!Refusal(kGood.substr(0, size)).empty());
  }
  Has(Refusal(""), "an empty file");
  Has(Refusal(kGood.substr(0, 40)), "truncated: the file ends within its header");
  Has(Refusal(kGood.substr(0, kGood.size() - 1)), "truncated: shape [2, 3] needs 24 bytes of data, the file has 23");
  Has(Refusal(kGood + "x"), "oversized: shape [2, 3] needs 24 bytes of data, the file has 25");
}

TEST_CASE("npy: every byte of the header damaged in turn never crashes, and never passes where the meaning changed") {
  const NpyArray good = Read(kGood);
  for (size_t at = 0; at < kGood.size() - 24; ++at) {
    for (const char value : {'\0', '\xff', ' ', '(', '9', '\''}) {
      if (kGood[at] == value) continue;
      std::string bytes = kGood;
      bytes[at] = value;
      CAPTURE(at);
      CAPTURE(static_cast<int>(value));
      if (Refusal(bytes).empty()) CHECK(Read(bytes).shape == good.shape);  // white space for white space
    }
  }
}

TEST_CASE("npy: sizes that overflow, and headers and shapes without the data, allocate nothing") {
  Has(Refusal(File(Dict("(99999999999999999999,)"), "")), "above 2^63 - 1");
  Has(Refusal(File(Dict("(9223372036854775807,)"), "")), "more bytes than 2^63 - 1");
  Has(Refusal(File(Dict("(4294967296, 4294967296)"), "")), "more bytes than 2^63 - 1");
  Has(Refusal(File(Dict("(4294967296, 0, 4294967296)"), "")), "more bytes than 2^63 - 1");
  Has(Refusal(File(Dict("(1000000000000,)"), "")), "truncated");
  std::string file = File(Dict("(1,)"), Floats({1}), 2);
  std::memcpy(&file[8], "\xff\xff\xff\xff", 4);
  Has(Refusal(file), "a header of 4294967295 bytes");
}

TEST_CASE("npy: what is no .npy file") {
  Has(Refusal("hello, world"), "not a .npy file");
  Has(Refusal("PK\x03\x04 and so on"), ".npz archive");
  const Directory directory;
  CHECK_THROWS_WITH_AS(ReadNpy(directory / "no"), doctest::Contains("No such file"), InputError);
  CHECK_THROWS_WITH_AS(ReadNpy(directory / ""), doctest::Contains("not a regular file"), InputError);
  REQUIRE(mkfifo((directory / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(ReadNpy(directory / "pipe"), doctest::Contains("not a regular file"), InputError);
}

TEST_CASE("npy: written files are read back, and their data is aligned to 64 bytes") {
  const Directory directory;
  const std::vector<float> values = {1, -0.0f, 3e38f, 1e-45f, 5, 6};
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{6}, {2, 3}, {1, 2, 3, 1}, {0, 5}, {}}) {
    WriteNpy({{directory / "a.npy", shape, values.data()}});
    const NpyArray array = ReadNpy(directory / "a.npy");
    CHECK(array.shape == shape);
    CHECK(Floats(array.f32) == Floats(values).substr(0, array.f32.size() * 4));
    CHECK((Bytes(directory / "a.npy").size() - array.f32.size() * 4) % 64 == 0);
  }
  CHECK(directory.entries() == 1);
}

TEST_CASE("npy: all outputs are written or none, and only regular files replaced") {
  const Directory directory;
  const float one = 1;
  Write(directory / "old.npy", "old");
  CHECK_THROWS_AS(WriteNpy({{directory / "old.npy", {1}, &one}, {directory / "no/such.npy", {1}, &one}}), InputError);
  CHECK(Bytes(directory / "old.npy") == "old");
  CHECK_THROWS_WITH_AS(WriteNpy({{directory / "a.npy", {1}, &one}, {directory / "./a.npy", {1}, &one}}),
                       doctest::Contains("two outputs"), InputError);
  CHECK(directory.entries() == 1);
  CHECK_THROWS_WITH_AS(WriteNpy({{"/dev/null", {1}, &one}}), doctest::Contains("not a regular file"), InputError);
  CHECK(fs::is_character_file("/dev/null"));

  fs::create_symlink("old.npy", directory / "link.npy");
  WriteNpy({{directory / "link.npy", {1}, &one}});
  CHECK(fs::is_symlink(directory / "link.npy"));
  CHECK(ReadNpy(directory / "old.npy").f32 == std::vector<float>{1});
}
