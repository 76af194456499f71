#include "train/checkpoint/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include <fmt/ranges.h>

#include "core/check.h"
#include "model/adapter/lora_file.h"
#include "model/weights/weight_files.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checkpoint_tensors.h"
#include "train/checkpoint/checksums.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

// Whether what is kept of the parameters is that of another optimiser: the names before those of the parameters.
std::string other_state(const std::vector<HeldTensor>& tensors, const std::vector<std::string>& stored,
                        const Expert& expert) {
  std::set<std::string> expected, found;
  const auto kind_of = [&](const std::string& name) {
    for (const model::Parameter& p : expert.dit->trainable())
      if (name.size() > p.name.size() && name.ends_with("." + p.name))
        return name.substr(0, name.size() - p.name.size() - 1);
    return std::string();
  };
  for (const HeldTensor& tensor : tensors) expected.insert(kind_of(tensor.name));
  for (const std::string& name : stored) found.insert(kind_of(name));
  found.erase("");
  if (expected == found || found.empty()) return "";
  return fmt::format("the checkpoint's optimiser keeps {} of each parameter, this run's keeps {}",
                     fmt::join(found, ", "), fmt::join(expected, ", "));
}

bool is_finite(const at::Tensor& values, at::Device device) {
  constexpr int64_t kChunk = 1 << 24;
  const at::Tensor flat = values.detach().reshape(-1);
  for (int64_t first = 0; first < flat.numel(); first += kChunk) {
    const at::Tensor chunk = flat.narrow(0, first, std::min(kChunk, flat.numel() - first)).to(device).to(at::kFloat);
    if (!at::isfinite(chunk).all().item<bool>()) return false;
  }
  return true;
}

// Copies what this rank holds of the tensors in `path`, a file or a transformer's folder.
void load_tensors(const std::string& path, const Expert& expert, const std::vector<HeldTensor>& tensors,
                  bool optimizer = false) {
  const at::NoGradGuard no_grad;
  std::vector<model::SafetensorsFile> files;
  std::map<std::string, const model::SafetensorsFile*> file_of;
  for (const std::string& file : model::find_weight_files(path)) files.emplace_back(file);
  for (const model::SafetensorsFile& file : files)
    for (const auto& [name, info] : file.tensors()) file_of[name] = &file;
  if (optimizer) {
    std::vector<std::string> stored;
    for (const auto& [name, file] : file_of) stored.push_back(name);
    const std::string other = other_state(tensors, stored, expert);
    VMOBA_CHECK_INPUT(
        other.empty(),
        "train.optimizer: {} ('{}'); resume with the optimiser of the checkpoint, or start a new run from "
        "its weights (model.weights, lora.init_from)",
        other, path);
  }
  VMOBA_CHECK_INPUT(file_of.size() == tensors.size(),
                    "checkpoint '{}': expected {} tensors for this model configuration, found {}; the run had other "
                    "sizes or LoRA targets: restore them, or start a new run",
                    path, tensors.size(), file_of.size());
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
    VMOBA_CHECK_INPUT(is_finite(tensor.held, tensor.held.device()),
                      "'{}': expected finite values in '{}', found others; the run went wrong "
                      "before this checkpoint: resume from an earlier one",
                      path, tensor.name);
    if (found != file_of.end()) found->second->release(tensor.name);
  }
}

void load_expert(const std::string& folder, size_t number, bool lora, int64_t updates, Expert& expert) {
  const std::string weights = weights_path(folder, number, lora, /*average=*/false);
  load_tensors(weights, expert, held_weights(expert));
  load_tensors(optimizer_path(folder, number), expert, held_state(expert), /*optimizer=*/true);
  expert.optimizer->set_steps(updates);
  expert.updates = updates;
  if (expert.ema) load_tensors(weights_path(folder, number, lora, /*average=*/true), expert, held_average(expert));
}

// What the run needs is there, before anything is read.
void check_kinds(const std::string& folder, const Manifest& manifest, const CheckpointParts& parts) {
  VMOBA_CHECK_INPUT(manifest.updates.size() == parts.experts.size(),
                    "experts: expected {} transformer(s) as in the checkpoint '{}', found {}; an empty list is one "
                    "transformer",
                    manifest.updates.size(), folder, parts.experts.size());
  for (size_t i = 0; i < parts.experts.size(); ++i) {
    const bool lora = parts.lora.enabled();
    const std::string weights = weights_path(folder, i, lora, /*average=*/false);
    VMOBA_CHECK_INPUT(fs::exists(weights),
                      "checkpoint: expected {} at '{}', found none; the run had {}: restore "
                      "lora.rank",
                      lora ? "adapters" : "weights", weights, lora ? "no LoRA" : "a LoRA");
    const std::string average = weights_path(folder, i, lora, /*average=*/true);
    VMOBA_CHECK_INPUT(!parts.experts[i].ema || fs::exists(average),
                      "train.ema.enabled: expected EMA weights at '{}', found none; the run started without EMA; set "
                      "train.ema.enabled=false",
                      average);
  }
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

TrainerState load_verified_checkpoint(const std::string& folder, const CheckpointParts& parts) {
  VMOBA_CHECK_INPUT(fs::is_directory(folder), "expected a checkpoint folder at '{}', found none; check --resume",
                    folder);
  const Manifest manifest = read_manifest(folder);
  check_kinds(folder, manifest, parts);
  for (size_t i = 0; i < parts.experts.size(); ++i)
    load_expert(folder, i, parts.lora.enabled(), manifest.updates[i], parts.experts[i]);
  return manifest.state;
}

TrainerState load_checkpoint(const std::string& folder, const CheckpointParts& parts) {
  VMOBA_CHECK_INPUT(fs::is_directory(folder), "expected a checkpoint folder at '{}', found none; check --resume",
                    folder);
  check_kinds(folder, read_manifest(folder), parts);
  const std::vector<std::string> problems = checkpoint_problems(folder);
  VMOBA_CHECK_INPUT(problems.empty(), "checkpoint '{}' is damaged: {}; resume from another one", folder,
                    fmt::join(problems, "; "));
  return load_verified_checkpoint(folder, parts);
}

void check_finite_weights(const std::vector<Expert>& experts, const std::string& origin) {
  const at::NoGradGuard no_grad;
  for (const Expert& expert : experts)
    for (const auto* parameters : {&expert.dit->parameters(), &expert.dit->trainable()})
      for (const model::Parameter& p : *parameters)
        VMOBA_CHECK_INPUT(is_finite(p.tensor, expert.dit->trainable().front().tensor.device()),
                          "{}: expected finite values in '{}', found others; use weights that are "
                          "whole",
                          origin, p.name);
}

}  // namespace vmoba::train
