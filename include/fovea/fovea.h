/* fovea: softmax(scale * Q K^T + bias, masked) V on CPUs, many heads at once. The whole public C ABI; C99.
 *
 * What is computed, for batch entry (sequence) b, query head h, query row i, key j (both counted within the sequence):
 *
 *   S[i][j]  = scale * dot(Q[i], K[j])                                   scale defaults to 1/sqrt(head_dim)   (RAW)
 *   S[i][j]  = cap * tanh(S[i][j] / cap)                                 if logits_soft_cap > 0       (SOFT_CAPPED)
 *   S[i][j] += bias[i][j] - alibi_slopes[h] * |j - pos(i)|               S below -2.3e38 is -FLT_MAX
 *   S[i][j]  = -inf   where the mask, a bias of -inf, causality, the window or a length forbids j          (BIASED)
 *   P[i][j]  = exp(S[i][j] - LSE[i])                                                                (PROBABILITIES)
 *   O[i]     = sum_j P[i][j] V[j]
 *   LSE[i]   = log(sum_j exp(S[i][j]) + exp(sinks[h]))                   natural logarithm; the sink only where given
 *
 *   pos(i) = i + q_offset (or q_offsets[b])  [+ kv_len_b - q_len_b with FOVEA_Q_ALIGN_BOTTOM_RIGHT], or q_positions[b][i];
 *   with kv_positions, kv_positions[b][j] stands for j here and in ALiBi's distance.
 *   causal: j <= pos(i).   window: pos(i) - window_left <= j <= pos(i) + window_right, -1 leaves a side open.
 *   Query head h reads kv head h / (num_q_heads / num_kv_heads).
 *
 * A row with no permitted key has O = 0 and LSE = -inf (LSE = sink where a sink is given). A key or value that is not
 * permitted is never an operand: NaN or Inf there reaches nothing. lib/NUMERICS.md has the whole contract and its tests.
 *
 * Sources: online softmax, Milakov & Gimelshein 2018 (alg. 3); tiling and LSE, Dao 2023, "FlashAttention-2" (alg. 1);
 * ALiBi, Press et al. 2022 (sec. 3); soft cap, Gemma 2 report 2024 (sec. 2); attention sinks, gpt-oss 2025.
 *
 * A bias above 2.3e38 counts as +inf; a sink of +inf gives O = 0, LSE = +inf, one of -inf is none; a soft cap above 1e30 is none. Of scores
 * beyond +-2.3e38 by Q K^T or ALiBi themselves nothing is promised.
 *
 * Threading: every function may be called from any number of threads at once; calls share nothing but the chosen
 * target and the default exec. No function throws, prints, aborts (an OpenMP runtime may, where the system gives it no
 * threads: name a sensible num_threads) or keeps a pointer after it has returned
 * (fovea_set_default_exec excepted). Results have the same bits for any number of threads, any executor, any
 * batch composition and any strides (k and v with head stride 0 are one kv head: the bits of num_kv_heads = 1); of
 * fovea_linear and fovea_mha_forward those of a token depend on whether the call has more than 8, unless FOVEA_BATCH_INVARIANT.
 * After fork, or loaded in a forked child, calls run on the calling thread: OpenMP's threads did not survive.
 *
 * Every struct begins with struct_size and has an init function that sets it and the defaults: call it first. (Where the caller
 * names all fields whose default is not 0, the initializer {.struct_size = sizeof p, ...} is as good.) Structs grow
 * only at their end; a field added later means "as before" when it is 0. Fields marked RESERVED are part of the layout but
 * not of this version: anything but their default is FOVEA_ERR_UNSUPPORTED, by name. */
#ifndef FOVEA_FOVEA_H_
#define FOVEA_FOVEA_H_

#include <stddef.h>
#include <stdint.h>

#include "fovea/export.h"
#include "fovea/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status ------------------------------------------------------------------------------------------------------- */

typedef int32_t fovea_status;
enum {
  FOVEA_OK = 0,
  FOVEA_ERR_INVALID_ARGUMENT = 1,    /* a field has a value that no version would take; nothing was written */
  FOVEA_ERR_UNSUPPORTED = 2,         /* a meaningful value that this version does not do; nothing was written */
  FOVEA_ERR_TARGET_UNAVAILABLE = 3,  /* the named instruction set is unknown, not compiled in, or not on this CPU */
  FOVEA_ERR_OUT_OF_MEMORY = 4,       /* the library's own workspace could not be had; nothing was written */
  FOVEA_ERR_WORKSPACE_TOO_SMALL = 5  /* the caller's workspace is below the call's workspace_size() */
};

/* The status as text, such as "FOVEA_ERR_UNSUPPORTED"; "unknown fovea_status" for other numbers. Never NULL. */
FOVEA_API const char* fovea_status_str(fovea_status status);

/* What the last failing call of this thread found: the field, its value, and what was wanted. Never NULL, "" before the
 * first failure; not cleared by success. Valid until this thread's next fovea call that fails. */
FOVEA_API const char* fovea_last_error(void);

/* FOVEA_VERSION of the library at run time, and its text "major.minor.patch". */
FOVEA_API int32_t fovea_version(void);
FOVEA_API const char* fovea_version_str(void);

/* ---- Tensors ------------------------------------------------------------------------------------------------------ */

/* Where q, k and v are all BF16, kernels of AVX3_BF16 and NEON_BFDOT round P to bf16 and take subnormals of bf16 as 0: lib/NUMERICS.md. */
typedef int32_t fovea_dtype;
enum {
  FOVEA_DTYPE_NONE = 0, /* an absent optional tensor */
  FOVEA_F32 = 1,
  FOVEA_BF16 = 2,    /* storage of q, k, v, out and bias, in any mix; arithmetic is f32 (but see above). Rounded to nearest, ties to even; */
  FOVEA_F16 = 3,     /* NaN stays NaN, subnormals are kept, f16 out past 65504 is Inf */
  FOVEA_U8 = 4,      /* boolean mask */
  FOVEA_F64 = 5,     /* RESERVED */
  FOVEA_I8 = 6,      /* storage of k and v, with scales: see k_scale */
  FOVEA_F8E4M3 = 7,  /* RESERVED */
  FOVEA_F8E5M2 = 8,  /* RESERVED */
  FOVEA_Q8_0 = 9     /* RESERVED */
};
FOVEA_API const char* fovea_dtype_str(fovea_dtype dtype); /* "F32"; "unknown fovea_dtype" for other numbers */

/* A strided view of the caller's memory; 64 bytes for ever. Element (b, h, i, c) lies at
 * data + b * stride_batch + h * stride_head + i * stride_row + c * stride_col, strides in elements. Stride 0 broadcasts an
 * input. Strides may be negative. data needs its element's alignment only, and may be NULL where an extent is 0. */
typedef struct fovea_tensor {
  void* data;
  fovea_dtype dtype;
  int32_t reserved; /* 0 */
  int64_t stride_batch;
  int64_t stride_head;
  int64_t stride_row;
  int64_t stride_col; /* read for mask, bias and scores; elsewhere columns are contiguous: 0 or 1 */
  int64_t reserved1;  /* 0 */
  int64_t reserved2;  /* 0 */
} fovea_tensor;

/* Contiguous layouts; const is cast away, inputs are never written.
 * bhsd: [batch][heads][rows][cols]. bshd: [batch][rows][heads][cols]. bhs: [batch][heads][rows], for lse.
 * In a packed tensor (cu_seqlens) the row counts through the whole buffer and stride_batch is not read. */
FOVEA_API fovea_tensor fovea_tensor_bhsd(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows, int64_t cols);
FOVEA_API fovea_tensor fovea_tensor_bshd(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows, int64_t cols);
FOVEA_API fovea_tensor fovea_tensor_bhs(const void* data, fovea_dtype dtype, int64_t heads, int64_t rows);

/* ---- Attention ---------------------------------------------------------------------------------------------------- */

typedef int32_t fovea_q_align;
enum {
  FOVEA_Q_ALIGN_TOP_LEFT = 0,    /* query 0 stands at key 0 */
  FOVEA_Q_ALIGN_BOTTOM_RIGHT = 1 /* the last query stands at the last key: decoding, chunked prefill */
};
FOVEA_API const char* fovea_q_align_str(fovea_q_align align);

typedef int32_t fovea_mask_align;
enum {
  FOVEA_MASK_ALIGN_LEFT = 0, /* column c is key c; keys at and past mask_kv_len are forbidden */
  FOVEA_MASK_ALIGN_RIGHT = 1 /* the last column is the sequence's last key; earlier keys are permitted, bias 0 */
};
FOVEA_API const char* fovea_mask_align_str(fovea_mask_align align);

typedef int32_t fovea_scores_stage;
enum {
  FOVEA_SCORES_NONE = 0,
  FOVEA_SCORES_RAW = 1,           /* scale * Q K^T, every key of the sequence, permitted or not */
  FOVEA_SCORES_SOFT_CAPPED = 2,   /* after the soft cap (as RAW without one), every key, permitted or not */
  FOVEA_SCORES_BIASED = 3,        /* after bias and ALiBi; -inf where forbidden */
  FOVEA_SCORES_PROBABILITIES = 4  /* the weights; 0 where forbidden */
};
FOVEA_API const char* fovea_scores_stage_str(fovea_scores_stage stage);

typedef struct fovea_attention_params {
  uint64_t struct_size; /* set by fovea_attention_params_init */

  /* Extents. Any positive number, lengths may be 0; lengths at most 2^30 - 1. num_kv_heads divides num_q_heads; num_q_heads / num_kv_heads
   * times q_len (total_q where packed) above 2^31 - 1 is FOVEA_ERR_UNSUPPORTED.
   * Padded: q_len and kv_len are the rows that the tensors hold per sequence. On a packed side (cu_seqlens) they are only an
   * upper bound for each sequence's length and may be 0 (not checked); scores need kv_len as their column count. Paged keys: kv_len
   * is the length of a sequence without kv_lens. */
  int64_t batch;
  int64_t num_q_heads;
  int64_t num_kv_heads;
  int64_t q_len;
  int64_t kv_len;
  int64_t head_dim;   /* columns of q and k; batch, num_kv_heads and the head dims are below 2^30 */
  int64_t v_head_dim; /* columns of v and out; 0 means head_dim */

  /* Inputs and outputs. Inputs may overlap one another. An output overlaps nothing, itself included (no stride 0 where its
   * extent is over 1): FOVEA_ERR_INVALID_ARGUMENT. Rows past a sequence's q_len are not written. */
  fovea_tensor q;      /* F32, BF16 or F16, as k, v and out, each its own; [batch][num_q_heads][q_len][head_dim] */
  fovea_tensor k;      /* or I8; [batch][num_kv_heads][kv_len][head_dim] */
  fovea_tensor v;      /* or I8; [batch][num_kv_heads][kv_len][v_head_dim] */
  fovea_tensor out;    /* [batch][num_q_heads][q_len][v_head_dim] */
  fovea_tensor lse;    /* optional output, F32 [batch][num_q_heads][q_len] */
  fovea_tensor scores; /* optional output, F32 [batch][num_q_heads][q_len][kv_len], see scores_stage; columns past a
                          sequence's own kv_len hold -inf, or 0 for PROBABILITIES */
  fovea_tensor mask;   /* optional, U8 [batch][num_q_heads][q_len][mask_kv_len], non-zero = may attend */
  fovea_tensor bias;   /* optional, F32, BF16 or F16, as mask; added to S. -inf forbids; +inf makes its row NaN */

  int32_t scores_stage; /* fovea_scores_stage; not NONE exactly if scores is given */
  float scale;          /* sm_scale; NaN (the default) means 1/sqrt(head_dim). Finite */
  float logits_soft_cap; /* 0 = none; else positive and finite */
  int32_t causal;       /* 0 or 1 */
  int32_t q_align;      /* fovea_q_align */
  int32_t mask_align;   /* fovea_mask_align, for mask and bias */
  int64_t q_offset;     /* added to every pos(i), may be negative; |q_offset| < 2^30, every pos(i) within +-2^30 */
  const int32_t* q_offsets; /* optional [batch], instead of q_offset (which must be 0 then) */
  int64_t window_left;  /* -1 = open. A "sliding window of W" of other libraries is window_left = W - 1 */
  int64_t window_right; /* -1 = open */

  /* Columns that mask and bias have: 0 means kv_len (each sequence's own kv_len on a packed side). May be less or more than kv_len. */
  int64_t mask_kv_len;
  /* Optional [batch]: the row of mask and bias at which sequence b begins; element (b, h, i, c) of them lies in row
   * mask_offsets[b] + i of batch entry b. NULL = 0. With packed queries and stride_batch = 0, pass cu_seqlens_q. Not negative. */
  const int32_t* mask_offsets;

  const float* alibi_slopes;   /* optional [batch][num_q_heads], at most 1e38 in size */
  int64_t alibi_stride_batch;  /* elements between batch entries; 0 shares one row of slopes */
  const float* sinks;          /* optional [num_q_heads]: a logit that takes part in the softmax and has no value */

  /* Lengths, int32. On each side at most one of lens (padded) and cu_seqlens (packed). Values: 0 <= len <= the side's
   * length; cu_seqlens[0] = 0, non-decreasing, cu_seqlens[batch] <= total. */
  const int32_t* q_lens;        /* optional [batch] */
  const int32_t* kv_lens;       /* optional [batch] */
  const int32_t* cu_seqlens_q;  /* optional [batch + 1]: sequence b has rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1] - 1 of q,
                                   out, lse and scores, whose stride_batch is not read */
  const int32_t* cu_seqlens_kv; /* optional [batch + 1], for k and v */
  int64_t total_q;              /* rows of the packed q, out, lse, scores; 0 without cu_seqlens_q */
  int64_t total_kv;             /* rows of the packed k, v; 0 without cu_seqlens_kv */

  /* A paged cache (vLLM's block tables; Kwon et al. 2023, "PagedAttention"). k and v are [num_pages][num_kv_heads][page_size][dim],
   * stride_batch the distance between pages; kv_len is an upper bound of each sequence's length, kv_lens gives them; not with
   * cu_seqlens_kv. Key j of sequence b is row j % page_size of page block_table[b * block_table_stride + j / page_size]. Pages lie
   * in any order and may be shared, within a sequence and between them. Only entries of keys that some row may attend to must be
   * pages, in [0, num_pages); others may hold anything (where neither length, causality nor window let a row need them they are not
   * read, unless there are positions), but scores RAW and SOFT_CAPPED need every key. An entry that is needed and is no page is
   * FOVEA_ERR_INVALID_ARGUMENT. The same bits as from a contiguous copy. All 0 without block_table. */
  const int32_t* block_table; /* [batch][block_table_stride] page numbers */
  int64_t block_table_stride; /* 0: one row for all sequences (attention alone takes it so); else at least the pages of the longest sequence */
  int64_t num_pages;          /* below 2^31 (2^30 in fovea_kv_append_params and fovea_mha_params), may be 0 */
  int64_t page_size;          /* keys of a page, any positive number below 2^30 */

  /* Where queries and keys stand, each optional: q_positions replaces pos(i), kv_positions j, in causality, window and ALiBi (ring
   * buffers of keys, shared caches, trees of drafts); columns of mask, bias and scores, lengths and pages go on counting rows. In any
   * order, the same place more than once. On a packed side they lie as its rows do, [total_q] or [total_kv], and the stride is 0. The
   * bits of the same call without, where they are the rows' own order, with FOVEA_BATCH_INVARIANT. */
  const int32_t* q_positions;  /* [batch][q_positions_stride], above -2^30 and below 2^30; with q_offset 0, no q_offsets, q_align TOP_LEFT */
  const int32_t* kv_positions; /* [batch][kv_positions_stride], below 2^30; a key at a negative one is forbidden */
  int64_t q_positions_stride;  /* 0: one row for all sequences; else at least the rows of the longest */
  int64_t kv_positions_stride; /* likewise */

  /* Scales of I8 keys and values, F32 each, optional inputs, absent where the tensor is not I8. Element c of key j is
   *   k[j][c] * k_scale[j] * k_channel_scale[c]   and of its value   v[j][c] * v_scale[j],   a factor that is absent being 1.
   * k_scale and v_scale lie as the rows of k and v do: padded, packed, or in pages [num_pages][num_kv_heads][page_size]; stride 0
   * broadcasts (stride_row: one scale per head). No value is checked; NaN or Inf in the scale of a key that is not permitted reaches nothing.
   * fovea_kv_append writes such a cache. Where it rounds is in lib/NUMERICS.md. Source: Dettmers et al. 2022, "LLM.int8()", sec. 2 (absmax, per row);
   * Liu et al. 2024, "KIVI", sec. 3 (keys per channel). */
  fovea_tensor k_scale;         /* [batch][num_kv_heads][kv_len] */
  fovea_tensor v_scale;         /* [batch][num_kv_heads][kv_len] */
  fovea_tensor k_channel_scale; /* [batch][num_kv_heads][1][head_dim], of sequences, paged and packed or not */

  /* RESERVED: dropout. */
  float dropout_p;
  int32_t reserved; /* 0 */
  uint64_t dropout_seed;
  uint64_t dropout_offset;
} fovea_attention_params;

/* Zeroes size bytes, sets struct_size and the defaults: scale NaN, window_left and window_right -1. size is
 * sizeof(fovea_attention_params) in the caller's header. NULL or a size below 8 is FOVEA_ERR_INVALID_ARGUMENT. */
FOVEA_API fovea_status fovea_attention_params_init(fovea_attention_params* params, size_t size);

/* ---- Execution ---------------------------------------------------------------------------------------------------- */

enum {
  /* A row's bits do not depend on q_len either (a chunked prefill equals a whole one, a decode step equals the row of a
   * prefill). Without it calls of few rows take a faster path that rounds differently. */
  FOVEA_BATCH_INVARIANT = 1
};

/* Calls task(arg, i) once for each i in [0, n), on any threads, in any order, and returns when all have returned. Tasks
 * never wait for one another, so running them serially is legal. It must not throw. */
typedef void (*fovea_parallel_for)(void* ctx, int64_t n, void (*task)(void* arg, int64_t i), void* arg);

typedef struct fovea_exec {
  uint64_t struct_size;
  int32_t num_threads; /* 0 = all that OpenMP would use (for a caller's parallel_for: all CPUs); at most 1024 */
  uint32_t flags;      /* FOVEA_BATCH_INVARIANT or 0 */
  fovea_parallel_for parallel_for; /* NULL = OpenMP (or serial where built without, and in a forked child) */
  void* parallel_for_ctx;
  void* workspace;        /* NULL = the library takes memory for the call and frees it. Any alignment; overlaps no tensor (not checked) */
  size_t workspace_bytes; /* at least fovea_attention_workspace_size(); nothing is allocated then */
  char* error_text;       /* optional: the text of fovea_last_error() for this call, zero-terminated, cut to the capacity;
                             "" on success */
  size_t error_capacity;
} fovea_exec;

FOVEA_API fovea_status fovea_exec_init(fovea_exec* exec, size_t size); /* as fovea_attention_params_init */

/* The exec that calls with exec == NULL use; NULL restores OpenMP on all cores. The struct is copied, what it points to is
 * not; its workspace and error_text must be NULL, since calls from several threads would share them. */
FOVEA_API fovea_status fovea_set_default_exec(const fovea_exec* exec);

/* Bytes of workspace that fovea_attention_forward and fovea_attention_plan need for these shapes, strides, dtypes, pages (or none, and their
 * size), scores_stage, threads, flags and the chosen target. Reads arrays of lengths, offsets and positions, but no tensor's data. Monotone in
 * every length and in batch, and from kv_len 2 on does not grow with kv_len (strides of one row say nothing): ask once for the largest shapes. So,
 * but with FOVEA_BATCH_INVARIANT, it grows with batch * num_kv_heads whether or not a sequence is long enough to be split over its keys: each kv
 * head has room for 32 parts of each of its query rows, in all for up to 1024 / num_kv_heads of them (at least 1, at most 256), v_head_dim floats
 * each. num_threads = 0 is resolved anew at each call: name a number to be sure. */
FOVEA_API fovea_status fovea_attention_workspace_size(const fovea_attention_params* params, const fovea_exec* exec,
                                                      size_t* bytes);

/* Attention as above. Every argument is checked before anything is written. Inside a caller's OpenMP parallel region it runs on
 * the calling thread. */
FOVEA_API fovea_status fovea_attention_forward(const fovea_attention_params* params, const fovea_exec* exec);

/* ---- Plan and run, for engines that stand in threads of their own ------------------------------------------------- */

typedef struct fovea_plan fovea_plan;

/* Checks params and writes a plan into mem (fovea_attention_workspace_size() bytes, any alignment). *plan points into mem. It
 * serves any params of the same shapes, strides, options and lengths (contents of arrays included) with other data
 * pointers, such as all layers of a model, and another block_table (num_pages and page_size the same) and other positions; the
 * target is fixed here, exec->workspace is not used. It holds the scratch of exec->num_threads workers: one run of it at a time. */
FOVEA_API fovea_status fovea_attention_plan(const fovea_attention_params* params, const fovea_exec* exec, void* mem,
                                            size_t bytes, const fovea_plan** plan);
/* Phases run one after another; the tasks of a phase are independent. */
FOVEA_API int32_t fovea_plan_phases(const fovea_plan* plan);
FOVEA_API int64_t fovea_plan_tasks(const fovea_plan* plan, int32_t phase);
FOVEA_API int32_t fovea_plan_workers(const fovea_plan* plan);
/* Runs tasks [begin, end) of a phase on the calling thread. worker in [0, fovea_plan_workers()): its scratch, used by one
 * thread at a time. All tasks of a phase must have returned before the next phase begins. */
FOVEA_API fovea_status fovea_attention_run_tasks(const fovea_plan* plan, const fovea_attention_params* params,
                                                 int32_t phase, int64_t begin, int64_t end, int32_t worker);

/* ---- What would run ----------------------------------------------------------------------------------------------- */

typedef struct fovea_attention_info {
  uint64_t struct_size;
  char target[32];          /* "AVX2" */
  char kernels[160];        /* "prefill_f32_4x24 decode_f32 merge_f32 scores_f32": those that would run; tile keys x lanes */
  char conversions[64];     /* "none", or what is converted as it is read or written: "q BF16, k I8, v I8, out F16" */
  int32_t num_threads;
  int32_t phases;
  int64_t tasks;            /* of all phases */
  uint64_t workspace_bytes;
  double flop;              /* useful: 2 (head_dim + v_head_dim) per (query, key) pair that lengths, causality and window permit */
  double flop_executed;     /* of all lanes of all blocks that run, after skipping what is dead, mask and bias read for it.
                               Scores out adds its own pass over Q K^T */
  double bytes;             /* of q, k, v and the scales of their rows, out, read or written once */
} fovea_attention_info;

FOVEA_API fovea_status fovea_attention_info_init(fovea_attention_info* info, size_t size);
/* Checks params as fovea_attention_forward does (data pointers included), and fills info; reads mask and bias, not q, k, v. */
FOVEA_API fovea_status fovea_attention_describe(const fovea_attention_params* params, const fovea_exec* exec,
                                                fovea_attention_info* info);

/* ---- Linear ------------------------------------------------------------------------------------------------------- */

/* y = x W^T + bias, a projection of a transformer layer (torch.nn.functional.linear):
 *   y[t][o] = sum_i x[t][i] * w[o][i] + bias[o]       summed in f32; lib/NUMERICS.md has the order and the error bound
 * x, w and y are matrices: stride_row is free (negative, and 0 for inputs, included), columns are contiguous, stride_batch and
 * stride_head are not read. Inputs may overlap one another; y overlaps nothing. NaN or Inf in a token reaches its own row of y,
 * in a row of w its own column. x, w, bias and y are F32, BF16 or F16 each, in any mix; y is rounded once.
 * Up to 8 tokens are dot products over w where it lies, read once at the speed of memory; more take the register tile of
 * attention, blocked. With FOVEA_BATCH_INVARIANT all calls do, and a token's bits do not depend on how many share the call.
 * Source: Van Zee & van de Geijn 2015, "BLIS". */
typedef struct fovea_linear_params {
  uint64_t struct_size; /* set by fovea_linear_params_init */
  int64_t tokens;       /* may be 0; at most 2^30 - 1, as are the two below */
  int64_t in_features;  /* positive */
  int64_t out_features; /* positive */
  fovea_tensor x;       /* [tokens][in_features] */
  fovea_tensor w;       /* [out_features][in_features], as torch.nn.Linear.weight */
  fovea_tensor bias;    /* optional, [out_features], contiguous */
  fovea_tensor y;       /* [tokens][out_features] */
} fovea_linear_params;

FOVEA_API fovea_status fovea_linear_params_init(fovea_linear_params* params, size_t size); /* as fovea_attention_params_init */

/* Bytes of exec->workspace that fovea_linear needs for these extents, dtypes, threads, flags and the chosen target; reads no data. Monotone
 * in tokens. */
FOVEA_API fovea_status fovea_linear_workspace_size(const fovea_linear_params* params, const fovea_exec* exec, size_t* bytes);

/* Every argument is checked before anything is written. The same bits for any number of threads, any executor, any strides; threads, fork and
 * OpenMP regions as in fovea_attention_forward. */
FOVEA_API fovea_status fovea_linear(const fovea_linear_params* params, const fovea_exec* exec);

/* ---- Merge -------------------------------------------------------------------------------------------------------- */

/* Joins n partial results over disjoint sets of keys (threads, devices, hosts), in their order:
 *   lse = log(sum_p exp(lses[p])),  out = sum_p exp(lses[p] - lse) outs[p]
 * outs[p], out: F32, BF16 or F16, each its own, [batch][num_heads][rows][v_head_dim]; lses[p], lse: F32
 * [batch][num_heads][rows]; lse may be NULL. A part with LSE = -inf is not an operand; all parts so: out = 0, lse = -inf. out may
 * be outs[0] and lse lses[0], exactly; other overlap of outputs is an error. Give sinks to exactly one part. NaN reaches its own row only.
 * Source: Dao et al. 2023, "Flash-Decoding"; Ye et al. 2025, "FlashInfer", sec. 2.2. */
FOVEA_API fovea_status fovea_attention_merge(int32_t n, const fovea_tensor* outs, const fovea_tensor* lses, int64_t batch,
                                             int64_t num_heads, int64_t rows, int64_t v_head_dim, const fovea_tensor* out,
                                             const fovea_tensor* lse, const fovea_exec* exec);

/* ---- RoPE --------------------------------------------------------------------------------------------------------- */

/* Rotary position embedding. For row i of sequence b at position pos, with n = rotary_dim / 2 and j < n:
 *
 *   out[a] = cos[pos][j] * x[a] - sin[pos][j] * x[c]       half-split (interleaved = 0): a = j,  c = j + n
 *   out[c] = sin[pos][j] * x[a] + cos[pos][j] * x[c]       interleaved:                  a = 2j, c = 2j + 1
 *
 * and out[d] = x[d] for d >= rotary_dim. Half-split is the layout of GPT-NeoX and of Hugging Face's models, interleaved
 * that of RoFormer, GPT-J and Meta's Llama. Source: Su et al. 2021, "RoFormer", eq. 34; ONNX RotaryEmbedding-23.
 *
 * ONNX's caches [positions][n] with position_ids are table_batch = 1; its caches [batch][q_len][n] without are
 * table_batch = batch, position_offset = 0. Its input [batch][q_len][heads * head_dim] is fovea_tensor_bshd().
 * Each tensor is F32, BF16 or F16. */
typedef struct fovea_rope_params {
  uint64_t struct_size; /* set by fovea_rope_params_init */

  int64_t batch;
  int64_t num_heads;  /* of x: query heads or kv heads */
  int64_t q_len;      /* rows that x holds per sequence; lengths are those of fovea_attention_params, q's or k's */
  int64_t head_dim;
  int64_t rotary_dim; /* even, at most head_dim; 0 means head_dim */

  fovea_tensor x;   /* [batch][num_heads][q_len][head_dim] */
  fovea_tensor out; /* output, as x; exactly x (data, dtype, strides) = in place, other overlap is an error */
  fovea_tensor cos; /* [table_batch][1][num_positions][rotary_dim / 2]; stride_head is not read */
  fovea_tensor sin; /* as cos */
  int64_t num_positions; /* rows of the tables. Every position that is used must be in [0, num_positions) */
  int64_t table_batch;   /* 0 or 1: one table for all sequences, stride_batch is not read; batch: one for each */
  int32_t interleaved;   /* 0 or 1 */
  int32_t reserved;      /* 0 */

  /* Position of row i of sequence b: position_ids[b][i] where given (packed: position_ids[row of x]), else
   * i + position_offsets[b] where given, else i + position_offset. At most one of the three is given. */
  int64_t position_offset;
  const int32_t* position_offsets; /* optional [batch] */
  const int32_t* position_ids;     /* optional [batch][position_ids_stride], or [total_q] with cu_seqlens_q */
  int64_t position_ids_stride;     /* at least q_len, or 0: one row of ids for all. Not read with cu_seqlens_q */

  const int32_t* q_lens;       /* optional [batch]: rows past a sequence's q_lens[b] are neither read nor written */
  const int32_t* cu_seqlens_q; /* optional [batch + 1], packed, as in fovea_attention_params */
  int64_t total_q;             /* rows of the packed x and out; 0 without cu_seqlens_q */
} fovea_rope_params;

FOVEA_API fovea_status fovea_rope_params_init(fovea_rope_params* params, size_t size); /* zeroes, sets struct_size */

/* Rotates x. Every argument, position ids included, is checked before anything is written. Rows are independent: NaN
 * and Inf reach their own pair of columns only. Arithmetic is f32: a product, then a fused multiply-add where the target
 * has one; both layouts have the same bits. Columns past rotary_dim keep theirs where x and out are of one dtype.
 * exec: threads and error_text are used. */
FOVEA_API fovea_status fovea_rope(const fovea_rope_params* params, const fovea_exec* exec);

typedef int32_t fovea_rope_scaling;
enum {
  FOVEA_ROPE_SCALING_NONE = 0,
  FOVEA_ROPE_SCALING_LINEAR = 1,      /* Chen et al. 2023, "Position Interpolation" */
  FOVEA_ROPE_SCALING_NTK = 2,         /* "NTK-aware", bloc97 2023; Peng et al. 2023, "YaRN", sec. 3.1 */
  FOVEA_ROPE_SCALING_DYNAMIC_NTK = 3, /* emozilla 2023; "YaRN", sec. 3.3, as Hugging Face's "dynamic" */
  FOVEA_ROPE_SCALING_YARN = 4,        /* "YaRN", sec. 3.2 and 3.4, as its authors' code and Hugging Face's "yarn" */
  FOVEA_ROPE_SCALING_LLAMA3 = 5       /* apply_scaling of Meta's reference implementation of Llama 3.1 */
};
FOVEA_API const char* fovea_rope_scaling_str(fovea_rope_scaling scaling);

typedef struct fovea_rope_tables_params {
  uint64_t struct_size; /* set by fovea_rope_tables_params_init */

  int64_t rotary_dim;     /* even */
  int64_t first_position; /* position of row 0, not negative */
  int64_t num_positions;  /* rows; first_position + num_positions is at most 2^30 */
  fovea_tensor cos;       /* output [1][1][num_positions][rotary_dim / 2] */
  fovea_tensor sin;       /* output, as cos */

  double base;                   /* theta, 10000 by init; above 1 */
  int32_t scaling;               /* fovea_rope_scaling */
  int32_t yarn_truncate;         /* 1 by init: YaRN's range of dimensions is rounded outwards; 0 as gpt-oss has it */
  double factor;                 /* s below: 1 by init, at least 1; used by all but NONE */
  int64_t original_max_position; /* L: the context length before scaling; DYNAMIC_NTK, YARN, LLAMA3 */
  int64_t seq_len;               /* DYNAMIC_NTK: the length that the table is made for; up to L nothing is scaled */
  double beta_fast;              /* YARN: 32 by init, above beta_slow */
  double beta_slow;              /* YARN: 1 by init, positive */
  double low_freq_factor;        /* LLAMA3: 1 by init, positive */
  double high_freq_factor;       /* LLAMA3: 4 by init, above low_freq_factor */
  double attention_factor;       /* m, multiplies both tables; 0 by init: 0.1 ln(s) + 1 for YARN (eq. 22), else 1 */
} fovea_rope_tables_params;

FOVEA_API fovea_status fovea_rope_tables_params_init(fovea_rope_tables_params* params, size_t size);

/* Fills cos[i][j] = m * cos((first_position + i) * w[j]) and sin likewise, m = attention_factor, with d = rotary_dim and
 *
 *   t[j] = base^(-2j / d)                                                          RoFormer, sec. 3.2.2
 *   NONE         w[j] = t[j]
 *   LINEAR       w[j] = t[j] / s
 *   NTK          w[j] = t[j] with base * s^(d / (d - 2)) for base (d = 2: base itself)
 *   DYNAMIC_NTK  the same with s * l / L - (s - 1) for s, l = max(seq_len, L)
 *   YARN         w[j] = r t[j] / s + (1 - r) t[j],  r = clamp((j - D(beta_fast)) / (D(beta_slow) - D(beta_fast)), 0, 1),
 *                D(b) = d ln(L / (2 pi b)) / (2 ln base); with yarn_truncate D(beta_fast) is rounded down and
 *                D(beta_slow) up; the former is at least 0, the latter at most d - 1
 *   LLAMA3       w[j] = (1 - r) t[j] / s + r t[j],
 *                r = clamp((L t[j] / (2 pi) - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
 *
 * Computed in f64 and rounded once: an angle is within position * 2^-50 of its formula, so that F32 tables are within
 * half an ulp of m, and m * 1e-9, of it at position 10^6. YaRN's paper has its ramp over wavelengths (sec. 3.2); models
 * are trained with its code's, over dimensions, which is this. DeepSeek's mscale and mscale_all_dim: pass the ratio of
 * the two as attention_factor. Each table is F32, BF16 or F16. exec: threads and error_text are used. */
FOVEA_API fovea_status fovea_rope_tables(const fovea_rope_tables_params* params, const fovea_exec* exec);

/* ---- KV cache ----------------------------------------------------------------------------------------------------- */

/* New rows of k and v, and the cache that they go into. Row i of sequence b goes to one of
 *
 *   contiguous:   row kv_starts[b] + i of batch entry b of the cache, [batch][num_kv_heads][capacity][dim]
 *   block_table:  n = kv_starts[b] + i: row n % page_size of page block_table[b][n / page_size]
 *   slot_mapping: n = slot_mapping[b][i] (packed: [row of k_new]): row n % page_size of page n / page_size; n = -1 skips
 *                 the row
 *
 * A paged cache is [num_pages][num_kv_heads][page_size][dim]: stride_batch is the distance between pages. By strides a
 * page may hold its rows before its heads. Rows that go to one place are written in order, by sequence and then by row,
 * so that the last one stays, for any number of threads. So a ring of pages for a sliding window is a block_table whose
 * entries repeat (or a slot_mapping that wraps), and an append may be longer than the ring. Attention then sees what is left:
 * for fovea_mha_forward, which appends all new rows before it attends, a ring must hold the window and q_len rows. */
typedef struct fovea_kv_append_params {
  uint64_t struct_size; /* set by fovea_kv_append_params_init */

  int64_t batch;
  int64_t num_kv_heads;
  int64_t q_len;      /* rows that k_new and v_new hold per sequence; the query lengths of fovea_attention_params */
  int64_t head_dim;   /* columns of k */
  int64_t v_head_dim; /* columns of v; 0 means head_dim */

  /* k alone or v alone is fine: k_new and k_cache are both given or both absent, so are v_new and v_cache. An output
   * overlaps nothing. Each is F32, BF16 or F16, a cache also I8. Where cache and new rows differ in dtype, values are
   * rounded to nearest even; else their bits are kept. */
  fovea_tensor k_new;   /* [batch][num_kv_heads][q_len][head_dim] */
  fovea_tensor v_new;   /* [batch][num_kv_heads][q_len][v_head_dim] */
  fovea_tensor k_cache; /* output */
  fovea_tensor v_cache; /* output */

  const int32_t* q_lens;       /* optional [batch]: rows past a sequence's q_lens[b] are not appended */
  const int32_t* cu_seqlens_q; /* optional [batch + 1], packed k_new and v_new */
  int64_t total_q;             /* rows of the packed k_new, v_new; 0 without cu_seqlens_q */

  const int32_t* kv_starts; /* [batch] rows that the cache holds already; NULL = 0. NULL with slot_mapping */
  int64_t capacity;         /* rows per sequence of a contiguous cache; 0 for a paged one */

  const int32_t* block_table; /* [batch][block_table_stride] page numbers; only entries that are written to are read */
  int64_t block_table_stride; /* 0, one row for all to attention, leaves no room here */
  int64_t num_pages;          /* below 2^30, may be 0 */
  int64_t page_size;          /* positive, below 2^30 */
  const int32_t* slot_mapping; /* [batch][slot_mapping_stride], or [total_q] with cu_seqlens_q */
  int64_t slot_mapping_stride; /* at least q_len. Not read with cu_seqlens_q */

  /* Optional: rotates k on its way, as fovea_rope would. Its rotary_dim, tables, interleaved and positions are read;
   * batch, num_heads, q_len, head_dim, x, out, q_lens, cu_seqlens_q and total_q must be 0: they are those of this struct.
   * Positions of skipped rows are not read. kv_starts are position_offsets as a rule. */
  const fovea_rope_params* rope;

  /* An I8 cache, whose scales are outputs too, F32, [batch][num_kv_heads][capacity] or [num_pages][num_kv_heads][page_size];
   * required there, absent elsewhere. Each new row x of a head, rotated if it is to be, is quantized by itself:
   *   y[c] = x[c] / k_channel_scale[c] (k only, where given);  scale = max_c |y[c]| / 127;  i8[c] = y[c] / scale
   * to nearest, ties to even, within +-127 (0 where scale is 0), in f32: an element is off by at most scale / 2 + 2^-16 scale
   * (times its channel's scale), where scale is a normal number. A row with NaN or Inf in it gets scale NaN and zeros, so that what attends to it
   * is NaN. Dims are at most 4096 then (FOVEA_ERR_UNSUPPORTED). */
  fovea_tensor k_scale;
  fovea_tensor v_scale;
  fovea_tensor k_channel_scale; /* optional input, F32 [batch][num_kv_heads][1][head_dim], finite, not 0; only with an I8 k_cache */
} fovea_kv_append_params;

/* Zeroes, sets struct_size. */
FOVEA_API fovea_status fovea_kv_append_params_init(fovea_kv_append_params* params, size_t size);

/* Writes the rows. Every argument, table entries and slots included, is checked before anything is written. exec:
 * threads and error_text are used. Source of the conventions: vLLM's reshape_and_cache (slot_mapping), FlashInfer's
 * append_paged_kv_cache (block_table). */
FOVEA_API fovea_status fovea_kv_append(const fovea_kv_append_params* params, const fovea_exec* exec);

/* ---- The multi-head layer ----------------------------------------------------------------------------------------- */

/* A transformer's attention layer over new tokens:
 *
 *   q = x Wq^T + bq,  k = x_kv Wk^T + bk,  v = x_kv Wv^T + bv      x_kv is x itself unless given; split into heads
 *   q, k = RMS norm of each head's columns                         where q_norm, k_norm are given
 *   q, k = rotated                                                 where rope is given
 *   k and v are appended to the cache, where one is given          rounded to its dtypes; attention then reads the cache
 *   o = attention(q, k, v)                                         every option of fovea_attention_params
 *   y = concat(heads of o) Wo^T + bo
 *
 * RMS norm: x[d] / sqrt(mean_d x[d]^2 + norm_eps) * norm[d]. q, k, v, o are f32 in the workspace; y and the cache are rounded
 * once. Where x and both caches are BF16, or all F16, q is rounded to that type too, once, after its norm and rotation, so that
 * attention has a kernel of that type to take. Sources: Vaswani et al. 2017, "Attention is all you need", sec. 3.2.2; GQA, Ainslie
 * et al. 2023; norms of q and k, Henry et al. 2020, and Qwen3.
 *
 * Positions. Self-attention (no x_kv): row i of sequence b stands at kv_starts[b] + i (0 + i without a cache), for causality,
 * windows, ALiBi and, unless rope says otherwise, RoPE. With x_kv: as attention's q_align and q_offset(s) say, for the same; and row i
 * of x_kv is rotated by kv_starts[b] + i, unless kv_rope says otherwise. (q_positions and kv_positions are not RoPE's.)
 *
 * Keys. Without a cache: the rows of x or x_kv, of which kv_lens may leave the first so many. With one: all rows of a
 * sequence, those it held (kv_starts) and the new ones. */
typedef struct fovea_mha_params {
  uint64_t struct_size; /* set by fovea_mha_params_init */

  int64_t batch;
  int64_t q_len;       /* rows that x and y hold per sequence; lengths as in fovea_attention_params */
  int64_t d_model;     /* columns of x */
  int64_t d_out;       /* columns of y; 0 means d_model */
  int64_t num_q_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t v_head_dim;  /* 0 means head_dim */

  /* Every tensor is F32, BF16 or F16, each its own, a cache also I8. stride_head of x, x_kv and y, and stride_batch of weights, are not
   * read. An output (y, the caches and their scales, and attention's lse and scores) overlaps nothing. */
  fovea_tensor x; /* [batch][q_len][d_model] */
  fovea_tensor y; /* output, [batch][q_len][d_out]; rows past a sequence's q_len are not written */

  const int32_t* q_lens;       /* optional [batch]. Rows past them are projected all the same, and then dropped: pack */
  const int32_t* cu_seqlens_q; /* optional [batch + 1], packed x and y: [total_q][d_model] */
  int64_t total_q;             /* rows of the packed x and y; 0 without cu_seqlens_q */

  /* Cross attention: keys and values are made of x_kv. kv_len may be 0 (nothing new: an encoder's cache is attended to).
   * Without x_kv, d_kv, kv_len, cu_seqlens_kv and total_kv are 0, and kv_lens[b] <= q_len, without a cache only, are the rows of
   * x that are keys (padding behind them is none; at most the sequence's own rows where rope is given). */
  fovea_tensor x_kv;            /* optional, [batch][kv_len][d_kv] */
  int64_t d_kv;                 /* columns of x_kv; 0 means d_model */
  int64_t kv_len;               /* rows that x_kv holds per sequence */
  const int32_t* kv_lens;       /* optional [batch] */
  const int32_t* cu_seqlens_kv; /* optional [batch + 1], packed x_kv: [total_kv][d_kv] */
  int64_t total_kv;

  /* Weights as torch.nn.Linear's, [out][in], rows of heads one after another. Either wq, wk, wv, or w_qkv: the rows of the
   * three in this order (torch.nn.MultiheadAttention.in_proj_weight; d_kv = d_model), which is one projection instead of three,
   * with the same bits. Biases [out], contiguous, each optional; b_qkv with w_qkv only. */
  fovea_tensor wq;    /* [num_q_heads * head_dim][d_model] */
  fovea_tensor wk;    /* [num_kv_heads * head_dim][d_kv] */
  fovea_tensor wv;    /* [num_kv_heads * v_head_dim][d_kv] */
  fovea_tensor w_qkv; /* [(num_q_heads + num_kv_heads) * head_dim + num_kv_heads * v_head_dim][d_model] */
  fovea_tensor wo;    /* [d_out][num_q_heads * v_head_dim] */
  fovea_tensor bq;
  fovea_tensor bk;
  fovea_tensor bv;
  fovea_tensor b_qkv;
  fovea_tensor bo;

  fovea_tensor q_norm; /* optional, [head_dim], contiguous, for all query heads */
  fovea_tensor k_norm; /* optional, likewise for kv heads */
  float norm_eps;      /* 1e-6 by init; not negative, finite */
  int32_t reserved;    /* 0 */

  /* Optional: rotates q and k. rotary_dim, tables, interleaved and positions are read; the latter are those of x's rows, and none means
   * as above. Its other fields must be 0, as in fovea_kv_append_params. */
  const fovea_rope_params* rope;

  /* Optional, both: the cache, as in fovea_kv_append_params; paged with block_table. kv_starts may be NULL for an empty one. */
  fovea_tensor k_cache;     /* output and input; [batch][num_kv_heads][capacity][head_dim] or pages */
  fovea_tensor v_cache;
  const int32_t* kv_starts; /* [batch] */
  int64_t capacity;         /* 0 for a paged cache */
  const int32_t* block_table;
  int64_t block_table_stride;
  int64_t num_pages;
  int64_t page_size;

  /* Optional: the options of attention: scale, causal, window_left/right, logits_soft_cap, mask, bias and their fields,
   * alibi_slopes, sinks, q_positions, kv_positions, and lse and scores as outputs; with x_kv also q_align, q_offset(s). What this
   * struct says (batch, heads, lengths, dims, q, k, v, out, pages; without x_kv q_align and q_offset(s) too) must be 0. kv_len is
   * capacity (block_table_stride * page_size) here where there is a cache: columns of mask, unless mask_kv_len, and scores. */
  const fovea_attention_params* attention;

  /* Of I8 caches, as in fovea_kv_append_params, which writes them, and fovea_attention_params, which reads them. */
  fovea_tensor k_scale; /* output and input, F32, [batch][num_kv_heads][capacity] or pages */
  fovea_tensor v_scale;
  fovea_tensor k_channel_scale; /* optional input */

  /* Optional, with x_kv and rope: how the keys of x_kv are rotated instead, as rope; its positions are those of x_kv's rows. NULL: by
   * rope's tables, at kv_starts[b] + i. Keys that the cache holds already are not rotated again. */
  const fovea_rope_params* kv_rope;
} fovea_mha_params;

FOVEA_API fovea_status fovea_mha_params_init(fovea_mha_params* params, size_t size); /* zeroes, sets struct_size and norm_eps */

/* Bytes of exec->workspace that fovea_mha_forward needs for these extents, strides, dtypes, options, threads, flags and the chosen
 * target; reads arrays of lengths (kv_starts too), offsets and positions, no tensor's data. Monotone in every length and in batch. It grows with
 * kv_len only in cross attention. */
FOVEA_API fovea_status fovea_mha_workspace_size(const fovea_mha_params* params, const fovea_exec* exec, size_t* bytes);

/* Every argument is checked before anything is written. The same bits for any number of threads, any executor, any strides, paged or
 * contiguous, packed or separate weights. Calls of up to 8 tokens (of the whole batch, padding included) are projected by another kernel
 * than larger ones, and attention has its own for few rows: with FOVEA_BATCH_INVARIANT a token's bits depend on neither, so decoding
 * step by step equals one causal pass. NaN in a token of x reaches its own row of y, the rows that attend to it, and its place in the cache. */
FOVEA_API fovea_status fovea_mha_forward(const fovea_mha_params* params, const fovea_exec* exec);

typedef struct fovea_mha_info {
  uint64_t struct_size;
  char target[32];
  char kernels[160];        /* of attention, as in fovea_attention_info */
  int32_t num_threads;
  int32_t reserved;
  uint64_t workspace_bytes;
  double qkv_flop;          /* of the projections to q, k and v, all rows that are computed */
  double attention_flop;    /* useful, as in fovea_attention_info */
  double out_flop;
  double weight_bytes;      /* of all weights and biases, read once */
  double kv_bytes;          /* of the keys and values that attention reads, once */
} fovea_mha_info;

FOVEA_API fovea_status fovea_mha_info_init(fovea_mha_info* info, size_t size);
/* Checks params as fovea_mha_forward does, and fills info. */
FOVEA_API fovea_status fovea_mha_describe(const fovea_mha_params* params, const fovea_exec* exec, fovea_mha_info* info);

/* ---- Targets (instruction sets) ----------------------------------------------------------------------------------- */

typedef struct fovea_target_info {
  uint64_t struct_size;
  char name[32];          /* "AVX2" */
  int32_t runnable;       /* 1 if this CPU and OS can run it */
  int32_t vector_bytes;   /* 0 where not runnable */
  int32_t tile_keys;      /* keys of the prefill register tile (G of lib/NUMERICS.md) */
  int32_t tile_lanes;     /* query lanes of the largest prefill register tile; 0 where not runnable */
} fovea_target_info;

FOVEA_API fovea_status fovea_target_info_init(fovea_target_info* info, size_t size);
/* Targets compiled into the library, best first: index 0 .. fovea_target_count() - 1. AVX3_BF16 is first, but not chosen unasked where
 * vdpbf16ps is slow (Sapphire Rapids), nor NEON_BFDOT where SVE's vectors are longer; fovea_get_target names the choice. */
FOVEA_API int32_t fovea_target_count(void);
FOVEA_API fovea_status fovea_get_target_info(int32_t index, fovea_target_info* info);

/* The target that calls use: the one set, else the environment's FOVEA_TARGET, else the best that this CPU runs. *name lives as
 * long as the library. FOVEA_ERR_TARGET_UNAVAILABLE where FOVEA_TARGET names one that cannot run; computing calls
 * then fail alike. why (optional) gets "set", "FOVEA_TARGET" or "best". */
FOVEA_API fovea_status fovea_get_target(const char** name, const char** why);
/* Chooses a target for all later calls of the process; NULL returns to the default choice. An unknown name, or one that
 * cannot run, is FOVEA_ERR_TARGET_UNAVAILABLE and changes nothing. */
FOVEA_API fovea_status fovea_set_target(const char* name);

#ifdef __cplusplus
}
#endif
#endif /* FOVEA_FOVEA_H_ */
