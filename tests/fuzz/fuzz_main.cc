// libFuzzer's entry, with the function that FOVEA_FUZZ names.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

const char* FOVEA_FUZZ(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (const char* what = FOVEA_FUZZ(data, size)) {
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
  }
  return 0;
}
