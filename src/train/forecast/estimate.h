// What a run will need, from its configuration alone: parameters, tokens, FLOPs, memory (vmoba-train --dry-run).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba::train {

struct BucketEstimate {
  data::Bucket bucket;
  attention::Grid grid;
  double flops_full = 0;    // one optimiser step's FLOPs per sample, full attention everywhere
  double flops_sparse = 0;  // with the configured attention at the assumed density
  double backward = 0;      // the part of flops_sparse that backward does, recomputation included
  double recomputed = 0;    // the part of flops_sparse that computes forward again
};

// Of all experts together, but where it says otherwise.
struct RunEstimate {
  int64_t experts = 1;         // transformers
  int64_t parameters = 0;      // of one expert, without adapters
  int64_t trained = 0;         // values of one expert that the optimiser changes
  double assumed_density = 1;  // of sparse layers: tau, or k/blocks (the measured one is in the log of the run)
  std::vector<BucketEstimate> buckets;
  attention::Grid grid = {0, 0, 0};  // of a sample of the largest bucket
  int64_t tokens() const { return grid.tokens(); }
  int64_t weights_bytes = 0;   // as model.weights_dtype keeps them: what is trained, or LoRA's frozen base
  int64_t adapters_bytes = 0;  // LoRA's fp32 masters
  int64_t gradients_bytes = 0;
  int64_t optimizer_bytes = 0;  // its state
  int64_t ema_bytes = 0;
  int64_t activations_bytes = 0;  // largest bucket, micro batch; one expert computes at a time
  // Blocks in the compute dtype beside the weights as they are kept; with model.offload weights also the ring of blocks
  // on the device.
  int64_t block_bytes = 0;
  int64_t apart_bytes = 0;  // RankMemory::apart
  int64_t total_bytes() const {
    return weights_bytes + adapters_bytes + gradients_bytes + optimizer_bytes + ema_bytes + activations_bytes +
           block_bytes - apart_bytes;
  }
  int64_t host_weights_bytes = 0, host_activations_bytes = 0;  // page-locked memory of the host, with model.offload
};

// Tokens of a bucket's clips, as the model sees them.
attention::Grid bucket_grid(const data::ClipGeometry& geometry, const data::Bucket& bucket);

// Of the most tokens; without buckets none.
attention::Grid largest_grid(const data::ClipGeometry& geometry, const std::vector<data::Bucket>& buckets);

// The geometry is the configuration's, or given, where files that it would be read from are missing.
RunEstimate estimate_run(const RootConfig& config, const std::vector<data::Bucket>& buckets,
                         const data::ClipGeometry& geometry);
RunEstimate estimate_run(const RootConfig& config, const std::vector<data::Bucket>& buckets);
std::string estimate_to_text(const RootConfig& config, const RunEstimate& estimate);

// The buckets that the configuration alone implies (every frame count at height x width), for runs without files yet.
std::vector<data::Bucket> configured_buckets(const RootConfig& config, const data::ClipGeometry& geometry);
std::vector<data::Bucket> configured_buckets(const RootConfig& config);

}  // namespace vmoba::train
