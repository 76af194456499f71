#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include <fmt/ranges.h>

#include "core/check.h"
#include "core/file.h"
#include "core/log.h"
#include "model/weights/lora_file.h"
#include "model/weights/save.h"
#include "model/weights/weight_files.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kUnfinished = ".unfinished";  // suffix of a folder that is being written or deleted

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  VMOBA_CHECK(!error && fs::is_directory(path),
              "expected to make the folder '{}', found: {}; check permissions or choose another run.dir", path.string(),
              error ? error.message() : "a file of that name");
}

// Deletes a folder that may be large: renamed first, so that a crash never leaves half a checkpoint under its name.
void remove_folder(const fs::path& path) {
  std::error_code error;
  fs::path doomed = path;
  if (path.extension() != kUnfinished) {
    doomed += kUnfinished;
    fs::rename(path, doomed, error);
  }
  fs::remove_all(doomed, error);
  if (error) log_warning("could not remove {}: {}", doomed.string(), error.message());
}

at::ScalarType file_dtype(const std::string& name) {
  return name == "bf16" ? at::kBFloat16 : name == "fp16" ? at::kHalf : at::kFloat;
}

// Pairs of "<module>.lora_A.weight" and "<module>.lora_B.weight".
std::vector<model::Adapter> adapters_of(const std::vector<model::NamedTensor>& tensors, double scale) {
  std::vector<model::Adapter> out;
  for (size_t i = 0; i + 1 < tensors.size(); i += 2) {
    const std::string& name = tensors[i].name;
    out.push_back({name.substr(0, name.rfind(".lora_A.")), {tensors[i].tensor, tensors[i + 1].tensor, scale}});
  }
  return out;
}

// What follows "lora", "optimizer" or "transformer" in the names of an expert's files.
const char* suffix_of(size_t expert) {
  return expert == 0 ? "" : "_2";
}

std::string optimizer_path(const std::string& folder, size_t expert) {
  return folder + "/state/optimizer" + suffix_of(expert) + ".safetensors";
}

// The weights or adapters of one expert, or their average.
void write_weights(const fs::path& folder, const CheckpointParts& parts, size_t expert, bool average) {
  const Expert& of = parts.experts[expert];
  std::vector<model::NamedTensor> tensors;
  if (average)
    tensors = of.ema->weights();
  else
    for (const model::Parameter& p : of.dit->trainable()) tensors.push_back({p.name, p.tensor.detach()});
  const std::string path = weights_path(folder.string(), expert, parts.lora.enabled(), average);
  if (!parts.lora.enabled())
    return model::save_transformer(path, of.dit->config_json(), model::tensors_to_write(tensors));
  model::write_safetensors(path, tensors);
  const fs::path for_tools = folder / (average ? "lora_ema" : "lora");
  make_folder(for_tools);
  for (const std::string& format : parts.lora.formats) {
    const std::string level = expert_name(expert, parts.experts.size());
    const std::string name = format + (level.empty() ? "" : "_" + level) + ".safetensors";
    model::write_lora((for_tools / name).string(), adapters_of(tensors, parts.lora.scale()), model::lora_format(format),
                      file_dtype(parts.lora.save_dtype));
  }
  sync_path(for_tools.string());
}

void write_parts(const fs::path& folder, const TrainerState& state, const CheckpointParts& parts) {
  make_folder(folder / "state");
  std::vector<int64_t> updates;
  for (size_t i = 0; i < parts.experts.size(); ++i) {
    const Expert& expert = parts.experts[i];
    write_weights(folder, parts, i, /*average=*/false);
    if (expert.ema) write_weights(folder, parts, i, /*average=*/true);
    model::write_safetensors(optimizer_path(folder.string(), i), expert.optimizer->state());
    updates.push_back(expert.updates);
  }
  const nlohmann::json info = {
      {"format", 1},        {"step", state.step}, {"next_sample", state.next_sample},
      {"seed", state.seed}, {"updates", updates}, {"ema", parts.experts.front().ema != nullptr}};
  write_file_atomically((folder / "state" / "config.yaml").string(), parts.config_yaml);
  write_file_atomically((folder / "state" / "trainer.json").string(), info.dump(2) + "\n");
  sync_path((folder / "state").string());
  sync_path(folder.string());
}

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
  const std::string text = read_file(path, 1 << 20, "a checkpoint's state");
  nlohmann::json info = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto is_count = [&](const char* key) { return info.contains(key) && info[key].is_number_unsigned(); };
  VMOBA_CHECK_INPUT(info.is_object() && is_count("step") && is_count("next_sample") && is_count("seed"),
                    "expected step, next_sample and seed in '{}', found something else; the checkpoint is damaged, "
                    "resume from another one",
                    path);
  return info;
}

}  // namespace

std::string checkpoint_path(const std::string& run_dir, int64_t step) {
  return (fs::path(run_dir) / (kPrefix + std::to_string(step))).string();
}

std::vector<int64_t> checkpoint_steps(const std::string& run_dir) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run_dir, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t step = 0;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + std::string(kPrefix).size(), end, step);
    if (parsed.ec == std::errc() && parsed.ptr == end) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::string save_checkpoint(const std::string& run_dir, const TrainerState& state, const CheckpointParts& parts,
                            int64_t keep) {
  const fs::path final_path = checkpoint_path(run_dir, state.step);
  fs::path working = final_path;
  working += kUnfinished;
  if (fs::exists(working)) remove_folder(working);
  try {
    write_parts(working, state, parts);
    // A resumed run meets its own older checkpoint of the same step when the user asked for an earlier one.
    if (fs::exists(final_path)) remove_folder(final_path);
    fs::rename(working, final_path);
    sync_path(run_dir);
  } catch (const fs::filesystem_error& e) {
    remove_folder(working);
    throw_runtime("expected to save '{}', found: {}; older checkpoints are untouched", final_path.string(), e.what());
  } catch (const Error& e) {
    remove_folder(working);
    throw_runtime("could not save '{}' ({}); older checkpoints are untouched", final_path.string(), e.what());
  }
  const std::vector<int64_t> steps = checkpoint_steps(run_dir);
  for (size_t i = 0; keep > 0 && i + size_t(keep) < steps.size(); ++i)
    if (steps[i] != state.step) remove_folder(checkpoint_path(run_dir, steps[i]));
  return final_path.string();
}

namespace {

// Copies tensors of `path` (a file or a transformer's folder) into `tensors` under the parameters' names.
void copy_weights(const std::string& path, const std::vector<model::Parameter>& parameters,
                  const std::vector<at::Tensor>& tensors) {
  const at::NoGradGuard no_grad;
  std::vector<model::SafetensorsFile> files;
  std::map<std::string, const model::SafetensorsFile*> file_of;
  for (const std::string& file : model::find_weight_files(path)) files.emplace_back(file);
  for (const model::SafetensorsFile& file : files)
    for (const auto& [name, info] : file.tensors()) file_of[name] = &file;
  VMOBA_CHECK_INPUT(file_of.size() == parameters.size(),
                    "'{}': expected {} tensors for this model configuration, found {}", path, parameters.size(),
                    file_of.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i].name;
    const auto found = file_of.find(name);
    const at::Tensor stored = (found == file_of.end() ? files.front() : *found->second).tensor(name);
    VMOBA_CHECK_INPUT(stored.sizes() == tensors[i].sizes(),
                      "'{}': expected '{}' with shape {}, found {}; the checkpoint belongs to another model "
                      "configuration",
                      path, name, fmt::format("[{}]", fmt::join(tensors[i].sizes(), ", ")),
                      fmt::format("[{}]", fmt::join(stored.sizes(), ", ")));
    tensors[i].detach().copy_(stored);
    if (found != file_of.end()) found->second->release(name);
  }
}

}  // namespace

std::string weights_path(const std::string& folder, size_t expert, bool lora, bool average) {
  const std::string suffix = std::string(suffix_of(expert)) + (average ? "_ema" : "");
  return lora ? folder + "/state/lora" + suffix + ".safetensors" : folder + "/transformer" + suffix;
}

bool is_lora_checkpoint(const std::string& folder) {
  return fs::exists(weights_path(folder, 0, /*lora=*/true, /*average=*/false));
}

std::vector<model::Adapter> load_adapters(const std::string& folder, const model::LoraConfig& config, size_t expert,
                                          bool average, at::Device device) {
  std::vector<model::Adapter> adapters = model::read_lora(weights_path(folder, expert, true, average), device);
  for (model::Adapter& adapter : adapters) adapter.low_rank.scale = config.scale();
  return adapters;
}

namespace {

void load_expert(const std::string& folder, size_t number, bool lora, int64_t updates, Expert& expert) {
  const std::vector<model::Parameter>& trained = expert.dit->trainable();
  const std::string weights = weights_path(folder, number, lora, /*average=*/false);
  VMOBA_CHECK_INPUT(fs::exists(weights),
                    "expected {} at '{}', found none; lora.rank must be as in the checkpoint's run",
                    lora ? "adapters" : "weights", weights);
  std::vector<at::Tensor> tensors;
  for (const model::Parameter& p : trained) tensors.push_back(p.tensor);
  copy_weights(weights, trained, tensors);
  expert.optimizer->load_state(model::SafetensorsFile(optimizer_path(folder, number)), updates);
  expert.updates = updates;
  if (!expert.ema) return;
  const std::string average = weights_path(folder, number, lora, /*average=*/true);
  VMOBA_CHECK_INPUT(fs::exists(average),
                    "train.ema.enabled: expected EMA weights at '{}', found none; the run was started without EMA",
                    average);
  copy_weights(average, trained, expert.ema->tensors());
}

}  // namespace

TrainerState load_checkpoint(const std::string& folder, const CheckpointParts& parts) {
  VMOBA_CHECK_INPUT(fs::is_directory(folder), "expected a checkpoint folder at '{}', found none; check --resume",
                    folder);
  const nlohmann::json info = read_trainer_json(folder);
  TrainerState state{info["step"].get<int64_t>(), info["next_sample"].get<int64_t>(), info["seed"].get<uint64_t>()};
  const std::vector<int64_t> updates = updates_of(info, state.step);
  VMOBA_CHECK_INPUT(updates.size() == parts.experts.size(),
                    "model.boundary: expected {} expert(s) as in the checkpoint '{}', found {}; 0 is one transformer, "
                    "above 0 two",
                    updates.size(), folder, parts.experts.size());
  for (size_t i = 0; i < updates.size(); ++i)
    load_expert(folder, i, parts.lora.enabled(), updates[i], parts.experts[i]);
  return state;
}

void prepare_run_folder(const std::string& run_dir) {
  make_folder(run_dir);
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(run_dir)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kUnfinished)) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) remove_folder(path);
  VMOBA_CHECK(::access(run_dir.c_str(), W_OK) == 0,
              "expected a writable folder at run.dir '{}', found a read-only one; change its permissions or run.dir",
              run_dir);
}

std::optional<std::string> set_aside_earlier_run(const std::string& run_dir) {
  if (!fs::exists(fs::path(run_dir) / "metrics.jsonl") && checkpoint_steps(run_dir).empty()) return std::nullopt;
  std::string base = fs::path(run_dir).lexically_normal().string();
  if (base.size() > 1 && base.back() == '/') base.pop_back();
  int64_t number = 1;
  while (fs::exists(fmt::format("{}.{}", base, number))) ++number;
  const std::string place = fmt::format("{}.{}", base, number);
  std::error_code error;
  fs::rename(base, place, error);
  VMOBA_CHECK(!error,
              "expected to move the earlier run '{}' to '{}', found: {}; pass --resume latest or another run.dir", base,
              place, error.message());
  return place;
}

}  // namespace vmoba::train
