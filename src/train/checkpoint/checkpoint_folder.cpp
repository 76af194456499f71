#include "train/checkpoint/checkpoint_folder.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "core/check.h"
#include "core/file.h"
#include "core/log.h"
#include "train/checkpoint/run_folder.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kUnfinished = ".unfinished";

// What follows "lora", "optimizer" or "transformer" in the names of an expert's files.
std::string suffix_of(size_t expert) {
  return expert == 0 ? "" : fmt::format("_{}", expert + 1);
}

}  // namespace

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  VMOBA_CHECK(!error && fs::is_directory(path),
              "expected to make the folder '{}', found: {}; check permissions or choose another run.dir", path,
              error ? error.message() : "a file of that name");
}

void remove_folder(const std::string& path) {
  std::error_code error;
  fs::path doomed = path;
  if (doomed.extension() != kUnfinished) {
    doomed += kUnfinished;
    fs::rename(path, doomed, error);
  }
  fs::remove_all(doomed, error);
  if (error) log_warning("could not remove {}: {}", doomed.string(), error.message());
}

std::string checkpoint_path(const std::string& run_dir, int64_t step) {
  return (fs::path(run_dir) / (kPrefix + std::to_string(step))).string();
}

int64_t step_in_name(const std::string& name) {
  if (!name.starts_with(kPrefix)) return -1;
  const std::string digits = name.substr(std::string(kPrefix).size());
  int64_t step = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  // As checkpoint_path writes it: no sign, no leading zeros.
  return parsed.ec == std::errc() && step >= 0 && std::to_string(step) == digits ? step : -1;
}

std::vector<int64_t> checkpoint_steps(const std::string& run_dir) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run_dir, error)) {
    const int64_t step = step_in_name(entry.path().filename().string());
    if (step >= 0 && entry.is_directory(error)) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::vector<std::string> checkpoint_names(const std::string& run_dir) {
  std::vector<std::string> names;
  for (const int64_t step : checkpoint_steps(run_dir)) names.push_back(kPrefix + std::to_string(step));
  return names;
}

std::string unfinished_path(const std::string& run_dir, int64_t step) {
  return checkpoint_path(run_dir, step) + kUnfinished;
}

std::string weights_path(const std::string& folder, size_t expert, bool lora, bool average) {
  const std::string suffix = suffix_of(expert) + (average ? "_ema" : "");
  return lora ? folder + "/state/lora" + suffix + ".safetensors" : folder + "/transformer" + suffix;
}

std::string optimizer_path(const std::string& folder, size_t expert) {
  return folder + "/state/optimizer" + suffix_of(expert) + ".safetensors";
}

std::string commit_checkpoint(const std::string& run_dir, int64_t step) {
  const std::string final_path = checkpoint_path(run_dir, step);
  if (fs::exists(final_path))
    if (const auto place = set_aside_later_checkpoints(run_dir, step - 1))
      log_warning("{} was there already; it is kept in {}", final_path, *place);
  std::error_code error;
  fs::rename(unfinished_path(run_dir, step), final_path, error);
  VMOBA_CHECK(!error, "expected to rename '{}' to '{}', found: {}", unfinished_path(run_dir, step), final_path,
              error.message());
  sync_path(run_dir);
  return final_path;
}

void prepare_run_folder(const std::string& run_dir) {
  make_folder(run_dir);
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(run_dir)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kUnfinished)) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) remove_folder(path.string());
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
