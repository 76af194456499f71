// Reference engine of block-sparse attention in plain tensor operations, for any device and for fp32, fp64 and bf16
// inputs.
//
// Its stages are those of the native kernels (attention/kernels/kernels.h), so that each kernel stage has a reference
// to be compared with. Arithmetic is fp32 (fp64 for fp64 inputs). Results do not depend on the number of threads: on
// CPU every head is one serial task.
// Work is proportional to the attended pairs, and no more than kScoresPerChunk scores per task exist at a time.
//
// Shape letters: B samples, S video tokens, X text tokens behind them, Z = S + X, N heads, D head size, C blocks,
// E blocks with the text block where there is text (C or C + 1), L keys of one block, R rows (queries) of one chunk.
// "Permuted" arrays hold tokens in block order (block/partition.h), text behind.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/block/engine.h"

namespace vmoba::attention::reference {

// Scores that one task holds at a time: on CPU what stays in cache, on GPU 256 MB of fp32.
constexpr int64_t kScoresPerChunkCpu = int64_t(1) << 20;
constexpr int64_t kScoresPerChunkGpu = int64_t(1) << 26;

// Queries of one chunk against `keys` keys: at least 1, at most as many as keep the scores within the bound above.
int64_t rows_per_chunk(int64_t keys, bool on_cpu);

// fp64 for fp64 inputs, else fp32.
at::ScalarType compute_type(const at::Tensor& x);

// Stage index. Rows that attend each block of one head, ascending permuted positions, from bool [E, Z].
struct HeadRows {
  at::Tensor rows;             // int64, the lists one behind the other
  std::vector<int64_t> start;  // [E+1] first entry of each list
};
HeadRows index_rows(const at::Tensor& attends_EZ);

// Stage attend. Attention of all heads over the selected blocks, and its gradients.
Attended attend(const PartitionTables& tables, int64_t text_tokens, const BlockMask& mask, const at::Tensor& q_BZND,
                const at::Tensor& k_BZND, const at::Tensor& v_BZND);
BlockGradients attend_backward(const PartitionTables& tables, int64_t text_tokens, const BlockMask& mask,
                               const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                               const Attended& attended, const at::Tensor& dout_BZND);

// The stages as one engine.
const BlockEngine& engine();

}  // namespace vmoba::attention::reference
