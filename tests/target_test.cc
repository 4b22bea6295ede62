// Choosing an instruction set.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"

namespace fovea_test {
namespace {

std::vector<fovea_target_info> Targets() {
  std::vector<fovea_target_info> targets;
  for (int32_t i = 0; i < fovea_target_count(); ++i) {
    fovea_target_info info;
    fovea_target_info_init(&info, sizeof info);
    CHECK(fovea_get_target_info(i, &info) == FOVEA_OK);
    targets.push_back(info);
  }
  return targets;
}

// Restores the choice of this run, whatever a test has set.
struct Restore {
  ~Restore() { fovea_set_target(nullptr); }
};

// Starts this program as a probe (see main.cc) with FOVEA_TARGET = value, or without it; its exit code and its output.
std::pair<int, std::string> Probe(const char* value) {
  char self[4096] = "";
  REQUIRE(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
  const char* runner = std::getenv("FOVEA_TEST_RUNNER");
  std::istringstream words(runner ? runner : "");
  std::vector<std::string> command{std::istream_iterator<std::string>(words), {}};
  command.push_back(self);
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(&word[0]);
  argv.push_back(nullptr);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 1);
    setenv("FOVEA_TEST_PROBE_TARGET", "1", 1);
    value ? setenv("FOVEA_TARGET", value, 1) : unsetenv("FOVEA_TARGET");
    execvp(argv[0], argv.data());
    _exit(98);
  }
  close(ends[1]);
  char text[200];
  const ssize_t length = read(ends[0], text, sizeof text);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 99,
          std::string(text, static_cast<size_t>(length > 0 ? length : 0))};
}

}  // namespace

TEST_CASE("this run's target is the one that runs, for every kind of shape") {
  const char* name = nullptr;
  const char* why = nullptr;
  REQUIRE(fovea_get_target(&name, &why) == FOVEA_OK);
  CHECK(target_name == name);
  for (int64_t q_len : {1, 4, 100}) {
    CaseSpec spec;
    spec.q_len = q_len;
    spec.kv_len = 3000;
    spec.head_dim = 16;
    AttentionCase c(spec);
    CHECK(RunAndCheck(&c) == "");  // compares the name that describe() gives
  }
}

TEST_SUITE("once") {
  TEST_CASE("targets: names differ, the best runnable comes first, sizes are given where runnable") {
    std::set<std::string> names;
    bool any = false;
    for (const fovea_target_info& info : Targets()) {
      CAPTURE(std::string(info.name));
      names.insert(info.name);
      CHECK(info.name[0] != '\0');
      CHECK((info.runnable == 0 || info.runnable == 1));
      any |= info.runnable == 1;
      CHECK((info.vector_bytes > 0) == (info.runnable == 1));
      CHECK((info.tile_lanes > 0) == (info.runnable == 1));
    }
    CHECK(any);
    CHECK(static_cast<int32_t>(names.size()) == fovea_target_count());
    fovea_target_info info;
    fovea_target_info_init(&info, sizeof info);
    CHECK(fovea_get_target_info(-1, &info) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(fovea_get_target_info(fovea_target_count(), &info) == FOVEA_ERR_INVALID_ARGUMENT);
    CHECK(fovea_get_target_info(0, nullptr) == FOVEA_ERR_INVALID_ARGUMENT);
  }

  TEST_CASE("set_target: every runnable target computes under its own name, others are refused and change nothing") {
    const Restore restore;
    const std::string original = target_name;
    for (const fovea_target_info& info : Targets()) {
      CAPTURE(std::string(info.name));
      const char* name = nullptr;
      const char* why = nullptr;
      if (info.runnable) {
        REQUIRE(fovea_set_target(info.name) == FOVEA_OK);
        REQUIRE(fovea_get_target(&name, &why) == FOVEA_OK);
        CHECK(std::string(name) == info.name);
        CHECK(std::string(why) == "set");
        target_name = info.name;
        CaseSpec spec;
        spec.q_len = 30;
        spec.kv_len = 100;
        spec.head_dim = 16;
        AttentionCase c(spec);
        CHECK(RunAndCheck(&c) == "");
      } else {
        CHECK(fovea_set_target(info.name) == FOVEA_ERR_TARGET_UNAVAILABLE);
        CHECK(std::string(fovea_last_error()).find(info.name) != std::string::npos);
        REQUIRE(fovea_get_target(&name, nullptr) == FOVEA_OK);
        CHECK(std::string(name) == target_name);
      }
    }
    target_name = original;
  }

  TEST_CASE("set_target: unknown names are refused by name, NULL returns to the default") {
    const Restore restore;
    const char* before = nullptr;
    const char* after = nullptr;
    const char* why = nullptr;
    REQUIRE(fovea_get_target(&before, nullptr) == FOVEA_OK);
    for (const char* name : {"PENTIUM", "", "avx2 ", "AVX2X"}) {
      CHECK(fovea_set_target(name) == FOVEA_ERR_TARGET_UNAVAILABLE);
      REQUIRE(fovea_get_target(&after, nullptr) == FOVEA_OK);
      CHECK(std::string(before) == after);
    }
    CHECK(fovea_set_target("PENTIUM") == FOVEA_ERR_TARGET_UNAVAILABLE);
    CHECK(std::string(fovea_last_error()).find("PENTIUM") != std::string::npos);
    CHECK(fovea_set_target(nullptr) == FOVEA_OK);
    REQUIRE(fovea_get_target(&after, &why) == FOVEA_OK);
    CHECK(std::string(before) == after);
    CHECK(std::string(why) == (std::getenv("FOVEA_TARGET") ? "FOVEA_TARGET" : "best"));
  }

  TEST_CASE("FOVEA_TARGET chooses; a name that cannot run fails computing calls, never another choice in silence") {
    std::vector<std::string> runnable;
    for (const fovea_target_info& info : Targets()) {
      if (info.runnable) runnable.push_back(info.name);
      const std::pair<int, std::string> probe = Probe(info.name);
      CAPTURE(probe.second);
      if (info.runnable) {
        CHECK(probe.first == 0);
        CHECK(probe.second == std::string("FOVEA_OK ") + info.name + " FOVEA_TARGET\n");
      } else {
        CHECK(probe.first == FOVEA_ERR_TARGET_UNAVAILABLE);
        CHECK(probe.second == "FOVEA_ERR_TARGET_UNAVAILABLE - -\n");
      }
    }
    CHECK(Probe("PENTIUM").first == FOVEA_ERR_TARGET_UNAVAILABLE);
    // The best, but for one that is preferred on some CPUs only: tools/emulators.py knows which.
    const std::pair<int, std::string> probe = Probe(nullptr);
    const auto chosen = [&](size_t i) { return probe == std::pair<int, std::string>(0, "FOVEA_OK " + runnable.at(i) + " best\n"); };
    const bool preferred_on_some = runnable.at(0) == "AVX3_BF16" || runnable.at(0) == "NEON_BFDOT";
    CAPTURE(probe.second);
    CHECK((chosen(0) || (preferred_on_some && chosen(1))));
  }

  TEST_CASE("a plan keeps the target that it was made with") {
    const Restore restore;
    std::vector<std::string> runnable;
    for (const fovea_target_info& info : Targets()) {
      if (info.runnable) runnable.push_back(info.name);
    }
    CaseSpec spec;
    spec.q_len = 30;
    spec.kv_len = 100;
    spec.head_dim = 16;
    AttentionCase c(spec);
    const fovea_exec one = Threads(1);
    REQUIRE(fovea_set_target(runnable.front().c_str()) == FOVEA_OK);
    REQUIRE(fovea_attention_forward(&c.p, &one) == FOVEA_OK);
    const std::vector<float> expected = Outputs(c.p);
    size_t bytes = 0;
    REQUIRE(fovea_attention_workspace_size(&c.p, &one, &bytes) == FOVEA_OK);
    std::vector<unsigned char> memory(bytes);
    const fovea_plan* plan = nullptr;
    REQUIRE(fovea_attention_plan(&c.p, &one, memory.data(), bytes, &plan) == FOVEA_OK);
    REQUIRE(fovea_set_target(runnable.back().c_str()) == FOVEA_OK);
    c.ClearOutputs();
    for (int32_t phase = 0; phase < fovea_plan_phases(plan); ++phase) {
      CHECK(fovea_attention_run_tasks(plan, &c.p, phase, 0, fovea_plan_tasks(plan, phase), 0) == FOVEA_OK);
    }
    CHECK(BitDifference(expected, Outputs(c.p)) == "");
  }
}

}  // namespace fovea_test
