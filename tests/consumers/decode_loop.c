#include <fovea/fovea.h>
#include <stdio.h>
#include <string.h>

/* A small model: token embeddings, which make the logits too, and layers of attention. */
enum { VOCAB = 1000, LAYERS = 2, D = 256, HQ = 8, HKV = 2, DIM = 32, QKV = (HQ + 2 * HKV) * DIM, ROOM = 64 };
static float embeddings[VOCAB][D], w_qkv[LAYERS][QKV][D], wo[LAYERS][D][HQ * DIM]; /* yours to load */
static float k[LAYERS][HKV][ROOM][DIM], v[LAYERS][HKV][ROOM][DIM], cosine[ROOM][DIM / 2], sine[ROOM][DIM / 2];
static float x[ROOM * D], y[ROOM * D], logits[VOCAB]; /* rows of D */

/* Continues the n tokens of a prompt while there is room: all of them at once, then one at a time. */
static int generate(fovea_mha_params* p, fovea_linear_params* head, int32_t* tokens, int32_t n) {
  for (int32_t held = 0; n <= ROOM; held = n++) { /* held: rows in the caches */
    p->kv_starts = &held, p->q_len = n - held;
    for (int32_t i = held; i < n; ++i) memcpy(&x[(i - held) * D], embeddings[tokens[i]], D * sizeof(float));
    for (int l = 0; l < LAYERS; ++l) {
      p->w_qkv.data = w_qkv[l], p->wo.data = wo[l], p->k_cache.data = k[l], p->v_cache.data = v[l];
      if (fovea_mha_forward(p, NULL) != FOVEA_OK) return 0;
      for (int32_t i = 0; i < (n - held) * D; ++i) x[i] += y[i]; /* the feed-forward layer would follow */
    }
    head->x.data = &x[(n - held - 1) * D];
    if (fovea_linear(head, NULL) != FOVEA_OK) return 0;
    tokens[n] = 0;
    for (int32_t t = 1; t < VOCAB; ++t) tokens[n] = logits[t] > logits[tokens[n]] ? t : tokens[n];
    printf("%d ", (int)tokens[n]);
  }
  return 1;
}

static fovea_tensor f32(const void* data, int64_t heads, int64_t rows, int64_t columns) {
  return fovea_tensor_bhsd(data, FOVEA_F32, heads, rows, columns);
}

int main(void) {
  int32_t tokens[ROOM + 1] = {11, 42, 7}; /* the prompt */
  const fovea_tensor cos = f32(cosine, 1, ROOM, DIM / 2), sin = f32(sine, 1, ROOM, DIM / 2);
  const fovea_rope_tables_params tables = {.struct_size = sizeof tables, .rotary_dim = DIM, .base = 10000,
                                           .num_positions = ROOM, .cos = cos, .sin = sin};
  const fovea_rope_params rope = {.struct_size = sizeof rope, .num_positions = ROOM, .cos = cos, .sin = sin};
  fovea_attention_params options;
  fovea_attention_params_init(&options, sizeof options);
  options.causal = 1;
  fovea_mha_params layer = {.struct_size = sizeof layer, .batch = 1, .d_model = D, .num_q_heads = HQ,
                            .num_kv_heads = HKV, .head_dim = DIM, .capacity = ROOM, .rope = &rope,
                            .attention = &options};
  layer.x = f32(x, 1, ROOM, D), layer.y = f32(y, 1, ROOM, D);
  layer.w_qkv = f32(w_qkv, 1, QKV, D), layer.wo = f32(wo, 1, D, HQ * DIM);
  layer.k_cache = f32(k, HKV, ROOM, DIM), layer.v_cache = f32(v, HKV, ROOM, DIM);
  fovea_linear_params head = {.struct_size = sizeof head, .tokens = 1, .in_features = D};
  head.out_features = VOCAB, head.x = f32(x, 1, 1, D);
  head.w = f32(embeddings, 1, VOCAB, D), head.y = f32(logits, 1, 1, VOCAB);
  if (fovea_rope_tables(&tables, NULL) == FOVEA_OK && generate(&layer, &head, tokens, 3)) return 0;
  fprintf(stderr, "%s\n", fovea_last_error());
  return 1;
}
