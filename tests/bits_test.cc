// The same bits for any threads, executor, batch composition, layout and neighbour; with BATCH_INVARIANT for any q_len
// too.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "lib/dtype.h"
#include "lib/kernels/kernel_params.h"
#include "lib/reference.h"
#include "lib/validate.h"
#include "tests/harness/attention_case.h"
#include "tests/harness/environment.h"
#include "tests/harness/executors.h"

namespace fovea_test {
namespace {

// Enough rows and keys for many tasks and for splits of the key range: prefill, few rows, one row over many keys.
constexpr int64_t kLengths[][2] = {{130, 600}, {257, 129}, {5, 3000}, {1, 5000}, {1, 129}};
constexpr int kLengthPairs = sizeof kLengths / sizeof kLengths[0];

fovea_dtype input_type;  // of q, k and v in Spec()

CaseSpec Spec(int pair, uint64_t seed, uint32_t options) {
  CaseSpec spec;
  spec.q_dtype = spec.k_dtype = spec.v_dtype = input_type;
  spec.seed = seed;
  spec.batch = 2;
  spec.num_q_heads = 6;
  spec.num_kv_heads = 2;
  spec.q_len = kLengths[pair][0];
  spec.kv_len = kLengths[pair][1];
  spec.head_dim = 24;
  spec.v_head_dim = 19;
  spec.options = options;
  return spec;
}

// Option sets that each change which kernels, blocks and splits run.
constexpr uint32_t kOptionSets[] = {0,
                                    kCausal | kBottomRight,
                                    kMask | kSinks,
                                    kBias | kSpread,
                                    kWindowLeft | kBottomRight | kAlibi,
                                    kQLens | kKvLens | kCausal | kSoftCap,
                                    kPackedQ | kPackedKv | kCausal | kBottomRight | kSpread};
constexpr int kOptionSetCount = sizeof kOptionSets / sizeof kOptionSets[0];

std::vector<float> RunBits(AttentionCase* c, const fovea_exec& exec) {
  c->ClearOutputs();
  Run(c->p, &exec);
  return Outputs(c->p);
}

// The view without its first heads.
void SkipHeads(fovea_tensor* x, int64_t heads) {
  if (x->data) x->data = static_cast<char*>(x->data) + heads * x->stride_head * fovea::DtypeBytes(x->dtype);
}

// Calls body(case, flags) over the lengths, option sets and flags. Their numbers have no common divisor, so n goes
// through all combinations, and a part of them still has each option set, each flag and each pair of lengths.
template <typename Body>
void EachCase(const Body& body) {
  static_assert(kLengthPairs == 5 && kOptionSetCount == 7, "no common divisor with one another or with 2");
  const uint64_t seed = FirstSeed(31);
  for (int n = 0; n < Portion(kLengthPairs * kOptionSetCount * 2, kOptionSetCount); ++n) {
    const uint32_t flags = n % 2 == 0 ? 0u : static_cast<uint32_t>(FOVEA_BATCH_INVARIANT);
    AttentionCase c(Spec(n % kLengthPairs, seed, kOptionSets[n % kOptionSetCount]));
    INFO(Repeat(seed, c.Describe()), ", flags ", flags);
    body(&c, flags);
  }
}

}  // namespace

TEST_CASE("same bits from 1, 2, 3 and 8 threads") {
  input_type = EachInputType();
  EachCase([](AttentionCase* c, uint32_t flags) {
    const std::vector<float> one = RunBits(c, Threads(1, flags));
    for (int32_t threads : {2, 3, 8}) {
      CAPTURE(threads);
      CHECK(BitDifference(one, RunBits(c, Threads(threads, flags))) == "");
    }
    CHECK(BitDifference(one, RunBits(c, Threads(0, flags))) == "");
  });
}

TEST_CASE("same bits from a caller's executor: serial, reversed, on threads of its own") {
  input_type = EachInputType();
  EachCase([](AttentionCase* c, uint32_t flags) {
    const std::vector<float> one = RunBits(c, Threads(1, flags));
    for (fovea_parallel_for executor : {&Serial, &Reversed, &StdThreads}) {
      fovea_exec exec = Threads(4, flags);
      exec.parallel_for = executor;
      CHECK(BitDifference(one, RunBits(c, exec)) == "");
    }
  });
}

TEST_CASE("same bits alone and in a batch, padded or packed there") {
  input_type = EachInputType();
  EachCase([](AttentionCase* c, uint32_t flags) {
    const fovea_exec exec = Threads(2, flags);
    RunBits(c, exec);
    for (int64_t b = 0; b < c->p.batch; ++b) {
      const std::vector<float> together = Outputs(c->p, b);
      const fovea_attention_params alone = AloneParams(c->p, b);
      if (alone.q_len == 0) continue;
      std::vector<float> out(together.size());
      fovea_attention_params p = alone;  // outputs of its own, or nothing would have to be computed
      const int64_t d = c->out->shape().cols;
      std::vector<float> lse(static_cast<size_t>(p.num_q_heads * p.q_len));
      p.out = fovea_tensor_bhsd(out.data(), FOVEA_F32, p.num_q_heads, p.q_len, d);
      p.lse = fovea_tensor_bhs(lse.data(), FOVEA_F32, p.num_q_heads, p.q_len);
      Run(p, &exec);
      CHECK(BitDifference(together, Outputs(p)) == "");
    }
  });
}

TEST_CASE("same bits padded and packed") {
  input_type = EachInputType();
  const uint64_t seed = FirstSeed(77);
  for (int pair = 0; pair < kLengthPairs; ++pair) {
    for (uint32_t options :
         {0u, static_cast<uint32_t>(kCausal | kBottomRight), static_cast<uint32_t>(kSinks | kAlibi | kSpread)}) {
      CaseSpec spec = Spec(pair, seed, options | kQLens | kKvLens);
      spec.batch = 4;
      AttentionCase padded(spec);
      const std::vector<float> expected = RunBits(&padded, Threads(2));
      for (uint32_t packing : {kPackedQ | kPackedKv, kPackedQ | kKvLens, kQLens | kPackedKv}) {
        spec.options = options | packing;
        AttentionCase packed(spec);
        INFO(Repeat(seed, packed.Describe()));
        CHECK(BitDifference(expected, RunBits(&packed, Threads(2))) == "");
      }
    }
  }
}

TEST_CASE("same bits contiguous and strided, any alignment") {
  input_type = EachInputType();
  const uint64_t first = FirstSeed(600);
  for (uint64_t seed = first; seed < first + static_cast<uint64_t>(CaseCount(6)); ++seed) {
    for (int pair = 0; pair < kLengthPairs; ++pair) {
      for (uint32_t options : kOptionSets) {
        CaseSpec spec = Spec(pair, seed, options);
        spec.batch = 1;
        AttentionCase dense(spec);
        spec.options |= kStrides;
        AttentionCase strided(spec);
        INFO(Repeat(seed, dense.Describe()));
        CHECK(BitDifference(RunBits(&dense, Threads(1)), RunBits(&strided, Threads(1))) == "");
      }
    }
  }
}

TEST_CASE("same bits with K and V rows a multiple of 4 KB apart") {
  input_type = EachInputType();
  for (int pair = 0; pair < kLengthPairs; ++pair) {
    CaseSpec spec = Spec(pair, 5, kCausal | kBottomRight);
    spec.batch = 1;
    AttentionCase c(spec);
    const std::vector<float> expected = RunBits(&c, Threads(1));
    for (int64_t row_bytes : {2048, 4096, 4096 + 64, 8192}) {
      CAPTURE(row_bytes);
      const auto spread = [&](const TestTensor& t) {
        Strides strides = DenseStrides(t.shape());
        strides.row = row_bytes / fovea::DtypeBytes(input_type);
        strides.head = t.shape().rows * strides.row;
        strides.batch = t.shape().heads * strides.head;
        auto copy = std::make_unique<TestTensor>(input_type, t.shape(), strides, Guard::kBefore);
        for (int64_t h = 0; h < t.shape().heads; ++h) {
          for (int64_t j = 0; j < t.shape().rows; ++j) {
            for (int64_t k = 0; k < t.shape().cols; ++k) copy->Set(0, h, j, k, t.Get(0, h, j, k));
          }
        }
        return copy;
      };
      const auto k = spread(*c.k), v = spread(*c.v);
      fovea_attention_params p = c.p;
      p.k = k->view();
      p.v = v->view();
      c.ClearOutputs();
      const fovea_exec one = Threads(1);
      Run(p, &one);
      CHECK(BitDifference(expected, Outputs(p)) == "");
    }
  }
}

TEST_CASE("same bits multi-query by head stride 0 and by num_kv_heads 1") {
  input_type = EachInputType();
  for (int pair = 0; pair < kLengthPairs; ++pair) {
    CaseSpec spec = Spec(pair, 6, kCausal | kBottomRight);
    spec.num_kv_heads = 1;
    spec.batch = 1;
    AttentionCase c(spec);
    const std::vector<float> expected = RunBits(&c, Threads(1, FOVEA_BATCH_INVARIANT));
    c.p.num_kv_heads = c.p.num_q_heads;
    c.p.k.stride_head = c.p.v.stride_head = 0;
    CHECK(BitDifference(expected, RunBits(&c, Threads(1, FOVEA_BATCH_INVARIANT))) == "");
  }
}

TEST_CASE("same bits whatever the strides of absent tensors: multi-query by head stride 0, batches, plans") {
  input_type = FOVEA_F32;
  CaseSpec spec = Spec(2, 7, kCausal | kBottomRight | kNoLse);
  spec.num_kv_heads = 1;  // 30 rows; were it 6, 5 rows each would be decode's
  spec.batch = 3;
  AttentionCase c(spec);
  const fovea_exec exec = Threads(1);
  const std::vector<float> expected = RunBits(&c, exec);
  c.p.num_kv_heads = c.p.num_q_heads;
  c.p.k.stride_head = c.p.v.stride_head = 0;
  c.p.k_scale.stride_head = 5;
  c.p.lse.stride_batch = std::numeric_limits<int64_t>::max();
  CHECK(BitDifference(expected, RunBits(&c, exec)) == "");

  size_t bytes = 0;
  REQUIRE(fovea_attention_workspace_size(&c.p, &exec, &bytes) == FOVEA_OK);
  std::vector<unsigned char> memory(bytes);
  const fovea_plan* plan = nullptr;
  REQUIRE(fovea_attention_plan(&c.p, &exec, memory.data(), bytes, &plan) == FOVEA_OK);
  c.p.k_scale.stride_head = c.p.mask.stride_col = 6;
  CHECK(fovea_attention_run_tasks(plan, &c.p, 0, 0, 1, 0) == FOVEA_OK);
}

TEST_CASE("same bits of K and V so many that they are prefetched, and of one head of them, which are not") {
  input_type = EachInputType();
  const fovea_exec exec = Threads(1, FOVEA_BATCH_INVARIANT);
  constexpr uint32_t kOptions[] = {kCausal | kBottomRight | kSpread, kPaged, kSoftCap, 0};
  for (int64_t n = 0; n < std::min<int64_t>(CaseCount(4), 4); ++n) {
    const uint32_t options = kOptions[n];
    CaseSpec spec = Spec(0, 1300 + options, options);
    spec.batch = 1;
    spec.num_q_heads = 9, spec.num_kv_heads = 3;
    spec.q_len = 5;
    spec.head_dim = 73, spec.v_head_dim = 67;  // no whole number of steps, lines or rows of a part
    const int64_t row_bytes = (spec.head_dim + spec.v_head_dim) * fovea::DtypeBytes(input_type);
    spec.kv_len = fovea::kNearBytes / (spec.num_kv_heads * row_bytes) + 100;
    AttentionCase c(spec);
    INFO(Repeat(spec.seed, c.Describe()));
    const std::vector<float> whole = RunBits(&c, exec);
    c.ClearOutputs();
    for (int64_t h = 0; h < spec.num_kv_heads; ++h) {
      fovea_attention_params p = c.p;
      p.num_q_heads = c.group(), p.num_kv_heads = 1;
      SkipHeads(&p.k, h), SkipHeads(&p.v, h);
      SkipHeads(&p.q, h * c.group()), SkipHeads(&p.out, h * c.group()), SkipHeads(&p.lse, h * c.group());
      Run(p, &exec);
    }
    CHECK(BitDifference(whole, Outputs(c.p)) == "");
  }
}

// Decode takes rows of q together as its registers allow.
TEST_CASE("same bits of a head decoded alone and beside up to seven others of its kv head") {
  for (const fovea_dtype type : {FOVEA_F32, FOVEA_BF16, FOVEA_F16, FOVEA_I8}) {
    for (const int64_t dim : {24, 72, 128}) {
      CaseSpec spec;
      spec.seed = 7;
      spec.num_q_heads = 8;
      spec.num_kv_heads = 1;
      spec.q_len = 1;
      spec.kv_len = 301;
      spec.head_dim = dim;
      spec.v_head_dim = dim - 5;
      spec.k_dtype = spec.v_dtype = type;
      AttentionCase c(spec);
      Run(c.p);
      const std::vector<float> all = Outputs(c.p);
      const size_t per_head = all.size() / 8;
      // int8 keys of one row are not multiplied as those of several everywhere (lib/NUMERICS.md).
      for (int64_t heads = type == FOVEA_I8 ? 2 : 1; heads < 8; ++heads) {
        for (const int64_t first : {int64_t{0}, 8 - heads}) {
          CAPTURE(c.Describe());
          CAPTURE(heads);
          CAPTURE(first);
          fovea_attention_params p = c.p;
          p.num_q_heads = heads;
          SkipHeads(&p.q, first), SkipHeads(&p.out, first), SkipHeads(&p.lse, first);
          c.ClearOutputs();
          Run(p);
          const auto begin = all.begin() + static_cast<std::ptrdiff_t>(per_head) * first;
          CHECK(BitDifference({begin, begin + static_cast<std::ptrdiff_t>(per_head) * heads}, Outputs(p)) == "");
        }
      }
    }
  }
}

TEST_CASE("BATCH_INVARIANT: any chunking of the queries, the keys whole") {
  input_type = EachInputType();
  const uint64_t first = FirstSeed(900);
  const fovea_exec exec = Threads(2, FOVEA_BATCH_INVARIANT);
  for (uint32_t options : {0u, static_cast<uint32_t>(kCausal), static_cast<uint32_t>(kMask | kBias),
                           static_cast<uint32_t>(kCausal | kWindowLeft | kAlibi | kSinks | kSpread)}) {
    for (uint64_t seed = first; seed < first + static_cast<uint64_t>(CaseCount(3)); ++seed) {
      CaseSpec spec = Spec(0, seed, options);
      spec.batch = 1;
      AttentionCase c(spec);
      INFO(Repeat(seed, c.Describe()));
      const std::vector<float> whole = RunBits(&c, exec);
      for (int64_t chunk : {1, 2, 7, 24, 50, 129}) {
        CAPTURE(chunk);
        c.ClearOutputs();
        for (int64_t begin = 0; begin < spec.q_len; begin += chunk) {
          fovea_attention_params p = c.p;
          p.q_len = std::min(chunk, spec.q_len - begin);
          p.q_offset = c.p.q_offset + begin;
          p.q.data = static_cast<char*>(p.q.data) + begin * p.q.stride_row * fovea::DtypeBytes(p.q.dtype);
          p.out.data = static_cast<float*>(p.out.data) + begin * p.out.stride_row;
          p.lse.data = static_cast<float*>(p.lse.data) + begin * p.lse.stride_row;
          if (p.mask.data) p.mask.data = static_cast<uint8_t*>(p.mask.data) + begin * p.mask.stride_row;
          if (p.bias.data) p.bias.data = static_cast<float*>(p.bias.data) + begin * p.bias.stride_row;
          Run(p, &exec);
        }
        CHECK(BitDifference(whole, Outputs(c.p)) == "");
      }
    }
  }
}

TEST_CASE("BATCH_INVARIANT: chunked prefill and decode steps over a growing cache equal the whole causal prefill") {
  const fovea_exec exec = Threads(2, FOVEA_BATCH_INVARIANT);
  for (uint32_t options :
       {static_cast<uint32_t>(kCausal), static_cast<uint32_t>(kCausal | kWindowLeft | kAlibi | kSpread)}) {
    CaseSpec spec;
    spec.seed = 8;
    spec.num_q_heads = 6;
    spec.num_kv_heads = 2;
    spec.q_len = spec.kv_len = 300;
    spec.head_dim = 24;
    spec.options = options;
    AttentionCase c(spec);
    const std::vector<float> whole = RunBits(&c, exec);
    for (int64_t chunk : {1, 5, 64, 129}) {
      CAPTURE(chunk);
      c.ClearOutputs();
      for (int64_t begin = 0; begin < spec.q_len; begin += chunk) {
        fovea_attention_params p = c.p;
        p.q_len = std::min(chunk, spec.q_len - begin);
        p.kv_len = begin + p.q_len;
        p.q_align = FOVEA_Q_ALIGN_BOTTOM_RIGHT;
        p.q.data = static_cast<float*>(p.q.data) + begin * p.q.stride_row;
        p.out.data = static_cast<float*>(p.out.data) + begin * p.out.stride_row;
        p.lse.data = static_cast<float*>(p.lse.data) + begin * p.lse.stride_row;
        Run(p, &exec);
      }
      CHECK(BitDifference(whole, Outputs(c.p)) == "");
    }
  }
}

TEST_CASE("a row's bits do not depend on the other rows: their queries, masks and maxima") {
  input_type = EachInputType();
  for (int pair = 0; pair < kLengthPairs - 2; ++pair) {
    for (int64_t keep : {int64_t{0}, kLengths[pair][0] / 2, kLengths[pair][0] - 1}) {
      INFO("q_len ", kLengths[pair][0], ", row ", keep);
      CaseSpec spec = Spec(pair, 12, kMask);
      spec.batch = 1;
      AttentionCase c(spec);
      const auto row = [&](AttentionCase* of) {
        std::vector<float> bits;
        for (int64_t h = 0; h < spec.num_q_heads; ++h) {
          for (int64_t k = 0; k < 19; ++k) bits.push_back(of->Out(0, h, keep, k));
          bits.push_back(of->Lse(0, h, keep));
        }
        return bits;
      };
      Run(c.p);
      const std::vector<float> expected = row(&c);
      for (int64_t h = 0; h < spec.num_q_heads; ++h) {
        for (int64_t i = 0; i < spec.q_len; ++i) {
          if (i == keep) continue;
          for (int64_t k = 0; k < spec.head_dim; ++k) c.q->Set(0, h, i, k, 30.0f * c.q->Get(0, h, i, k));
          for (int64_t j = 0; j < spec.kv_len; ++j) c.mask->U8(0, h, i, j) = (i + j / 64) % 2 == 0;
        }
      }
      Run(c.p);
      CHECK(BitDifference(expected, row(&c)) == "");
    }
  }
}

TEST_CASE("NaN in V of keys that only other rows attend to changes no bit") {
  input_type = EachInputType();
  for (int pair = 0; pair < kLengthPairs - 2; ++pair) {
    CaseSpec spec = Spec(pair, 13, kSpread);
    spec.batch = 1;
    AttentionCase c(spec);
    c.SetMask([](int64_t, int64_t, int64_t i, int64_t j) { return i % 2 == 0 || j % 7 != 2; });
    Run(c.p);
    const std::vector<float> clean = Outputs(c.p);
    for (float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
      CAPTURE(poison);
      for (int64_t j = 2; j < spec.kv_len; j += 7) {
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t k = 0; k < 19; ++k) c.v->Set(0, h, j, k, poison);
        }
      }
      Run(c.p);
      const std::vector<float> poisoned = Outputs(c.p);
      size_t n = 0, different = 0;
      for (int64_t h = 0; h < spec.num_q_heads; ++h) {
        for (int64_t i = 0; i < spec.q_len; ++i) {
          for (int64_t k = 0; k < 20; ++k, ++n) {  // 19 of out and the lse
            if (i % 2 == 1) different += std::memcmp(&clean[n], &poisoned[n], 4) != 0;
          }
        }
      }
      CHECK(different == 0);
      CHECK(n == clean.size());
    }
  }
}

TEST_CASE("a mask or bias that permits all has the bits of none; skipping dead blocks changes none") {
  input_type = EachInputType();
  for (int pair = 0; pair < kLengthPairs; ++pair) {
    CaseSpec spec = Spec(pair, 14, kCausal | kBottomRight);
    spec.batch = 1;
    AttentionCase c(spec);
    const std::vector<float> none = RunBits(&c, Threads(1));
    c.SetMask([](int64_t, int64_t, int64_t, int64_t) { return true; });
    CHECK(BitDifference(none, RunBits(&c, Threads(1))) == "");
    c.p.mask = fovea_tensor{};
    c.SetBias([](int64_t, int64_t, int64_t, int64_t) { return 0.0f; });
    CHECK(BitDifference(none, RunBits(&c, Threads(1))) == "");

    // Keys 128.. to 255 forbidden: by a mask (blocks skipped for all) and with one row that attends to them (nothing
    // skipped).
    c.p.bias = fovea_tensor{};
    c.p.causal = 0;
    const int64_t other = spec.q_len - 1;
    c.SetMask([](int64_t, int64_t, int64_t, int64_t j) { return j < 128 || j >= 256; });
    const std::vector<float> skipped = RunBits(&c, Threads(1));
    c.SetMask(
        [other](int64_t, int64_t, int64_t i, int64_t j) { return j < 128 || j >= 256 || (other > 0 && i == other); });
    const std::vector<float> visited = RunBits(&c, Threads(1));
    const size_t per_row = 20;
    for (int64_t h = 0; h < spec.num_q_heads; ++h) {
      const auto begin = static_cast<std::ptrdiff_t>(static_cast<size_t>(h * spec.q_len) * per_row);
      const auto end =
          begin + static_cast<std::ptrdiff_t>(static_cast<size_t>(spec.q_len - (other > 0 ? 1 : 0)) * per_row);
      CHECK(BitDifference({skipped.begin() + begin, skipped.begin() + end},
                          {visited.begin() + begin, visited.begin() + end}) == "");
    }
  }
}

TEST_CASE("same bits with the library's workspace, the caller's, and a larger one full of NaN") {
  input_type = EachInputType();
  EachCase([](AttentionCase* c, uint32_t flags) {
    fovea_exec exec = Threads(2, flags);
    const std::vector<float> own = RunBits(c, exec);
    size_t bytes = 0;
    REQUIRE(fovea_attention_workspace_size(&c->p, &exec, &bytes) == FOVEA_OK);
    std::vector<unsigned char> memory(bytes + 5000, 0xff);
    exec.workspace = memory.data() + 1;
    exec.workspace_bytes = memory.size() - 1;
    CHECK(BitDifference(own, RunBits(c, exec)) == "");
  });
}

TEST_CASE("lse, scores and q_lens asked for or not: out has the same bits") {
  input_type = EachInputType();
  for (int pair = 0; pair < kLengthPairs; ++pair) {
    CaseSpec spec = Spec(pair, 15, kCausal | kBottomRight | kNoLse);
    AttentionCase bare(spec);
    const std::vector<float> expected = RunBits(&bare, Threads(1));
    spec.options = kCausal | kBottomRight;
    spec.scores_stage = FOVEA_SCORES_PROBABILITIES;
    AttentionCase full(spec);
    Run(full.p);
    full.p.lse = full.p.scores = fovea_tensor{};  // out alone is compared
    full.p.scores_stage = FOVEA_SCORES_NONE;
    CHECK(BitDifference(expected, Outputs(full.p)) == "");
  }
}

}  // namespace fovea_test
