// Every test, for one target: FOVEA_TARGET or the default choice. tools/test.sh runs this once per runnable target with
// -tse=once and one more time with -ts=once for the cases that do not depend on it.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fovea/fovea.h"
#include "tests/harness/environment.h"

#ifdef FOVEA_TEST_ASAN
// What an OpenMP runtime keeps for a thread that has ended is not ours.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libomp\nleak:libgomp\n"; }
#endif
#ifdef FOVEA_TEST_TSAN
// libomp's own locks; what runs in its parallel regions is known to TSan by libarcher.so.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libomp.so\n"; }
#endif

namespace {

// For target_test.cc, which starts this program with another environment: the exit code is the status of a computing
// call.
int Probe() {
  float one = 1, out = 0;
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = p.num_q_heads = p.num_kv_heads = p.q_len = p.kv_len = p.head_dim = 1;
  p.q = p.k = p.v = fovea_tensor_bhsd(&one, FOVEA_F32, 1, 1, 1);
  p.out = fovea_tensor_bhsd(&out, FOVEA_F32, 1, 1, 1);
  const fovea_status forward = fovea_attention_forward(&p, nullptr);
  const char* name = nullptr;
  const char* why = nullptr;
  const fovea_status get = fovea_get_target(&name, &why);
  std::printf("%s %s %s\n", fovea_status_str(get), get == FOVEA_OK ? name : "-", get == FOVEA_OK ? why : "-");
  return get == forward && (forward != FOVEA_OK || out == 1.0f) ? forward : 99;
}

// For tools/run_suite.py.
int ListTargets() {
  for (int32_t i = 0; i < fovea_target_count(); ++i) {
    fovea_target_info info;
    fovea_target_info_init(&info, sizeof info);
    if (fovea_get_target_info(i, &info) != FOVEA_OK) return 1;
    std::printf("%s %d %d\n", info.name, static_cast<int>(info.runnable), static_cast<int>(info.vector_bytes));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (std::getenv("FOVEA_TEST_PROBE_TARGET")) return Probe();
  if (std::getenv("FOVEA_TEST_LIST")) return ListTargets();
  doctest::Context context(argc, argv);

  const char* asked = std::getenv("FOVEA_TARGET");
  const char* name = nullptr;
  const char* why = nullptr;
  if (fovea_get_target(&name, &why) != FOVEA_OK) {
    std::fprintf(stderr, "fovea_tests: %s\n", fovea_last_error());
    return 1;
  }
  if (asked && *asked && std::strcmp(asked, name) != 0) {
    std::fprintf(stderr, "fovea_tests: FOVEA_TARGET is %s, the library has %s\n", asked, name);
    return 1;
  }
  fovea_test::target_name = name;
  std::printf("fovea_tests: target %s (%s)\n", name, why);
  std::fflush(stdout);
  return context.run();
}
