// `vmoba-bench attention`: times selection, forward and backward of each partition on a GPU, interleaved with cuDNN
// full attention in the same run (docs/attention.md, docs/benchmarks.md).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/bench/attention_cases.h"
#include "attention/attention.h"

namespace vmoba::bench {

struct BenchOptions {
  attention::Grid grid{24, 36, 64};
  int64_t batch = 1, heads = 12, head_dim = 128;
  // Of each sample, or of all where there is one number. Samples with different ones go through self_attention() and
  // autograd, and full attention is not measured beside them.
  std::vector<int64_t> text_tokens = {0};
  attention::AttentionConfig attention;  // chunks, pool, tau
  // random | smooth (a positional component: skewed lists, as in trained models) | a file of `vmoba-analyze
  // --save-qkv`, which states grid and sizes.
  std::string inputs = "random";
  double density = 0;  // > 0: tau is searched so that the density comes within 2 % of it
  std::vector<std::string> partitions = {"temporal", "spatial", "spatiotemporal"};
  std::string named_case;  // a case of the case table in place of grid, sizes, attention and partitions
  int64_t repeats = 10, warmup = 3;
  bool check = true;  // error against the reference on a subsample of queries
};

struct Spread {
  double median = 0, min = 0, max = 0;
};

struct BenchCase {
  std::string partition, inputs;
  int64_t blocks = 0, tokens = 0;
  double tau = 0, density = 0;
  Spread select_ms, forward_ms, backward_ms, total_ms;  // forward and total include selection
  Spread full_forward_ms, full_total_ms;                // cuDNN full attention, interleaved
  int64_t extra_bytes = 0;                              // peak above inputs, outputs and gradients
  double relative_error = 0;                            // of out, against fp32 on a subsample; -1: not checked
  double forward_tflops = 0, backward_tflops = 0;       // of the attended work
};

std::vector<BenchCase> bench_attention(const BenchOptions& options);
// Median of the GPU times of `work` on the current stream, after two unmeasured runs.
double median_milliseconds(const std::function<void()>& work, int64_t repeats);
// Most bytes that tensors on the GPU held at a time since the allocator's statistics were reset.
int64_t peak_bytes();
void print_bench(const std::vector<BenchCase>& cases);
std::string bench_to_json(const std::vector<BenchCase>& cases);

}  // namespace vmoba::bench
