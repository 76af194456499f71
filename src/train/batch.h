// From decoded clips to one forward pass: encoding (or what a cache holds of it), then noise, timestep and condition.
// Tensors are owned by the structs; every draw is a function of (seed, sample number).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/conditioning.h"
#include "model/text_encoder.h"
#include "train/flow_matching.h"

namespace vmoba::train {

// What does not depend on noise, so that it may come from a cache (cache/encode_cache.h).
struct EncodedBatch {
  at::Tensor x0_BCTHW;  // clean latents
  model::TextEmbedding text;
  model::ImageCondition condition;  // of each clip's own first (and last) frame
};

// Everything but the text, of videos [B, 3, F, H, W], fp32 in [-1, 1] on the model's device. `image` is null for models
// without image tokens.
EncodedBatch encode_videos(const model::ModelConfig& model, const model::Codec& codec, const model::ImageEncoder* image,
                           const at::Tensor& video_BCFHW);

struct TrainingBatch {
  model::DitInput input;
  NoisyBatch noisy;
};

// Noisy latents of `encoded` as the model's input, under `condition`.
TrainingBatch conditioned_batch(const EncodedBatch& encoded, const model::ImageCondition& condition, NoisyBatch noisy);

// Tells the model the numbers that it takes as inputs: a guidance scale, and where a step leads to, which is the
// sample's own timestep.
void tell_numbers(const model::ModelConfig& model, const FlowConfig& config, TrainingBatch& batch);

// Draws noise and timestep of each of `samples` (global sample numbers), and for model.task ti2v whether its first
// frame is given (train.flow.first_frame_rate; never to clips of one latent frame).
TrainingBatch make_batch(const FlowConfig& config, uint64_t seed, const std::vector<int64_t>& samples,
                         const EncodedBatch& encoded);

}  // namespace vmoba::train
