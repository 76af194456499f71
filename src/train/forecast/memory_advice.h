// What would make a run fit into a GPU, in the order to try it: by the forecast, without a GPU.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba::train {

// A change, as keys to set ("train.optimizer.type=adamw_8bit").
struct MemoryAdvice {
  std::string keys;
  RootConfig config;  // with it and those before it
};

// Those that this configuration leaves open: what changes results least comes first, then what trains fewer weights or
// smaller clips.
std::vector<MemoryAdvice> memory_advice(const RootConfig& config);

// A pass of training: samples of one size.
struct PassSize {
  int64_t samples = 0, tokens = 0;  // of each sample
  int64_t latent_frames = 0, latent_height = 0, latent_width = 0;
};
// Its bucket as data.frames, data.height and data.width have it, and its tokens: "2 samples of bucket 81x480x832, 32760
// tokens each".
std::string pass_text(const RootConfig& config, const PassSize& pass);

// Their keys in one line, for the message of a run that met the end of its memory.
std::string memory_keys(const RootConfig& config);

// Of a GPU's memory, what tensors can take: the rest goes to the driver, libraries and the allocator's gaps.
int64_t usable_bytes(int64_t gpu_bytes);

// parallel.gather `auto`: whether a rank's gathered weights stay within a step, where `free` bytes are left beside it.
// They take half of these at most, and all `results` that backward may want (model::result_bytes) fit beside them:
// gathers hide behind what is computed, results save time.
bool gathered_weights_stay(double gathered, double free, double results);

// The geometry as for estimate_run. "fits", or what to set so that it does, for `vmoba-train --dry-run`. `gpu`: which
// one is meant.
std::string fit_to_text(const RootConfig& config, const std::vector<data::Bucket>& buckets,
                        const data::ClipGeometry& geometry, int64_t gpu_bytes, const std::string& gpu);
std::string fit_to_text(const RootConfig& config, const std::vector<data::Bucket>& buckets, int64_t gpu_bytes,
                        const std::string& gpu);

}  // namespace vmoba::train
