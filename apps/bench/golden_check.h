// Golden vectors of VMoBA (tests/fixtures/golden/README.md says what is in them) and cases of the case table against
// an implementation of this build: what `vmoba-bench check` runs, and what the tests of the attention run.
//
// Shape letters: B samples, S video tokens, X text tokens, Z = S + X, N heads, D head size, C blocks.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "apps/bench/attention_cases.h"
#include "attention/attention.h"

namespace vmoba::bench {

struct GoldenCase {
  std::string name;  // file name without its ending
  attention::Grid grid;
  int64_t text_tokens = 0;
  attention::LayerAttention layer;
  std::vector<at::Tensor> learnt;                // of the layer's method, fp32
  at::Tensor q_BZND, k_BZND, v_BZND, dout_BZND;  // bf16, CPU
  at::Tensor mask_BNCS;                          // bool, permuted positions
  std::map<std::string, at::Tensor> expected;    // fp32: out, dq, dk, dv [B, Z, N, D], lse [B, N, Z], dbeta [N]
};

// The .safetensors files of a folder in order of name; Error(kInput) where there is none.
std::vector<std::string> golden_files(const std::string& folder);

// Throws Error(kInput) naming the file and the tensor or metadata key that is missing or out of range.
GoldenCase load_golden(const std::string& path);

struct GoldenResult {
  std::string name;
  int64_t mask_differences = 0;
  std::map<std::string, double> error;  // largest difference over the largest expected value, by tensor
  std::map<std::string, double> limit;
  bool passed() const;
};

// Largest absolute difference relative to the largest expected value; NaN where either side has one.
double relative_error(const at::Tensor& found, const at::Tensor& expected);

// The limits: masks equal; 1e-5 for fp32 and fp64 and for lse. Other bf16 results: twice the error of plain attention
// in bf16 with the same mask, plus half a unit in the last place of bf16 (docs/numerics.md).
GoldenResult check_golden(const GoldenCase& golden, attention::Implementation implementation, at::ScalarType dtype,
                          at::Device device);

// A small case through self_attention() and its backward, against plain masked attention in fp64 of the same bf16
// values. The mask is the reference's selection in fp64, to which the tests hold the reference. Limits as above; no
// lse. Throws Error(kInput) for a case of more than 4,096 tokens.
GoldenResult check_case(const AttentionCase& c, attention::Implementation implementation, at::ScalarType dtype,
                        at::Device device);

}  // namespace vmoba::bench
