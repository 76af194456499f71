// The weight file of a Wan VAE, in diffusers' names or in the original repository's (ComfyUI keeps those).
#pragma once
#include <string>

#include "model/codec/codec_weights.h"
#include "model/codec/wan_vae_config.h"

namespace vmoba::model {

class WanVaeWeights {
 public:
  // As CodecWeights; the file must hold exactly the tensors of config().
  explicit WanVaeWeights(const std::string& path);

  // From the config.json beside the weights, else from the shapes of the tensors.
  const WanVaeConfig& config() const { return config_; }
  // Copies each tensor that it is asked for; borrows this object.
  TensorSource load(at::ScalarType dtype, at::Device device) const { return weights_.load(dtype, device); }

 private:
  CodecWeights weights_;
  WanVaeConfig config_;
};

}  // namespace vmoba::model
