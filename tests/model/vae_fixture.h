// Cases of scripts/make_hunyuan_vae_fixtures.py, of either of its two VAEs.
#pragma once
#include <ATen/ATen.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/codec.h"
#include "model/weights/safetensors.h"
#include "support/paths.h"

namespace vmoba::test {

struct VaeCase {
  model::CodecConfig config;
  at::Tensor video, mean, latents, decoded;  // batches of one
};

class VaeFixture {
 public:
  // `type` of codec.type; `name` below tests/fixtures/model.
  VaeFixture(std::string type, const std::string& name, double scale)
      : type_(std::move(type)), path_(test::fixtures() + "/model/" + name), scale_(scale) {}

  const std::string& path() const { return path_; }
  nlohmann::json cases() const { return nlohmann::json::parse(std::ifstream(path_ + "_cases.json")); }

  VaeCase read(const std::string& name) const {
    const nlohmann::json stated = cases().at(name);
    VaeCase out;
    out.config.type = type_;
    out.config.weights = path_;
    out.config.tile_frames = stated.value("tile_frames", out.config.tile_frames);
    out.config.tile_frames_overlap = stated.value("tile_frames_overlap", int64_t{0});
    out.config.tile_size = stated.at("tile_size");
    out.config.tile_overlap = stated.value("tile_overlap", int64_t{0});
    const model::SafetensorsFile file(path_ + ".safetensors");
    const auto tensor = [&](const char* part) { return file.tensor(name + "." + part).to(at::kFloat).unsqueeze(0); };
    out.video = tensor("video_u8") / 127.5 - 1;
    out.mean = tensor("mean");
    out.latents = tensor("latents");
    out.decoded = tensor("decoded");
    return out;
  }

  // As the fixture keeps them: every second row and column.
  at::Tensor decoded_half(const model::Codec& codec, const at::Tensor& latents) const {
    return codec.decode(latents * scale_).slice(3, 0, c10::nullopt, 2).slice(4, 0, c10::nullopt, 2);
  }

 private:
  std::string type_, path_;
  double scale_;
};

// Of the largest value.
inline double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.abs().max()).item<double>();
}

}  // namespace vmoba::test
