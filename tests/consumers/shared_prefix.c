#include <fovea/fovea.h>
#include <stdio.h>

/* Four sequences decode one token each. They share a prompt of 64 pages; each has up to 4 pages of its own. */
enum { B = 4, HQ = 8, HKV = 2, D = 64, PAGE = 16, SHARED = 64, OWN = 4, PAGES = SHARED + B * OWN };
static float q[B][HQ][D], k[PAGES][HKV][PAGE][D], v[PAGES][HKV][PAGE][D]; /* yours to fill */
static float out[2][B][HQ][D], lse[2][B][HQ];
static int32_t shared_table[SHARED], own_table[B][OWN], own_len[B];

int main(void) {
  fovea_attention_params p;
  fovea_tensor outs[2], lses[2];
  fovea_status status = FOVEA_OK;
  for (int n = 0; n < SHARED; ++n) shared_table[n] = n;
  for (int b = 0; b < B; ++b) own_len[b] = 17 + b;
  for (int n = 0; n < B * OWN; ++n) own_table[n / OWN][n % OWN] = SHARED + n;
  for (int own = 0; own < 2 && status == FOVEA_OK; ++own) {
    fovea_attention_params_init(&p, sizeof p);
    p.batch = own ? B : 1, p.q_len = own ? 1 : B; /* the prompt: all queries as one sequence, so its keys are read once */
    p.num_q_heads = HQ, p.num_kv_heads = HKV, p.head_dim = D;
    p.q = fovea_tensor_bshd(q, FOVEA_F32, HQ, p.q_len, D);
    p.k = fovea_tensor_bhsd(k, FOVEA_F32, HKV, PAGE, D);
    p.v = fovea_tensor_bhsd(v, FOVEA_F32, HKV, PAGE, D);
    p.out = outs[own] = fovea_tensor_bshd(out[own], FOVEA_F32, HQ, p.q_len, D);
    p.lse = lses[own] = fovea_tensor_bshd(lse[own], FOVEA_F32, HQ, p.q_len, 1);
    p.num_pages = PAGES, p.page_size = PAGE;
    p.block_table = own ? own_table[0] : shared_table, p.block_table_stride = own ? OWN : SHARED;
    p.kv_len = own ? OWN * PAGE : SHARED * PAGE, p.kv_lens = own ? own_len : NULL;
    status = fovea_attention_forward(&p, NULL);
  }
  outs[0] = outs[1], lses[0] = lses[1]; /* the second call's layout, [B][HQ][D], is the first one's memory too */
  outs[0].data = out[0], lses[0].data = lse[0];
  if (status == FOVEA_OK) status = fovea_attention_merge(2, outs, lses, B, HQ, 1, D, &outs[0], NULL, NULL);
  if (status != FOVEA_OK) fprintf(stderr, "%s: %s\n", fovea_status_str(status), fovea_last_error());
  return status;
}
