// What vmoba-sample was asked for, turned into a configuration, a model and a request.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "sample/pipeline.h"

namespace vmoba::apps {

struct SampleArguments {
  std::string checkpoint, config;  // one of them
  std::string prompt, negative, image, last_image;
  std::string latents, embeds;  // safetensors files
  std::string out, output_latents;
  std::vector<std::string> overrides;
  int64_t seed = -1;
  bool use_ema = true;
  std::vector<std::string> loras, loras_2;  // of the (high-noise) transformer, and of the expert of low noise
  double lora_strength = 1;
};

// The checkpoint's or file's configuration with model.weights where the weights are and sample.* as the options say.
// Throws Error(kInput) where options do not go together.
RootConfig sample_config(const SampleArguments& a);

// One transformer, or two experts, with the LoRA of a checkpoint and those of --lora and --lora-2.
struct SampleModel {
  std::unique_ptr<model::Dit> dit, low_noise_dit;
};
SampleModel load_sample_model(const SampleArguments& a, const RootConfig& config, at::Device device);

// Images at sample.height x sample.width and the tensors of --latents and --embeds.
sample::SampleRequest sample_request(const SampleArguments& a, const RootConfig& config);

}  // namespace vmoba::apps
