/* fovea.h is C99, complete by itself, includable twice, and the basic calls give what they say. Compiled with -std=c99
 * -Wpedantic -Werror, and once more as C++. */
/* clang-format off: fovea.h first, and twice */
#include "fovea/fovea.h"
#include "fovea/fovea.h"
/* clang-format on */

#include <math.h>
#include <stdio.h>
#include <string.h>

/* 64 bytes for ever. */
typedef char tensor_is_64_bytes[sizeof(fovea_tensor) == 64 ? 1 : -1];

static int failures = 0;

static void expect(int condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "header_test: %s\n", what);
  ++failures;
}

int main(void) {
  const tensor_is_64_bytes unused = {0};
  float q[2] = {1, 0}, k[2] = {1, 0}, v[2] = {3, 4}, out[2] = {0, 0}, lse[1] = {0};
  fovea_attention_params params;
  fovea_exec exec;
  fovea_attention_info info;
  fovea_target_info target;
  fovea_rope_params rope;
  fovea_rope_tables_params tables;
  fovea_kv_append_params append;
  fovea_mha_params layer;
  fovea_mha_info layer_info;
  const char *name = NULL, *why = NULL;
  char text[200];
  (void)unused;

  expect(fovea_version() == FOVEA_VERSION, "fovea_version() is the header's");
  expect(strcmp(fovea_version_str(), FOVEA_VERSION_STRING) == 0, "fovea_version_str() is the header's");
  expect(strcmp(fovea_status_str(FOVEA_ERR_UNSUPPORTED), "FOVEA_ERR_UNSUPPORTED") == 0, "fovea_status_str");
  expect(fovea_last_error() != NULL && fovea_last_error()[0] == '\0', "fovea_last_error() is empty at first");

  expect(fovea_attention_params_init(&params, sizeof params) == FOVEA_OK, "fovea_attention_params_init");
  expect(fovea_exec_init(&exec, sizeof exec) == FOVEA_OK, "fovea_exec_init");
  expect(fovea_attention_info_init(&info, sizeof info) == FOVEA_OK, "fovea_attention_info_init");
  expect(fovea_target_info_init(&target, sizeof target) == FOVEA_OK, "fovea_target_info_init");
  expect(fovea_rope_params_init(&rope, sizeof rope) == FOVEA_OK && rope.struct_size == sizeof rope, "fovea_rope_params_init");
  expect(fovea_rope_tables_params_init(&tables, sizeof tables) == FOVEA_OK && tables.base == 10000.0 && tables.yarn_truncate == 1,
         "fovea_rope_tables_params_init");
  expect(fovea_kv_append_params_init(&append, sizeof append) == FOVEA_OK && append.struct_size == sizeof append,
         "fovea_kv_append_params_init");
  expect(fovea_mha_params_init(&layer, sizeof layer) == FOVEA_OK && layer.struct_size == sizeof layer && layer.norm_eps == 1e-6f,
         "fovea_mha_params_init");
  expect(fovea_mha_info_init(&layer_info, sizeof layer_info) == FOVEA_OK, "fovea_mha_info_init");
  expect(params.struct_size == sizeof params && params.scale != params.scale && params.window_left == -1, "defaults");

  params.batch = params.num_q_heads = params.num_kv_heads = params.q_len = params.kv_len = 1;
  params.head_dim = 2;
  params.q = fovea_tensor_bhsd(q, FOVEA_F32, 1, 1, 2);
  params.k = fovea_tensor_bshd(k, FOVEA_F32, 1, 1, 2);
  params.v = fovea_tensor_bhsd(v, FOVEA_F32, 1, 1, 2);
  params.out = fovea_tensor_bhsd(out, FOVEA_F32, 1, 1, 2);
  params.lse = fovea_tensor_bhs(lse, FOVEA_F32, 1, 1);
  exec.error_text = text;
  exec.error_capacity = sizeof text;
  expect(fovea_attention_forward(&params, &exec) == FOVEA_OK && text[0] == '\0', "fovea_attention_forward");
  expect(out[0] == 3 && out[1] == 4, "one key: out is its value");
  expect(fabs((double)lse[0] - 0.70710678) < 1e-6, "one key: lse is its score");
  expect(fovea_attention_describe(&params, &exec, &info) == FOVEA_OK && info.flop == 8, "fovea_attention_describe");
  expect(fovea_get_target(&name, &why) == FOVEA_OK && strcmp(name, info.target) == 0, "fovea_get_target");
  expect(fovea_target_count() > 0 && fovea_get_target_info(0, &target) == FOVEA_OK, "fovea_get_target_info");

  params.head_dim = -5;
  expect(fovea_attention_forward(&params, &exec) == FOVEA_ERR_INVALID_ARGUMENT, "head_dim -5 is refused");
  expect(strstr(text, "head_dim") && strstr(text, "-5"), "the error text names the field and its value");
  expect(strcmp(text, fovea_last_error()) == 0, "error_text is fovea_last_error()");
  return failures != 0;
}
