// Exact attention of one head, summed over blocks of keys: what a selection of blocks would keep of it.
//
// Shape letters: S tokens (original order), C blocks, D head size, R queries of one chunk. No more than R x S scores
// exist at a time. Tensors on any device; sums in fp32.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/block/partition.h"

namespace vmoba::apps {

struct HeadMass {
  std::vector<at::Tensor> mass_CS;  // of each partition: share of query s's attention that block c holds
  at::Tensor entropy_S;             // of query s's attention over keys, in nats
  at::Tensor keys_R;                // of every so many-th query: keys that hold 90 % of its attention, at least
};

// Scores of one chunk.
constexpr int64_t kMassScores = int64_t(1) << 24;

// q, k [S, D] of one head after normalisation and RoPE, any floating-point type. `scores`: how many exist at a time.
HeadMass attention_mass(const at::Tensor& q_SD, const at::Tensor& k_SD,
                        const std::vector<const attention::PartitionTables*>& partitions, int64_t scores = kMassScores);

}  // namespace vmoba::apps
