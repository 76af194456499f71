#include "apps/sample/job.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "config/clip_geometry.h"
#include "config/experts.h"
#include "core/check.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/picture.h"
#include "model/adapter/lora_file.h"
#include "model/weights/safetensors.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checksums.h"
#include "train/checkpoint/manifest.h"

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
  size_t count = 1;
  while (fs::exists(train::weights_path(checkpoint, count, lora, /*average=*/false))) ++count;
  return count;
}

// Takes the checkpoint's transformers in place of those that its run began with.
void use_trained_weights(const SampleArguments& a, RootConfig& config) {
  const auto trained = [&](size_t expert) {
    return train::weights_path(a.checkpoint, expert, /*lora=*/false, takes_average(a));
  };
  if (config.experts.empty()) config.model.weights = trained(0);
  for (size_t i = 0; i < std::min(config.experts.size(), trained_experts(a.checkpoint)); ++i)
    config.experts[i].weights = trained(i);
}

struct AddedLora {
  size_t expert = 0;
  std::string path;
};

// "FILE" or "N:FILE".
AddedLora added_lora(const std::string& text, size_t experts) {
  const size_t digits = text.find_first_not_of("0123456789");
  if (digits == 0 || digits == std::string::npos || text[digits] != ':') return {0, text};
  const int64_t number = digits < 4 ? std::stoll(text.substr(0, digits)) : 0;
  VMOBA_CHECK_INPUT(number >= 1 && size_t(number) <= experts,
                    "--lora: expected an expert of 1 .. {} before ':', found '{}'", experts, text);
  return {size_t(number - 1), text.substr(digits + 1)};
}

std::vector<AddedLora> added_loras(const SampleArguments& a, const RootConfig& config) {
  std::vector<AddedLora> out;
  for (const std::string& text : a.loras) out.push_back(added_lora(text, expert_count(config)));
  for (const std::string& path : a.loras_2) {
    log_warning("instead of --lora-2 {0} write --lora 2:{0}; the next release refuses the old option", path);
    out.push_back(added_lora("2:" + path, expert_count(config)));
  }
  return out;
}

void check_checkpoint(const std::string& folder) {
  VMOBA_CHECK_INPUT(train::is_lora_checkpoint(folder) || fs::is_directory(folder + "/transformer"),
                    "--checkpoint: expected a folder with transformer/ or lora/, and state/, found none at '{}'",
                    folder);
  if (!fs::exists(train::manifest_path(folder))) return;  // weights that somebody put together
  const std::string weights = train::is_lora_checkpoint(folder) ? "state/lora" : "transformer";
  const std::vector<std::string> problems = train::checkpoint_problems(folder, 0, 1, /*finite=*/true, weights);
  VMOBA_CHECK_INPUT(problems.empty(), "--checkpoint: '{}' is damaged: {}; take another one", folder,
                    fmt::join(problems, "; "));
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
  if (!a.checkpoint.empty() && !train::is_lora_checkpoint(a.checkpoint)) use_trained_weights(a, config);
  for (size_t i = 0; i < expert_count(config); ++i)
    VMOBA_CHECK_INPUT(!expert_model(config, i).weights.empty(),
                      "{}: expected pretrained weights to sample from, found none; set it or give --checkpoint",
                      config.experts.empty() ? "model.weights" : fmt::format("experts[{}].weights", i));
  clip_geometry(config);  // codec and model agree
  return config;
}

std::vector<model::Dit*> SampleModel::borrowed() const {
  std::vector<model::Dit*> out;
  for (const auto& dit : dits) out.push_back(dit.get());
  return out;
}

SampleModel load_sample_model(const SampleArguments& a, const RootConfig& config, at::Device device) {
  const std::vector<AddedLora> added = added_loras(a, config);
  const bool lora = !a.checkpoint.empty() && train::is_lora_checkpoint(a.checkpoint);
  const model::Architecture& architecture = model::architecture_of(config.model);
  SampleModel out;
  for (size_t i = 0; i < expert_count(config); ++i) {
    const model::ModelConfig model = expert_model(config, i);
    out.dits.push_back(model::make_dit(model, config.attention, uint64_t(config.seed), device));
    std::vector<model::Adapter> adapters;
    if (lora && i < trained_experts(a.checkpoint))
      adapters = train::load_adapters(a.checkpoint, config.lora, architecture, i, takes_average(a), device);
    for (const AddedLora& one : added) {
      if (one.expert != i) continue;
      for (model::Adapter& adapter : model::read_lora(one.path, architecture, device)) {
        adapter.low_rank.scale *= a.lora_strength;
        adapters.push_back(std::move(adapter));
      }
    }
    if (!adapters.empty()) out.dits.back()->attach(adapters);
    log_info("weights: {}", model.weights);
  }
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
