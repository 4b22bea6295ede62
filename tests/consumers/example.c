#include <fovea/fovea.h>
#include <stdio.h>

static float q[8 * 512 * 64], k[2 * 512 * 64], v[2 * 512 * 64], out[8 * 512 * 64]; /* yours to fill */

int main(void) {
  fovea_attention_params p;
  fovea_attention_params_init(&p, sizeof p);
  p.batch = 1, p.num_q_heads = 8, p.num_kv_heads = 2, p.q_len = 512, p.kv_len = 512, p.head_dim = 64, p.causal = 1;
  p.q = fovea_tensor_bhsd(q, FOVEA_F32, 8, 512, 64);
  p.k = fovea_tensor_bhsd(k, FOVEA_F32, 2, 512, 64);
  p.v = fovea_tensor_bhsd(v, FOVEA_F32, 2, 512, 64);
  p.out = fovea_tensor_bhsd(out, FOVEA_F32, 8, 512, 64);
  fovea_status status = fovea_attention_forward(&p, NULL);
  if (status != FOVEA_OK) fprintf(stderr, "%s: %s\n", fovea_status_str(status), fovea_last_error());
  return status;
}
