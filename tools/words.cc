#include "tools/words.h"

namespace fovea::tools {

bool IsWhole(const std::string& text) {
  int64_t value;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

HeadCounts ParseHeads(const std::string& where, const std::string& text) {
  const size_t slash = text.find('/');
  const int64_t q = Number<int64_t>(where, text.substr(0, slash), 1);
  const HeadCounts heads = {q, slash == std::string::npos ? q : Number<int64_t>(where, text.substr(slash + 1), 1)};
  if (heads.q % heads.kv != 0) throw InputError(fmt::format("{}: {}: kv heads must divide query heads", where, text));
  return heads;
}

}  // namespace fovea::tools
