// What vmoba-sample was asked for, turned into a configuration, a model and a request.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/sample/prompts.h"
#include "config/root_config.h"
#include "model/weight_store.h"
#include "sample/pipeline.h"

namespace vmoba::apps {

struct SampleArguments {
  std::string checkpoint, config;  // one of them
  std::string prompt, negative, image, last_image;
  std::string prompts;          // a file of several (prompts.h)
  std::string latents, embeds;  // safetensors files
  std::string out, output_latents;
  std::vector<std::string> overrides;
  std::optional<int64_t> seed;  // -1: drawn
  int64_t rank = 0, ranks = 1;  // this process's share of the videos
  bool use_ema = true;
  std::vector<std::string> loras;    // "FILE" or "N:FILE"
  std::vector<std::string> loras_2;  // read as "2:FILE"
  double lora_strength = 1;
};

// With the newest checkpoint in place of a run's folder.
SampleArguments with_checkpoint(SampleArguments a);

// The checkpoint's or file's configuration with model.weights or experts where the weights are and sample.* as the
// options say.
// Throws Error(kInput) where options do not go together.
RootConfig sample_config(const SampleArguments& a);

// The videos to make, with the names of their files (none where only latents are written). Their sizes and files are
// checked. Throws Error(kInput).
std::vector<VideoOrder> sample_orders(const SampleArguments& a, const RootConfig& config);

// The transformer of each expert, with the LoRA of a checkpoint and those of --lora.
struct SampleModel {
  std::vector<std::unique_ptr<model::WeightStore>> rings;  // where their weights wait in the host's memory
  std::vector<std::unique_ptr<model::Dit>> dits;
  std::vector<model::Dit*> borrowed() const;
};
SampleModel load_sample_model(const SampleArguments& a, const RootConfig& config, at::Device device);

// Images at the video's size and the tensors of --latents and --embeds.
sample::SampleRequest sample_request(const SampleArguments& a, const VideoOrder& order);

}  // namespace vmoba::apps
