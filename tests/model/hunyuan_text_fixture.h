// tests/fixtures/model/hunyuan_text, made by scripts/make_hunyuan_text_fixtures.py with diffusers and transformers.
#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/text_encoder.h"
#include "model/weights/safetensors.h"
#include "support/paths.h"

namespace vmoba::test {

inline const std::string kHunyuanText = test::fixtures() + "/model/hunyuan_text";
inline const std::string kBpe = test::fixtures() + "/model/bpe";

// "llama", "clip", "qwen" or "byt5": prompts, lengths, crop and max_tokens.
inline nlohmann::json hunyuan_case(const std::string& name) {
  return nlohmann::json::parse(std::ifstream(kHunyuanText + "/cases.json")).at(name);
}

inline at::Tensor hunyuan_expected(const std::string& name, size_t prompt) {
  return model::SafetensorsFile(kHunyuanText + "/expected.safetensors")
      .tensor(fmt::format("{}.{}", name, prompt))
      .clone();
}

inline model::TextEncoderConfig hunyuan_config() {
  model::TextEncoderConfig config;
  config.type = "hunyuan";
  config.weights = kHunyuanText;
  config.tokenizer = kBpe + "/llama";
  config.tokenizer_2 = kBpe + "/clip";
  config.dtype = "fp32";
  config.max_tokens = hunyuan_case("llama").at("max_tokens");
  return config;
}

inline double worst(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.abs().max()).item<double>();
}

}  // namespace vmoba::test
