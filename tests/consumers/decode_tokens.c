/* decode_loop.c with weights: numbers of a generator that run.py has, too. */
#define main decode_loop
#include "decode_loop.c"
#undef main

/* Uniform in [-size, size). */
static void fill(float* to, size_t count, float size, uint32_t seed) {
  for (size_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    to[i] = ((float)(seed >> 8) / 8388608.0f - 1.0f) * size;
  }
}

int main(void) {
  fill(embeddings[0], sizeof embeddings / sizeof(float), 1.0f, 1);
  fill(w_qkv[0][0], sizeof w_qkv / sizeof(float), 0.25f, 2);
  fill(wo[0][0], sizeof wo / sizeof(float), 0.25f, 3);
  return decode_loop();
}
