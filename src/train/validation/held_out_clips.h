// Clips that are never trained on, encoded once, and their loss at given noise levels: forward passes of one clip.
//
// The noise is a function of (seed, clip, level) alone, where a clip is known by its file's name and its start, so that
// attentions, checkpoints and runs on any number of ranks are compared on the same noise. Tensors lie on the CPU until
// they are used. Nothing here changes training.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "train/batch.h"
#include "train/cache/encode_cache.h"

namespace vmoba::train {

// What encodes. Borrowed; `cache` and `image` may be null.
struct HeldOutEncoder {
  const RootConfig& config;
  const data::ClipPlan& plan;  // of held-out clips alone
  const model::Codec& codec;
  const model::TextEncoder& text;
  const model::ImageEncoder* image;
  at::Device device;
  const EncodeCache* cache = nullptr;
  int64_t first_cached = 0;  // the cache's number of the plan's first clip
};

struct HeldOutClip {
  std::string name;      // file name and start
  std::string failure;   // why it cannot be decoded, or ""; its latents are then those of a black video
  NamedTensors encoded;  // clip_tensors()
  model::TextEmbedding text;
};

HeldOutClip encode_held_out(const HeldOutEncoder& encoder, int64_t clip);

// Standard normal, fp32 on the CPU.
at::Tensor held_out_noise(uint64_t seed, const std::string& clip, double sigma, at::IntArrayRef shape);

// The clip with its noise at level `sigma`, a batch of one on `device`; for model.task ti2v with its first frame given
// in the share train.flow.first_frame_rate of (seed, clip).
TrainingBatch held_out_batch(const RootConfig& config, uint64_t seed, const HeldOutClip& clip, double sigma,
                             at::Device device);

// Mean squared error of the velocity, not weighted: a scalar on the device. No gradients.
at::Tensor held_out_loss(model::Dit& dit, const TrainingBatch& batch, const model::ForwardOptions& options);

}  // namespace vmoba::train
