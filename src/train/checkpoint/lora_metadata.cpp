#include "train/checkpoint/lora_metadata.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

// The folder or file that a path ends with; for .../Wan2.1-T2V-1.3B-Diffusers/transformer that of the model.
std::string model_name(const std::string& weights) {
  fs::path path = fs::path(weights).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.filename().string().starts_with("transformer") && path.has_parent_path()) path = path.parent_path();
  return path.filename().string();
}

std::string base_of(const RootConfig& config) {
  if (config.experts.empty()) return config.model.weights.empty() ? "" : model_name(config.model.weights);
  std::string out;
  for (const ExpertConfig& expert : config.experts) out += (out.empty() ? "" : ", ") + model_name(expert.weights);
  return out;
}

std::string trigger_words(const RootConfig& config) {
  if (!config.lora.trigger_words.empty()) return fmt::format("{}", fmt::join(config.lora.trigger_words, ", "));
  std::string prefix = config.data.caption_prefix;
  while (!prefix.empty() && (prefix.back() == ' ' || prefix.back() == ',')) prefix.pop_back();
  return prefix;
}

std::string sample_prompt(const RootConfig& config, const data::ClipPlan& training) {
  if (!config.sample.prompts.empty()) return config.sample.prompts.front();
  return training.clips.empty() ? "" : training.clips.front().caption;
}

std::string resolutions(const data::ClipPlan& training) {
  std::string out;
  for (const data::Bucket& bucket : training.buckets)
    out += fmt::format("{}{}x{}x{}", out.empty() ? "" : ", ", bucket.width, bucket.height, bucket.frames);
  return out;
}

// Frames and sizes with their clips, as kohya's tools list them.
std::string bucket_info(const data::ClipPlan& training) {
  nlohmann::ordered_json buckets = nlohmann::ordered_json::object();
  for (size_t i = 0; i < training.buckets.size(); ++i) {
    const data::Bucket& bucket = training.buckets[i];
    buckets[std::to_string(i)] = {{"resolution", {bucket.width, bucket.height, bucket.frames}},
                                  {"count", bucket.clips}};
  }
  return nlohmann::ordered_json{{"buckets", buckets}}.dump();
}

int64_t repeated_clips(const data::ClipPlan& training) {
  int64_t out = 0;
  for (const data::Clip& clip : training.clips) out += clip.repeats;
  return out;
}

void add_training(const RootConfig& config, const data::ClipPlan& training, const Epochs& epochs, int64_t step,
                  std::map<std::string, std::string>& out) {
  const auto epochs_of_run =
      epochs.samples > 0 ? double(config.train.steps * config.train.global_batch) / double(epochs.samples) : 0.0;
  out["ss_steps"] = std::to_string(step);
  out["ss_max_train_steps"] = std::to_string(config.train.steps);
  out["ss_epoch"] = std::to_string(epochs.done(step));
  out["ss_num_epochs"] = fmt::format("{:.0f}", std::ceil(epochs_of_run - 1e-9));
  out["ss_learning_rate"] = fmt::format("{}", config.train.optimizer.lr);
  out["ss_lr_scheduler"] = config.train.optimizer.schedule;
  out["ss_lr_warmup_steps"] = std::to_string(config.train.optimizer.warmup_steps);
  out["ss_optimizer"] = config.train.optimizer.type;
  out["ss_max_grad_norm"] = fmt::format("{}", config.train.optimizer.max_grad_norm);
  out["ss_total_batch_size"] = std::to_string(config.train.global_batch);
  out["ss_seed"] = std::to_string(config.seed);
  out["ss_num_train_items"] = std::to_string(repeated_clips(training));
  out["ss_mixed_precision"] = config.model.compute_dtype;
  out["ss_discrete_flow_shift"] = fmt::format("{}", config.train.flow.shift);
  out["ss_bucket_info"] = bucket_info(training);
}

}  // namespace

std::map<std::string, std::string> lora_metadata(const RootConfig& config, const data::ClipPlan& training,
                                                 const Epochs& epochs, int64_t step) {
  const std::string base = base_of(config), words = trigger_words(config), prompt = sample_prompt(config, training);
  const double alpha = config.lora.alpha > 0 ? config.lora.alpha : double(config.lora.rank);
  fs::path dir = fs::path(config.run.dir).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  const std::string name = dir.filename().string();
  std::map<std::string, std::string> out;
  add_training(config, training, epochs, step, out);
  out["ss_base_model_version"] = config.model.architecture;
  out["ss_sd_model_name"] = base;
  out["ss_output_name"] = name;
  out["ss_network_module"] = "networks.lora_" + config.model.architecture;
  out["ss_network_dim"] = std::to_string(config.lora.rank);
  out["ss_network_alpha"] = fmt::format("{}", alpha);
  out["ss_network_args"] =
      config.lora.plus_ratio == 1
          ? "{}"
          : nlohmann::json{{"loraplus_lr_ratio", fmt::format("{}", config.lora.plus_ratio)}}.dump();
  out["ss_caption_prefix"] = config.data.caption_prefix;
  out["ss_trigger_words"] = words;
  out["ss_sample_prompt"] = prompt;
  out["modelspec.sai_model_spec"] = "1.0.1";
  out["modelspec.architecture"] = config.model.architecture + "/lora";
  out["modelspec.implementation"] = "vmoba";
  out["modelspec.title"] = name;
  out["modelspec.trigger_phrase"] = words;
  out["modelspec.usage_hint"] = prompt;
  out["modelspec.resolution"] = resolutions(training);
  out["modelspec.prediction_type"] = "flow";
  std::erase_if(out, [](const auto& entry) { return entry.second.empty(); });
  return out;
}

}  // namespace vmoba::train
