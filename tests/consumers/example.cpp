#include <cstdio>
#include <fovea/fovea.hpp>
#include <vector>

int main() {
  std::vector<float> q(8 * 512 * 64), k(2 * 512 * 64), v(2 * 512 * 64), out(8 * 512 * 64);  // yours to fill
  try {
    fovea::AttentionParams p;
    p.batch = 1, p.num_q_heads = 8, p.num_kv_heads = 2, p.q_len = p.kv_len = 512, p.head_dim = 64;
    p.q = fovea::bhsd(q, 1, 8, 512, 64);
    p.k = fovea::bhsd(k, 1, 2, 512, 64);
    p.v = fovea::bhsd(v, 1, 2, 512, 64);
    p.out = fovea::bhsd(out, 1, 8, 512, 64);
    p.causal = 1;
    fovea::attention_forward(p);
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "%s: %s\n", fovea_status_str(error.status()), error.what());
    return 1;
  }
}
