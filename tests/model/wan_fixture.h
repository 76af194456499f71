// Small random Wan transformers with diffusers' outputs and gradients; made by scripts/make_wan_fixtures.py.
#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <map>
#include <string>
#include <vector>

#include "attention/vmoba/config.h"
#include "model/architecture.h"
#include "model/dit.h"
#include "model/recompute_plan.h"
#include "model/wan/wan_config.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/paths.h"

namespace vmoba::model {

inline std::string fixture_path(const std::string& name) {
  return fmt::format("{}/model/{}", test::fixtures(), name);
}

inline const Architecture& wan_row() {
  return architectures().find("wan");
}

inline ModelConfig wan_t2v_config() {
  ModelConfig config;
  config.layers = 2;
  config.heads = 2;
  config.head_dim = 20;
  config.own<WanConfig>().ffn_dim = 56;
  config.in_channels = config.out_channels = 4;
  config.text_dim = 12;
  config.own<WanConfig>().freq_dim = 16;
  config.weights = fixture_path("wan_t2v");
  return config;
}

inline ModelConfig wan_variant_config() {
  ModelConfig config;
  config.layers = 2;
  config.heads = 3;
  config.head_dim = 12;
  config.own<WanConfig>().ffn_dim = 20;
  config.in_channels = 5;
  config.out_channels = 3;
  config.text_dim = 8;
  config.own<WanConfig>().freq_dim = 10;
  config.patch_size = {2, 1, 3};
  config.own<WanConfig>().cross_attn_norm = false;
  config.eps = 1e-4;
  config.weights = fixture_path("wan_variant");
  return config;
}

// Wan2.1 I2V, FLF2V and Wan2.2 TI2V-5B in small.
inline ModelConfig wan_small_config(const std::string& name) {
  ModelConfig config;
  config.layers = 2;
  config.heads = 2;
  config.head_dim = 12;
  config.own<WanConfig>().ffn_dim = 20;
  config.text_dim = 4;
  config.own<WanConfig>().freq_dim = 8;
  config.weights = fixture_path(name);
  return config;
}

inline ModelConfig wan_i2v_config() {
  ModelConfig config = wan_small_config("wan_i2v");
  config.in_channels = 10;
  config.out_channels = 3;
  config.image_dim = 10;
  config.task = "i2v";
  return config;
}

inline ModelConfig wan_flf2v_config() {
  ModelConfig config = wan_i2v_config();
  config.layers = 1;
  config.own<WanConfig>().image_pos_tokens = 14;
  config.task = "flf2v";
  config.weights = fixture_path("wan_flf2v");
  return config;
}

inline ModelConfig wan_ti2v_config() {
  ModelConfig config = wan_small_config("wan_ti2v");
  config.in_channels = config.out_channels = 6;
  config.task = "ti2v";
  return config;
}

inline attention::AttentionConfig full_attention() {
  attention::AttentionConfig config;
  config.backend = "full";
  return config;
}

inline attention::AttentionConfig small_vmoba() {
  attention::AttentionConfig config;
  auto& vmoba = config.part<attention::VmobaConfig>();
  vmoba.temporal_chunk = 1;
  vmoba.spatial_chunk = {2, 2};
  vmoba.spatiotemporal_chunk = {2, 2, 2};
  return config;
}

inline RecomputePlan every_block(const ModelConfig& config, const RecomputePolicy& policy) {
  return RecomputePlan(std::vector<RecomputePolicy>(size_t(config.layers), policy));
}

// Output, input gradients and parameter gradients of sum(output * cotangent), by the names of the fixture files.
inline std::map<std::string, at::Tensor> run_wan(Dit& model, const SafetensorsFile& fixture,
                                                 const ForwardOptions& options) {
  const auto leaf = [&](const char* name) { return fixture.tensor(name).clone().requires_grad_(true); };
  const at::Tensor latents = leaf("latents"), text = leaf("text");
  for (const Parameter& parameter : model.parameters()) parameter.tensor.mutable_grad() = at::Tensor();
  const at::Tensor image = fixture.contains("image") ? leaf("image") : at::Tensor();
  const at::Tensor output = model.forward({latents, fixture.tensor("timestep"), {{text}, image}}, options);
  (output * fixture.tensor("cotangent")).sum().backward();
  std::map<std::string, at::Tensor> results = {
      {"output", output.detach()}, {"grad.input.latents", latents.grad()}, {"grad.input.text", text.grad()}};
  if (image.defined()) results["grad.input.image"] = image.grad();
  for (const Parameter& parameter : model.parameters()) results["grad." + parameter.name] = parameter.tensor.grad();
  return results;
}

// max |found - expected| / max |expected|
inline double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  REQUIRE(found.defined());
  REQUIRE(found.sizes() == expected.sizes());
  const at::Tensor wide = expected.to(at::kDouble);
  return ((found.to(at::kDouble) - wide).abs().max() / wide.abs().max()).item<double>();
}

}  // namespace vmoba::model
