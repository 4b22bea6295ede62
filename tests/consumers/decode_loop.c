#include <fovea/fovea.h>
#include <stdio.h>
#include <string.h>

/* A small model: its token embeddings, which make the logits too, and layers of attention. */
enum { VOCAB = 1000, LAYERS = 2, D = 256, HQ = 8, HKV = 2, DIM = 32, QKV = (HQ + 2 * HKV) * DIM, ROOM = 64, PROMPT = 3 };
static float embeddings[VOCAB][D], w_qkv[LAYERS][QKV][D], wo[LAYERS][D][HQ * DIM]; /* yours to load */
static float k[LAYERS][HKV][ROOM][DIM], v[LAYERS][HKV][ROOM][DIM], cosine[ROOM][DIM / 2], sine[ROOM][DIM / 2];
static float x[ROOM][D], y[ROOM][D], logits[VOCAB];

int main(void) {
  int32_t tokens[ROOM + 1] = {11, 42, 7}, held = 0; /* the prompt; the rows that the caches hold */
  fovea_rope_tables_params tables;
  fovea_rope_params rope;
  fovea_attention_params causal;
  fovea_mha_params layer;
  fovea_linear_params head;
  fovea_rope_tables_params_init(&tables, sizeof tables);
  tables.rotary_dim = DIM, tables.num_positions = ROOM;
  tables.cos = fovea_tensor_bhsd(cosine, FOVEA_F32, 1, ROOM, DIM / 2);
  tables.sin = fovea_tensor_bhsd(sine, FOVEA_F32, 1, ROOM, DIM / 2);
  if (fovea_rope_tables(&tables, NULL) != FOVEA_OK) return 1;
  fovea_rope_params_init(&rope, sizeof rope);
  rope.cos = tables.cos, rope.sin = tables.sin, rope.num_positions = ROOM;
  fovea_attention_params_init(&causal, sizeof causal);
  causal.causal = 1;
  fovea_mha_params_init(&layer, sizeof layer);
  layer.batch = 1, layer.d_model = D, layer.num_q_heads = HQ, layer.num_kv_heads = HKV, layer.head_dim = DIM;
  layer.rope = &rope, layer.attention = &causal, layer.kv_starts = &held, layer.capacity = ROOM;
  fovea_linear_params_init(&head, sizeof head);
  head.tokens = 1, head.in_features = D, head.out_features = VOCAB;
  head.w = fovea_tensor_bhsd(embeddings, FOVEA_F32, 1, VOCAB, D);
  head.y = fovea_tensor_bhsd(logits, FOVEA_F32, 1, 1, VOCAB);

  for (int32_t n = PROMPT; n <= ROOM; held = n++) { /* all of the prompt, then one token at a time */
    const int32_t fresh = n - held;
    for (int32_t i = 0; i < fresh; ++i) memcpy(x[i], embeddings[tokens[held + i]], sizeof x[i]);
    layer.q_len = fresh;
    layer.x = fovea_tensor_bhsd(x, FOVEA_F32, 1, fresh, D);
    layer.y = fovea_tensor_bhsd(y, FOVEA_F32, 1, fresh, D);
    for (int l = 0; l < LAYERS; ++l) {
      layer.w_qkv = fovea_tensor_bhsd(w_qkv[l], FOVEA_F32, 1, QKV, D);
      layer.wo = fovea_tensor_bhsd(wo[l], FOVEA_F32, 1, D, HQ * DIM);
      layer.k_cache = fovea_tensor_bhsd(k[l], FOVEA_F32, HKV, ROOM, DIM);
      layer.v_cache = fovea_tensor_bhsd(v[l], FOVEA_F32, HKV, ROOM, DIM);
      if (fovea_mha_forward(&layer, NULL) != FOVEA_OK) return fprintf(stderr, "%s\n", fovea_last_error()), 1;
      for (int32_t i = 0; i < fresh; ++i) { /* a whole model's feed-forward layer follows: fovea_linear */
        for (int d = 0; d < D; ++d) x[i][d] += y[i][d];
      }
    }
    head.x = fovea_tensor_bhsd(x[fresh - 1], FOVEA_F32, 1, 1, D);
    if (fovea_linear(&head, NULL) != FOVEA_OK) return fprintf(stderr, "%s\n", fovea_last_error()), 1;
    for (int32_t t = tokens[n] = 0; t < VOCAB; ++t) {
      if (logits[t] > logits[tokens[n]]) tokens[n] = t;
    }
    printf("%d ", (int)tokens[n]);
  }
  return 0;
}
