#include "train/checkpoint/checkpoint.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include <fmt/ranges.h>

#include "core/check.h"
#include "core/file.h"
#include "model/adapter/lora_file.h"
#include "model/weights/weight_files.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checkpoint_tensors.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

// Optimiser steps that each expert has made; checkpoints of earlier versions, which have one, do not say.
std::vector<int64_t> updates_of(const nlohmann::json& info, int64_t step) {
  const auto found = info.find("updates");
  if (found == info.end()) return {step};
  std::vector<int64_t> updates;
  for (const nlohmann::json& count : *found) updates.push_back(count.is_number_unsigned() ? count.get<int64_t>() : -1);
  return updates;
}

nlohmann::json read_trainer_json(const std::string& folder) {
  const std::string path = folder + "/state/trainer.json";
  const std::string text = read_file(path, 64 << 20, "a checkpoint's state");
  nlohmann::json info = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto is_count = [&](const char* key) { return info.contains(key) && info[key].is_number_unsigned(); };
  VMOBA_CHECK_INPUT(info.is_object() && is_count("step") && is_count("next_sample") && is_count("seed"),
                    "expected step, next_sample and seed in '{}', found something else; the checkpoint is damaged, "
                    "resume from another one",
                    path);
  return info;
}

// Checkpoints of earlier versions have none.
std::vector<data::ClipFailure> failed_clips_of(const nlohmann::json& info) {
  std::vector<data::ClipFailure> out;
  const auto found = info.find("failed_clips");
  if (found == info.end() || !found->is_array()) return out;
  for (const nlohmann::json& entry : *found) {
    const auto count = [&](const char* key) {
      return entry.is_object() && entry.contains(key) && entry[key].is_number_unsigned();
    };
    if (count("clip") && count("sample"))
      out.push_back(
          {entry["clip"].get<int64_t>(), entry["sample"].get<int64_t>(),
           !entry.contains("final") || entry["final"] != false,
           entry.contains("reason") && entry["reason"].is_string() ? entry["reason"].get<std::string>() : ""});
  }
  return out;
}

// Copies what this rank holds of the tensors in `path`, a file or a transformer's folder.
void load_tensors(const std::string& path, const Expert& expert, const std::vector<HeldTensor>& tensors) {
  const at::NoGradGuard no_grad;
  std::vector<model::SafetensorsFile> files;
  std::map<std::string, const model::SafetensorsFile*> file_of;
  for (const std::string& file : model::find_weight_files(path)) files.emplace_back(file);
  for (const model::SafetensorsFile& file : files)
    for (const auto& [name, info] : file.tensors()) file_of[name] = &file;
  VMOBA_CHECK_INPUT(file_of.size() == tensors.size(),
                    "'{}': expected {} tensors for this model configuration, found {}", path, tensors.size(),
                    file_of.size());
  for (const HeldTensor& tensor : tensors) {
    const auto found = file_of.find(tensor.name);
    const at::Tensor stored = (found == file_of.end() ? files.front() : *found->second).tensor(tensor.name);
    VMOBA_CHECK_INPUT(stored.sizes() == at::IntArrayRef(tensor.shape),
                      "'{}': expected '{}' with shape {}, found {}; the checkpoint belongs to another model "
                      "configuration",
                      path, tensor.name, fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
                      fmt::format("[{}]", fmt::join(stored.sizes(), ", ")));
    const ValueRun own = held_run(expert, tensor);
    tensor.held.view(-1).narrow(0, 0, own.count).copy_(stored.reshape(-1).narrow(0, own.begin, own.count));
    if (found != file_of.end()) found->second->release(tensor.name);
  }
}

void load_expert(const std::string& folder, size_t number, bool lora, int64_t updates, Expert& expert) {
  const std::string weights = weights_path(folder, number, lora, /*average=*/false);
  VMOBA_CHECK_INPUT(fs::exists(weights),
                    "expected {} at '{}', found none; lora.rank must be as in the checkpoint's run",
                    lora ? "adapters" : "weights", weights);
  load_tensors(weights, expert, held_weights(expert));
  load_tensors(optimizer_path(folder, number), expert, held_state(expert));
  expert.optimizer->set_steps(updates);
  expert.updates = updates;
  if (!expert.ema) return;
  const std::string average = weights_path(folder, number, lora, /*average=*/true);
  VMOBA_CHECK_INPUT(fs::exists(average),
                    "train.ema.enabled: expected EMA weights at '{}', found none; the run was started without EMA",
                    average);
  load_tensors(average, expert, held_average(expert));
}

}  // namespace

bool is_lora_checkpoint(const std::string& folder) {
  return fs::exists(weights_path(folder, 0, /*lora=*/true, /*average=*/false));
}

std::vector<model::Adapter> load_adapters(const std::string& folder, const model::LoraConfig& config,
                                          const model::Architecture& architecture, size_t expert, bool average,
                                          at::Device device) {
  std::vector<model::Adapter> adapters =
      model::read_lora(weights_path(folder, expert, true, average), architecture, device);
  for (model::Adapter& adapter : adapters) adapter.low_rank.scale = config.scale();
  return adapters;
}

TrainerState load_checkpoint(const std::string& folder, const CheckpointParts& parts) {
  VMOBA_CHECK_INPUT(fs::is_directory(folder), "expected a checkpoint folder at '{}', found none; check --resume",
                    folder);
  const nlohmann::json info = read_trainer_json(folder);
  TrainerState state{info["step"].get<int64_t>(), info["next_sample"].get<int64_t>(), info["seed"].get<uint64_t>(),
                     failed_clips_of(info)};
  const std::vector<int64_t> updates = updates_of(info, state.step);
  VMOBA_CHECK_INPUT(updates.size() == parts.experts.size(),
                    "experts: expected {} transformer(s) as in the checkpoint '{}', found {}; an empty list is one "
                    "transformer",
                    updates.size(), folder, parts.experts.size());
  for (size_t i = 0; i < updates.size(); ++i)
    load_expert(folder, i, parts.lora.enabled(), updates[i], parts.experts[i]);
  return state;
}

}  // namespace vmoba::train
