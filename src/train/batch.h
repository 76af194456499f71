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

// What turns clips into latents and embeddings; borrowed. `image` is null for models without image tokens.
struct Encoders {
  const model::Codec& codec;
  const model::TextEncoder& text;
  const model::ImageEncoder* image = nullptr;
};

// What does not depend on noise, so that it could come from a cache.
struct EncodedBatch {
  at::Tensor x0_BCTHW;  // clean latents
  at::Tensor text_BLE;
  model::ImageCondition condition;  // of each clip's own first (and last) frame
};

// Videos [B, 3, F, H, W], fp32 in [-1, 1] on the model's device, with their captions ("" where dropped).
EncodedBatch encode_batch(const model::ModelConfig& model, const Encoders& encoders, const at::Tensor& video_BCFHW,
                          const std::vector<std::string>& captions);

struct TrainingBatch {
  model::DitInput input;
  NoisyBatch noisy;
};

// Draws noise and timestep of each of `samples` (global sample numbers), and for model.task ti2v whether its first
// frame is given (train.flow.first_frame_rate; never to clips of one latent frame).
TrainingBatch make_batch(const FlowConfig& config, uint64_t seed, const std::vector<int64_t>& samples,
                         const EncodedBatch& encoded);

}  // namespace vmoba::train
