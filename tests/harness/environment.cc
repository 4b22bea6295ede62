#include "tests/harness/environment.h"

#include <algorithm>
#include <cstdlib>

#include "fovea/fovea.h"

namespace fovea_test {

std::string target_name;

namespace {

int64_t VectorBytes() {
  for (int32_t i = 0; i < fovea_target_count(); ++i) {
    fovea_target_info info;
    fovea_target_info_init(&info, sizeof info);
    if (fovea_get_target_info(i, &info) == FOVEA_OK && target_name == info.name) return info.vector_bytes;
  }
  return 0;
}

double Scale() {
  const char* text = std::getenv("FOVEA_TEST_SCALE");
  return text ? std::atof(text) : 1.0;
}

}  // namespace

int64_t CaseCount(int64_t on_a_fast_target) {
  if (const char* text = std::getenv("FOVEA_TEST_COUNT")) return std::max<int64_t>(1, std::atoll(text));
  const double scale = Scale() * std::min(1.0, static_cast<double>(VectorBytes()) / 32.0);
  return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(on_a_fast_target) * scale));
}

int64_t Portion(int64_t all, int64_t least) {
  return std::min(all, std::max(least, static_cast<int64_t>(static_cast<double>(all) * Scale())));
}

// Not scaled by FOVEA_TEST_SCALE: a case must be the same when its seed is run again.
int64_t CaseWork(int64_t on_a_fast_target) { return VectorBytes() >= 16 ? on_a_fast_target : on_a_fast_target / 4; }

uint64_t FirstSeed(uint64_t built_in) {
  const char* text = std::getenv("FOVEA_TEST_SEED");
  return text ? std::strtoull(text, nullptr, 0) : built_in;
}

}  // namespace fovea_test
