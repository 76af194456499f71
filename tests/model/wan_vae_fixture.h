// Small random Wan VAEs with diffusers' latents and videos; made by scripts/make_vae_fixtures.py.
#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.h"
#include "model/codec.h"
#include "model/codec/wan_vae_weights.h"
#include "model/wan_fixture.h"

namespace vmoba::model {

struct VaeFixture {
  std::string folder;
  SafetensorsFile tensors;

  CodecConfig codec_config() const {
    CodecConfig config;
    config.type = "wan_vae";
    config.weights = folder;
    return config;
  }
  // [1, 3, F, H, W] in [-1, 1]
  at::Tensor video(const char* name) const { return (tensors.tensor(name).to(at::kFloat) / 127.5 - 1).unsqueeze(0); }
  at::Tensor batched(const char* name) const { return tensors.tensor(name).unsqueeze(0); }
};

// "21" or "22".
inline VaeFixture vae_fixture(const std::string& version) {
  return {fixture_path("wan_vae_" + version),
          SafetensorsFile(fixture_path(fmt::format("wan_vae_{}.safetensors", version)))};
}

// (latents - mean) / std or its inverse, in fp64, with the statistics of a folder's config.json.
struct Statistics {
  at::Tensor mean, deviation;  // [1, C, 1, 1, 1]

  explicit Statistics(const WanVaeConfig& config)
      : mean(at::tensor(config.latents_mean, at::kDouble).view({1, -1, 1, 1, 1})),
        deviation(at::tensor(config.latents_std, at::kDouble).view({1, -1, 1, 1, 1})) {}
  at::Tensor normalised(const at::Tensor& latents) const { return (latents.to(at::kDouble) - mean) / deviation; }
};

// diffusers' name, original name, shape
struct PublishedTensor {
  std::string name, original;
  std::vector<int64_t> shape;
};

inline nlohmann::json published_vae(const std::string& version) {
  return nlohmann::json::parse(read_file(fixture_path("wan_vae_shapes.json"), 1 << 20, "fixture")).at(version);
}

inline std::vector<PublishedTensor> published_tensors(const std::string& version) {
  std::vector<PublishedTensor> out;
  const nlohmann::json published = published_vae(version);
  for (const auto& row : published.at("tensors"))
    out.push_back({row.at(0), row.at(1), row.at(2).get<std::vector<int64_t>>()});
  return out;
}

}  // namespace vmoba::model
