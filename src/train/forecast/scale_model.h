// What a job of many ranks would need and how well it would work, for every way to share the work, from a configuration
// and the costs of links: memory, communication and efficiency on paper (vmoba-train --dry-run --ranks N). Needs one
// process and no GPU.
//
// The model is simple on purpose. Computing takes what an H200's kernels need (forecast/step_seconds.h), or FLOPs /
// rate, and divides evenly by the ranks; model.recompute `auto` computes again what the GPU's memory cannot keep. Sums
// of gradients hide behind the last backward, gathers of sharded weights behind the whole pass, exchanges of q and k
// (Ulysses) behind the next projection, as far as these are long enough; the first of each and the other exchanges
// around self attention do not hide. Sums and gathers that hide slow what is computed beside them, and ranks that hold
// the state together copy what they send and receive. Stragglers, data and checkpoints are left out, so that a measured
// efficiency is lower.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "train/dist/link_model.h"
#include "train/dist/mesh_sizes.h"
#include "train/forecast/estimate.h"
#include "train/forecast/rank_memory.h"

namespace vmoba::train {

struct ScaleOptions {
  int64_t ranks = 1;
  dist::Cluster cluster = dist::Cluster::nvlink4_and_ndr();
  double flops_per_s = 0;                    // of one rank, for all of a step; 0: each kind of kernel at an H200's rate
  int64_t memory_bytes = int64_t{79} << 30;  // of one rank's GPU; an 80 GB H100 shows 79.6 GiB
};

struct Mode {
  std::string name;
  dist::MeshSizes sizes;
};

// The ways to share the work that ranks, heads and hosts allow: copies (data parallel), a copy for each host (hybrid),
// a copy for all (sharded), each alone and with sequence parallel inside a host.
std::vector<Mode> possible_modes(const RootConfig& config, const ScaleOptions& options);

struct ModeEstimate {
  Mode mode;
  RankMemory memory;
  int64_t global_batch = 1;  // train.global_batch, or the next larger one that this mode can share
  dist::BatchShare share;    // of it
  double sent_bytes = 0;     // by each rank, per step
  double compute_s = 0;      // per step
  double waiting_s = 0;      // for communication that nothing hides, per step
  double step_s() const { return compute_s + waiting_s; }
  double efficiency() const { return compute_s / step_s(); }
};

// `run` of the same configuration.
ModeEstimate estimate_mode(const RootConfig& config, const RunEstimate& run, const Mode& mode,
                           const ScaleOptions& options);

// The whole report, the mode that `parallel` asks for marked. Throws Error(kInput) where it fits no such number of
// ranks.
std::string scale_to_text(const RootConfig& config, const RunEstimate& run, const ScaleOptions& options);

}  // namespace vmoba::train
