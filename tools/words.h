// Words of a command line: numbers, head counts.
#ifndef FOVEA_TOOLS_WORDS_H_
#define FOVEA_TOOLS_WORDS_H_

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <string>

#include "tools/output.h"

namespace fovea::tools {

// An int64. CLI11 2.1 takes a number past it as the largest one.
bool IsWhole(const std::string& text);

// All of text as a number; throws InputError, which names where it stood.
template <class T>
T Number(const std::string& where, const std::string& text, T least) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= least)) {
    throw InputError(fmt::format("{}: {}: a number from {} on is wanted", where, text, least));
  }
  return value;
}

// "32" or "32/8": query heads, and kv heads that divide them. Throws InputError, which names where it stood.
struct HeadCounts {
  int64_t q, kv;
};
HeadCounts ParseHeads(const std::string& where, const std::string& text);

}  // namespace fovea::tools

#endif  // FOVEA_TOOLS_WORDS_H_
