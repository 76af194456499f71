#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include <fmt/ranges.h>

#include "core/check.h"
#include "core/file.h"
#include "core/log.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kWeights = "diffusion_pytorch_model.safetensors";
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

void write_transformer(const fs::path& folder, const std::string& config_json,
                       const std::vector<model::NamedTensor>& tensors) {
  make_folder(folder);
  write_file_atomically((folder / "config.json").string(), config_json);
  model::write_safetensors((folder / kWeights).string(), tensors, {{"format", "pt"}});
  sync_path(folder.string());
}

void write_parts(const fs::path& folder, const TrainerState& state, const CheckpointParts& parts) {
  std::vector<model::NamedTensor> weights;
  for (const model::Parameter& p : parts.dit.parameters()) weights.push_back({p.name, p.tensor.detach()});
  write_transformer(folder / "transformer", parts.dit.config_json(), weights);
  if (parts.ema) write_transformer(folder / "transformer_ema", parts.dit.config_json(), parts.ema->weights());
  make_folder(folder / "state");
  model::write_safetensors((folder / "state" / "optimizer.safetensors").string(), parts.optimizer.state());
  const nlohmann::json info = {{"format", 1},
                               {"step", state.step},
                               {"next_sample", state.next_sample},
                               {"seed", state.seed},
                               {"ema", parts.ema != nullptr}};
  write_file_atomically((folder / "state" / "config.yaml").string(), parts.config_yaml);
  write_file_atomically((folder / "state" / "trainer.json").string(), info.dump(2) + "\n");
  sync_path((folder / "state").string());
  sync_path(folder.string());
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

void load_weights(const std::string& transformer_folder, model::Dit& dit) {
  const at::NoGradGuard no_grad;
  const model::SafetensorsFile file(transformer_folder + "/" + kWeights);
  VMOBA_CHECK_INPUT(file.tensors().size() == dit.parameters().size(),
                    "'{}': expected {} tensors for this model configuration, found {}", transformer_folder,
                    dit.parameters().size(), file.tensors().size());
  for (const model::Parameter& p : dit.parameters()) {
    const at::Tensor stored = file.tensor(p.name);
    VMOBA_CHECK_INPUT(stored.sizes() == p.tensor.sizes(),
                      "'{}': expected '{}' with shape {}, found {}; the checkpoint belongs to another model "
                      "configuration",
                      transformer_folder, p.name, fmt::format("[{}]", fmt::join(p.tensor.sizes(), ", ")),
                      fmt::format("[{}]", fmt::join(stored.sizes(), ", ")));
    p.tensor.detach().copy_(stored);
  }
}

TrainerState load_checkpoint(const std::string& folder, const CheckpointParts& parts) {
  VMOBA_CHECK_INPUT(fs::is_directory(folder), "expected a checkpoint folder at '{}', found none; check --resume",
                    folder);
  const nlohmann::json info = read_trainer_json(folder);
  TrainerState state{info["step"].get<int64_t>(), info["next_sample"].get<int64_t>(), info["seed"].get<uint64_t>()};
  load_weights(folder + "/transformer", parts.dit);
  parts.optimizer.load_state(model::SafetensorsFile(folder + "/state/optimizer.safetensors"), state.step);
  if (parts.ema) {
    const std::string path = folder + "/transformer_ema/" + kWeights;
    VMOBA_CHECK_INPUT(fs::exists(path),
                      "train.ema.enabled: expected EMA weights at '{}', found none; the run was started without EMA",
                      path);
    parts.ema->load(model::SafetensorsFile(path));
  }
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
