// The weight file of a Wan VAE: a diffusers folder (vae/ or the pipeline's folder above it), or one safetensors file in
// diffusers' names or in the original repository's (ComfyUI keeps those). Owns the mapping of the file.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "model/codec/wan_vae_config.h"
#include "model/codec/wan_vae_layers.h"
#include "model/weights/safetensors.h"

namespace vmoba::model {

class WanVaeWeights {
 public:
  // Maps the file and reads headers. Throws Error(kInput) where there is none, saying where to get one, and where it
  // does not hold exactly the tensors of config(), naming missing, unknown and misshapen ones.
  explicit WanVaeWeights(const std::string& path);

  // From the config.json beside the weights, else from the shapes of the tensors.
  const WanVaeConfig& config() const { return config_; }
  // Copies each tensor that it is asked for; borrows this object.
  TensorSource load(at::ScalarType dtype, at::Device device) const;

 private:
  void check_tensors() const;

  std::string path_;  // of the file
  SafetensorsFile file_;
  std::map<std::string, std::string> stored_;  // diffusers' name -> name in the file
  WanVaeConfig config_;
};

}  // namespace vmoba::model
