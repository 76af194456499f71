#include "model/codec/wan_vae_weights.h"

#include <fmt/format.h>

#include "model/codec/wan_vae_names.h"
#include "model/codec/wan_vae_network.h"

namespace vmoba::model {
namespace {

const CodecFileKind& wan_vae_files() {
  static const CodecFileKind kind = {
      "wan_vae",
      "get the folder vae/ of Wan-AI/Wan2.1-T2V-1.3B-Diffusers (any Wan2.1 or Wan2.2 A14B) or of "
      "Wan-AI/Wan2.2-TI2V-5B-Diffusers on Hugging Face, or wan_2.1_vae.safetensors or wan2.2_vae.safetensors from "
      "Comfy-Org, and set codec.weights",
      wan_vae_name};
  return kind;
}

}  // namespace

WanVaeWeights::WanVaeWeights(const std::string& path) : weights_(path, wan_vae_files()) {
  const std::string config_file = weights_.config_file();
  config_ = config_file.empty()
                ? deduce_wan_vae_config([&](const std::string& name) { return weights_.shape(name); }, weights_.path())
                : read_wan_vae_config(config_file);
  weights_.check(wan_vae_specs(config_),
                 fmt::format("a Wan{} VAE with base_dim {}", config_.is_residual ? "2.2" : "2.1", config_.base_dim));
}

}  // namespace vmoba::model
