#include "report/run_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <regex>
#include <set>

#include "core/check.h"
#include "core/file.h"
#include "core/json.h"
#include "core/yaml_values.h"

namespace vmoba::report {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMaxTextBytes = int64_t{1} << 30;
constexpr int64_t kMaxPromptBytes = 1 << 20;
constexpr int kMostNeighbours = 1000;

std::string text_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}
int64_t count_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? 0 : json_count(*found).value_or(0);
}
const json& list_at(const json& object, const char* key) {
  static const json none = json::array();
  const auto found = object.find(key);
  return found != object.end() && found->is_array() ? *found : none;
}

int64_t file_bytes(const fs::path& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  return error ? -1 : int64_t(bytes);
}

void read_configuration(RunFiles& run) {
  const std::string path = run.folder + "/config.resolved.yaml";
  if (fs::exists(path)) run.configuration = yaml_values(read_file(path, kMaxTextBytes, "a run's configuration"), path);
}

void read_plan(RunFiles& run) {
  const std::string path = run.folder + "/clip_plan.json";
  if (!fs::exists(path)) return;
  const json plan = read_json(path, kMaxTextBytes, "a run's clip plan");
  for (const json& clip : list_at(plan, "clips")) {
    const bool held_out = clip.is_object() && clip.contains("held_out");
    (held_out ? run.held_out_clips : run.clips) += 1;
  }
  for (const json& bucket : list_at(plan, "buckets"))
    run.buckets.push_back({count_at(bucket, "frames"), count_at(bucket, "height"), count_at(bucket, "width"),
                           count_at(bucket, "tokens"), count_at(bucket, "clips")});
  for (const json& dropped : list_at(plan, "dropped"))
    run.dropped.push_back({text_at(dropped, "path"), text_at(dropped, "reason")});
  const std::pair<const char*, const char*> counts[] = {{"missing_captions", "clips without a caption"},
                                                        {"upscaled_clips", "clips smaller than their bucket"},
                                                        {"interlaced_clips", "interlaced clips"},
                                                        {"hdr_clips", "HDR clips"},
                                                        {"retimed_clips", "clips at the rate of their manifest"}};
  for (const auto& [key, what] : counts)
    if (count_at(plan, key) > 0) run.data_notes.push_back(fmt::format("{}: {}", what, count_at(plan, key)));
  for (const json& note : list_at(plan, "notes"))
    if (note.is_string()) run.data_notes.push_back(note.get<std::string>());
}

// A file of contact_sheet/ is named by the run itself; a name that leads elsewhere is not followed.
void read_contact_sheet(RunFiles& run) {
  const std::string path = run.folder + "/contact_sheet/index.json";
  if (!fs::exists(path)) return;
  const json index = read_json(path, kMaxTextBytes, "a run's contact sheet");
  for (const json& entry : list_at(index, "clips")) {
    const std::string file = text_at(entry, "file");
    if (file.empty() || file.find('/') != std::string::npos) continue;
    const std::string below = "contact_sheet/" + file;
    const int64_t bytes = file_bytes(run.folder + "/" + below);
    if (bytes < 0) continue;
    run.contact_sheet.push_back({below, text_at(entry, "caption"), text_at(entry, "source"),
                                 fmt::format("{} frames of {}x{}", count_at(entry, "frames"), count_at(entry, "width"),
                                             count_at(entry, "height")),
                                 bytes});
  }
}

// Without a slash behind it.
fs::path place_of(const std::string& folder) {
  const fs::path path = fs::weakly_canonical(folder);
  return path.has_filename() ? path : path.parent_path();
}

std::string last_parts(const std::string& folder, size_t count) {
  fs::path path = place_of(folder), out;
  for (; count > 0 && path.has_filename(); --count, path = path.parent_path())
    out = out.empty() ? path.filename() : path.filename() / out;
  return out.string();
}

}  // namespace

std::string RunFiles::value(const std::string& key) const {
  const auto found = configuration.find(key);
  return found == configuration.end() ? "" : found->second;
}

double RunFiles::last(const std::string& name) const {
  const auto found = history.last.find(name);
  return found != history.last.end() && found->is_number() ? found->get<double>() : std::nan("");
}

std::vector<std::string> names_of_folders(const std::vector<std::string>& folders) {
  constexpr size_t kMostParts = 32;
  for (size_t count = 1; count <= kMostParts; ++count) {
    std::vector<std::string> names;
    for (const std::string& folder : folders) names.push_back(last_parts(folder, count));
    if (std::set<std::string>(names.begin(), names.end()).size() == names.size()) return names;
  }
  return folders;  // one folder twice
}

std::vector<SampleVideo> read_samples(const std::string& run_folder) {
  static const std::regex name_pattern(R"(step-(\d{1,12})-(\d{1,6})\.(mp4|webm|gif))");
  const fs::path folder = fs::path(run_folder) / "samples";
  std::vector<SampleVideo> samples;
  if (!fs::is_directory(folder)) return samples;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    std::smatch found;
    if (!std::regex_match(name, found, name_pattern)) continue;
    SampleVideo video{"samples/" + name, std::stoll(found[1]), std::stoll(found[2]), "", file_bytes(entry.path())};
    const fs::path prompt = fs::path(entry.path()).replace_extension(".txt");
    if (fs::exists(prompt)) video.prompt = read_file(prompt.string(), kMaxPromptBytes, "a sample's prompt");
    while (!video.prompt.empty() && video.prompt.back() == '\n') video.prompt.pop_back();
    if (video.bytes > 0) samples.push_back(std::move(video));
  }
  std::sort(samples.begin(), samples.end(), [](const SampleVideo& a, const SampleVideo& b) {
    return std::pair(a.step, a.prompt_number) < std::pair(b.step, b.prompt_number);
  });
  return samples;
}

RunFiles read_run_configuration(const std::string& folder) {
  RunFiles run;
  run.folder = folder;
  run.name = names_of_folders({folder}).front();
  read_configuration(run);
  return run;
}

RunFiles read_run(const std::string& folder) {
  VMOBA_CHECK_INPUT(fs::is_directory(folder), "expected the folder of a run, found no folder '{}'", folder);
  VMOBA_CHECK_INPUT(fs::exists(folder + "/metrics.jsonl") || fs::exists(folder + "/config.resolved.yaml"),
                    "'{}': expected metrics.jsonl or config.resolved.yaml of a run, found neither; name the run.dir of "
                    "a run",
                    folder);
  RunFiles run = read_run_configuration(folder);
  run.history = read_history(folder + "/metrics.jsonl");
  read_plan(run);
  read_contact_sheet(run);
  run.samples = read_samples(folder);
  return run;
}

std::string run_beside(const std::string& folder) {
  const fs::path own = place_of(folder);
  std::error_code error;
  std::string newest;
  fs::file_time_type newest_time;
  int seen = 0;
  for (fs::directory_iterator entry(own.parent_path(), error), end; !error && entry != end; entry.increment(error)) {
    if (++seen > kMostNeighbours) break;
    if (entry->path() == own || !fs::exists(entry->path() / "config.resolved.yaml", error)) continue;
    const auto time = fs::last_write_time(entry->path() / "metrics.jsonl", error);
    if (error) {
      error.clear();
      continue;
    }
    if (newest.empty() || time > newest_time) newest = entry->path().string(), newest_time = time;
  }
  return newest;
}

}  // namespace vmoba::report
