#include "train/checkpoint/checkpoint_folder.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "core/check.h"
#include "core/file.h"
#include "core/log.h"

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

std::string commit_checkpoint(const std::string& run_dir, int64_t step, int64_t keep) {
  const std::string final_path = checkpoint_path(run_dir, step);
  // A resumed run meets its own older checkpoint of the same step when the user asked for an earlier one. What is
  // renamed for its deletion must not take the new folder's place.
  if (fs::exists(final_path)) {
    const std::string doomed = final_path + ".old" + kUnfinished;
    fs::remove_all(doomed);
    fs::rename(final_path, doomed);
    fs::rename(unfinished_path(run_dir, step), final_path);
    remove_folder(doomed);
  } else {
    fs::rename(unfinished_path(run_dir, step), final_path);
  }
  sync_path(run_dir);
  const std::vector<int64_t> steps = checkpoint_steps(run_dir);
  for (size_t i = 0; keep > 0 && i + size_t(keep) < steps.size(); ++i)
    if (steps[i] != step) remove_folder(checkpoint_path(run_dir, steps[i]));
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
