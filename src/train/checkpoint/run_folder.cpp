#include "train/checkpoint/run_folder.h"

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "core/check.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/storage.h"
#include "train/checkpoint/checkpoint_folder.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

std::string record_path(const std::string& run_dir) {
  return (fs::path(run_dir) / "run.json").string();
}

constexpr const char* kCure = "remove the file: then no checkpoint that is there is ever removed";

nlohmann::json read_record(const std::string& path) {
  try {
    return read_json(path, 1 << 20, "a run's record");
  } catch (const StorageError&) {
    throw;
  } catch (const Error& e) {
    throw_input("{}; {}", e.what(), kCure);
  }
}

}  // namespace

std::string drawn_id() {
  std::random_device device;
  std::string text = std::to_string(std::chrono::system_clock::now().time_since_epoch().count());
  for (int i = 0; i < 4; ++i) text += fmt::format(" {}", device());
  return hash_text(content_hash(text + fmt::format(" {}", ::getpid())));
}

RunFolder read_run_folder(const std::string& run_dir) {
  const std::string path = record_path(run_dir);
  RunFolder out;
  if (!fs::exists(path)) {
    out.id = drawn_id();
    return out;
  }
  const nlohmann::json info = read_record(path);
  const bool good = info.is_object() && info.contains("folder") && info["folder"].is_string() &&
                    info.contains("starts") && info["starts"].is_array();
  VMOBA_CHECK_INPUT(good, "expected the id of the run's folder in '{}', found something else; {}", path, kCure);
  out.id = info["folder"].get<std::string>();
  for (const auto& step : info["starts"])
    if (const auto number = json_count(step)) out.starts.insert(*number);
  return out;
}

void write_run_folder(const std::string& run_dir, const RunFolder& folder) {
  const nlohmann::json info = {{"folder", folder.id}, {"starts", folder.starts}};
  write_file_atomically(record_path(run_dir), info.dump(2) + "\n");
}

std::optional<std::string> set_aside_later_checkpoints(const std::string& run_dir, int64_t step) {
  std::vector<std::string> names;
  for (const std::string& name : checkpoint_names(run_dir))
    if (step_in_name(name) > step) names.push_back(name);
  if (names.empty()) return std::nullopt;
  int64_t number = 1;
  while (fs::exists(fs::path(run_dir) / fmt::format("set-aside-{}", number))) ++number;
  const fs::path place = fs::path(run_dir) / fmt::format("set-aside-{}", number);
  make_folder(place.string());
  std::error_code error;
  const fs::path metrics = fs::path(run_dir) / "metrics.jsonl";
  if (fs::exists(metrics)) fs::copy_file(metrics, place / "metrics.jsonl", error);
  for (const std::string& name : names) {
    if (!error) fs::rename(fs::path(run_dir) / name, place / name, error);
    VMOBA_CHECK(!error, "expected to move '{}/{}' to '{}', found: {}; free disk space or change permissions", run_dir,
                name, place.string(), error.message());
  }
  sync_path(place.string());
  sync_path(run_dir);
  return place.string();
}

}  // namespace vmoba::train
