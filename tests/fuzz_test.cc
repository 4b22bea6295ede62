// The fuzz targets on seeded random bytes, a bounded number of them.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/random.h"

const char* FuzzParams(const uint8_t* data, size_t size);  // fuzz/params_fuzz.cc
const char* FuzzLayer(const uint8_t* data, size_t size);   // fuzz/layer_fuzz.cc

namespace fovea_test {

namespace {

void FeedRandomBytes(const char* (*fuzz)(const uint8_t* data, size_t size), int64_t most) {
  const uint64_t first = FirstSeed(90000);
  for (int64_t n = 0; n < CaseCount(4000); ++n) {
    const uint64_t seed = first + static_cast<uint64_t>(n);
    INFO(Repeat(seed, "fuzz"));
    Rng rng(seed);
    std::vector<uint8_t> bytes(static_cast<size_t>(rng.Int(20, most)));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng.Bits());
    const char* wrong = fuzz(bytes.data(), bytes.size());
    CHECK(std::string(wrong ? wrong : "") == "");
  }
}

}  // namespace

TEST_CASE("fuzz: params from random bytes are refused or computed right, and never crash") { FeedRandomBytes(FuzzParams, 160); }

TEST_CASE("fuzz: a layer and its parts from random bytes are refused or run, and write nowhere else") { FeedRandomBytes(FuzzLayer, 300); }

}  // namespace fovea_test
