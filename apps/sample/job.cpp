#include "apps/sample/job.h"

#include <fmt/ranges.h>

#include <filesystem>
#include <set>

#include "config/clip_geometry.h"
#include "core/check.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/picture.h"
#include "model/weights/lora_file.h"
#include "model/weights/safetensors.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/checkpoint_folder.h"

namespace vmoba::apps {
namespace {

namespace fs = std::filesystem;

// Of a checkpoint: whether its averaged weights are taken.
bool takes_average(const SampleArguments& a) {
  const bool lora = train::is_lora_checkpoint(a.checkpoint);
  return a.use_ema && fs::exists(a.checkpoint + (lora ? "/lora_ema" : "/transformer_ema"));
}

size_t trained_experts(const std::string& checkpoint) {
  const bool lora = train::is_lora_checkpoint(checkpoint);
  return fs::exists(train::weights_path(checkpoint, 1, lora, /*average=*/false)) ? 2 : 1;
}

void check_checkpoint(const std::string& folder) {
  VMOBA_CHECK_INPUT(train::is_lora_checkpoint(folder) || fs::is_directory(folder + "/transformer"),
                    "--checkpoint: expected a folder with transformer/ or lora/, and state/, found none at '{}'",
                    folder);
}

// The named tensors of a file; others are refused, so that a misspelt one is not silently drawn instead.
std::vector<at::Tensor> read_tensors(const std::string& path, const std::vector<std::string>& names) {
  std::vector<at::Tensor> out(names.size());
  if (path.empty()) return out;
  const model::SafetensorsFile file(path);
  const std::set<std::string> known(names.begin(), names.end());
  for (const auto& [name, info] : file.tensors())
    VMOBA_CHECK_INPUT(known.contains(name), "'{}': expected tensors named {}, found '{}'", path, fmt::join(names, ", "),
                      name);
  for (size_t i = 0; i < names.size(); ++i)
    if (file.contains(names[i])) out[i] = file.tensor(names[i]).clone();
  return out;
}

at::Tensor read_image(const std::string& path, const SampleConfig& config) {
  if (path.empty()) return {};
  return data::to_unit_range(data::read_picture(path, 0, config.height, config.width));
}

// A file of tensors with 'latents' alone, or with 'latents' among the embeddings.
const std::vector<std::string> kLatentNames = {"latents"};
const std::vector<std::string> kEmbedNames = {"prompt_embeds", "negative_prompt_embeds", "image_embeds", "latents"};

}  // namespace

RootConfig sample_config(const SampleArguments& a) {
  VMOBA_CHECK_INPUT(a.checkpoint.empty() != a.config.empty(), "expected --checkpoint or --config, found {}",
                    a.config.empty() ? "neither" : "both");
  if (!a.checkpoint.empty()) check_checkpoint(a.checkpoint);
  RootConfig config =
      load_root_config(a.checkpoint.empty() ? a.config : a.checkpoint + "/state/config.yaml", a.overrides);
  if (a.seed >= 0) config.sample.seed = a.seed;
  if (!a.negative.empty()) config.sample.negative_prompt = a.negative;
  if (!a.checkpoint.empty() && !train::is_lora_checkpoint(a.checkpoint)) {
    config.model.weights = train::weights_path(a.checkpoint, 0, /*lora=*/false, takes_average(a));
    if (config.model.boundary > 0 && trained_experts(a.checkpoint) == 2)
      config.model.weights_2 = train::weights_path(a.checkpoint, 1, /*lora=*/false, takes_average(a));
  }
  VMOBA_CHECK_INPUT(!config.model.weights.empty(),
                    "model.weights: expected pretrained weights to sample from, found none; set model.weights or give "
                    "--checkpoint");
  clip_geometry(config);  // codec and model agree
  return config;
}

SampleModel load_sample_model(const SampleArguments& a, const RootConfig& config, at::Device device) {
  VMOBA_CHECK_INPUT(config.model.boundary > 0 || a.loras_2.empty(),
                    "--lora-2: expected a model of two experts (model.boundary above 0), found one transformer");
  const auto load = [&](const model::ModelConfig& model, const std::vector<std::string>& loras,
                        std::vector<model::Adapter> adapters) {
    auto dit = model::make_dit(model, config.attention, uint64_t(config.seed), device);
    for (const std::string& path : loras) {
      for (model::Adapter& adapter : model::read_lora(path, device)) {
        adapter.low_rank.scale *= a.lora_strength;
        adapters.push_back(std::move(adapter));
      }
    }
    if (!adapters.empty()) dit->attach(adapters);
    log_info("weights: {}", model.weights);
    return dit;
  };
  const auto trained = [&](size_t expert) {
    if (a.checkpoint.empty() || !train::is_lora_checkpoint(a.checkpoint) || expert >= trained_experts(a.checkpoint))
      return std::vector<model::Adapter>();
    return train::load_adapters(a.checkpoint, config.lora, expert, takes_average(a), device);
  };
  SampleModel out;
  out.dit = load(config.model, a.loras, trained(0));
  if (config.model.boundary > 0) out.low_noise_dit = load(model::low_noise_expert(config.model), a.loras_2, trained(1));
  return out;
}

sample::SampleRequest sample_request(const SampleArguments& a, const RootConfig& config) {
  sample::SampleRequest request;
  request.prompt = a.prompt;
  request.seed = uint64_t(config.sample.seed);
  request.first_CHW = read_image(a.image, config.sample);
  request.last_CHW = read_image(a.last_image, config.sample);
  const std::vector<at::Tensor> embeds = read_tensors(a.embeds, kEmbedNames);
  const std::vector<at::Tensor> latents = read_tensors(a.latents, kLatentNames);
  request.given = {latents[0].defined() ? latents[0] : embeds[3], {embeds[0]}, {embeds[1]}, embeds[2]};
  VMOBA_CHECK_INPUT(!a.prompt.empty() || request.given.prompt.tokens_BLE.defined(),
                    "expected --prompt or --embeds with prompt_embeds, found neither");
  return request;
}

}  // namespace vmoba::apps
