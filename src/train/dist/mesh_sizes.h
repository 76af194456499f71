// How the ranks of a job share the work, in numbers alone: what training and the forecast both reckon with.
#pragma once
#include <cstdint>

#include "config/root_config.h"

namespace vmoba::train::dist {

// Gradients that every rank holds whole are summed in buckets of at least this size (gradient_buckets.h).
constexpr int64_t kBucketBytes = int64_t{64} << 20;

struct MeshSizes {
  int data = 1, shard = 1, sequence = 1;
  int state_ranks() const { return shard * sequence; }  // ranks that hold one copy of the state together
  int batch_ranks() const { return data * shard; }      // groups that take samples of their own
};

// Sizes for `ranks` ranks, parallel.data = 0 filled in. Throws Error(kInput) with sizes that would work.
MeshSizes mesh_sizes(const ParallelConfig& config, int64_t ranks);

// What a group of ranks takes of each optimiser step.
struct BatchShare {
  int64_t samples = 1;  // of train.global_batch
  int64_t micro = 1;    // of one forward pass: train.micro_batch, or less so that a pass does not straddle ranks
  int64_t passes = 1;
};
// Throws Error(kInput) where train.global_batch cannot be shared by the ranks, with the nearest that could.
BatchShare batch_share(const TrainConfig& config, const MeshSizes& sizes);

// Throws Error(kInput) where the model's heads or its selection cannot be split over parallel.sequence ranks, with what
// could.
void check_sequence(const RootConfig& config);

}  // namespace vmoba::train::dist
