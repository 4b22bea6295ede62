// A host that was built with another compiler's OpenMP runtime than libfovea, as PyTorch's process is: it warms its own
// pool, loads the library by dlopen, and calls it outside and inside its parallel regions. Exit code 0 = right. Run by
// threads_test.cc.
//   host_omp_test /path/to/libfovea.so
#include <dlfcn.h>
#include <omp.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "fovea/fovea.h"

namespace {

constexpr int kHeads = 4, kRows = 96, kDim = 32;

struct Fovea {
  decltype(&fovea_attention_params_init) params_init;
  decltype(&fovea_attention_forward) forward;
  decltype(&fovea_last_error) last_error;
};

struct Problem {
  explicit Problem(int seed) : q(kHeads * kRows * kDim), k(q.size()), v(q.size()), out(q.size()) {
    unsigned state = 12345u + static_cast<unsigned>(seed);
    for (std::vector<float>* t : {&q, &k, &v}) {
      for (float& x : *t) {
        state = state * 1664525u + 1013904223u;
        x = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
      }
    }
  }

  bool Run(const Fovea& fovea) {
    const auto tensor = [](std::vector<float>& t) {
      fovea_tensor view{};
      view.data = t.data();
      view.dtype = FOVEA_F32;
      view.stride_head = kRows * kDim;
      view.stride_row = kDim;
      view.stride_batch = kHeads * kRows * kDim;
      return view;
    };
    fovea_attention_params p;
    fovea.params_init(&p, sizeof p);
    p.batch = 1;
    p.num_q_heads = p.num_kv_heads = kHeads;
    p.q_len = p.kv_len = kRows;
    p.head_dim = kDim;
    p.causal = 1;
    p.q = tensor(q);
    p.k = tensor(k);
    p.v = tensor(v);
    p.out = tensor(out);
    if (fovea.forward(&p, nullptr) == FOVEA_OK) return true;
    std::fprintf(stderr, "host_omp_test: %s\n", fovea.last_error());
    return false;
  }

  // The largest difference to an evaluation in double.
  double Error() const {
    double worst = 0;
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kRows; ++i) {
        std::vector<double> weights;
        double sum = 0;
        for (int j = 0; j <= i; ++j) {
          double s = 0;
          for (int c = 0; c < kDim; ++c) s += static_cast<double>(At(q, h, i, c)) * static_cast<double>(At(k, h, j, c));
          weights.push_back(std::exp(s / std::sqrt(static_cast<double>(kDim))));
          sum += weights.back();
        }
        for (int c = 0; c < kDim; ++c) {
          double o = 0;
          for (int j = 0; j <= i; ++j) o += weights[static_cast<size_t>(j)] / sum * static_cast<double>(At(v, h, j, c));
          worst = std::fmax(worst, std::fabs(o - static_cast<double>(At(out, h, i, c))));
        }
      }
    }
    return worst;
  }

  static float At(const std::vector<float>& t, int h, int i, int c) {
    return t[static_cast<size_t>((h * kRows + i) * kDim + c)];
  }

  std::vector<float> q, k, v, out;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  int threads = 0;
#pragma omp parallel num_threads(3) reduction(+ : threads)
  threads += 1;

  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "host_omp_test: %s\n", dlerror());
    return 2;
  }
  Fovea fovea;
  fovea.params_init = reinterpret_cast<decltype(fovea.params_init)>(dlsym(library, "fovea_attention_params_init"));
  fovea.forward = reinterpret_cast<decltype(fovea.forward)>(dlsym(library, "fovea_attention_forward"));
  fovea.last_error = reinterpret_cast<decltype(fovea.last_error)>(dlsym(library, "fovea_last_error"));
  if (!fovea.params_init || !fovea.forward || !fovea.last_error) return 2;

  std::vector<Problem> problems;
  for (int n = 0; n < 6; ++n) problems.emplace_back(n);
  bool ok = problems[0].Run(fovea);
  int failed = 0;
#pragma omp parallel for num_threads(3) schedule(dynamic, 1) reduction(+ : failed)
  for (int n = 1; n < 5; ++n) failed += problems[static_cast<size_t>(n)].Run(fovea) ? 0 : 1;
  ok = problems[5].Run(fovea) && ok && failed == 0;
  for (const Problem& problem : problems) ok = ok && problem.Error() < 2e-6;
  std::printf("host_omp_test: %s, %d host threads\n", ok ? "right" : "WRONG", threads);
  return ok ? 0 : 1;
}
