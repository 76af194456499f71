// Training of a patch codec (model/codec/patch_codec.h): weights, loss and update. It begins as the best linear codec
// of the clips.
//
// Latents are pulled to mean 0 and deviation 1 in each channel, which a diffusion model expects, and a little noise is
// added to them: the decoder must bear what a sampler does not get right, and no channel may hide detail in small
// values.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "model/codec/codec_weights.h"
#include "model/codec/patch_codec_network.h"
#include "model/weights/safetensors.h"
#include "train/codec/principal_patches.h"
#include "train/optim/optimizer.h"

namespace vmoba::train {

struct CodecTrainerConfig {
  model::PatchCodecConfig model;
  double latent_noise = 0.02;  // deviation, where the latents' is 1
  uint64_t seed = 0;
  bool bf16 = false;  // activations; weights and the loss stay fp32
};

class CodecTrainer {
 public:
  CodecTrainer(const CodecTrainerConfig& config, const PrincipalPatches& start, at::Device device);
  // One update. Video [B, 3, 1 + 4n, H, W], fp32 in [0, 1]. Returns the mean squared error, a scalar on the device; no
  // synchronisation.
  at::Tensor step(const at::Tensor& video_BCFHW, double lr);
  // fp32, under the published names; borrowed.
  std::vector<model::NamedTensor> weights() const;

 private:
  void set_linear_maps(const PrincipalPatches& start);
  model::TensorSource source() const;
  const at::Tensor& seen_frames(int64_t frames) const;
  at::Tensor encode(const at::Tensor& video_BCFHW, const model::TensorSource& source) const;

  CodecTrainerConfig config_;
  at::Device device_;
  std::vector<model::Parameter> parameters_;
  std::unique_ptr<Optimizer> optimizer_;
  mutable std::map<int64_t, at::Tensor> seen_frames_;  // by number of frames, on the device
};

}  // namespace vmoba::train
