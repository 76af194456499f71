#include "train/checkpoint/manifest.h"

#include "core/check.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/storage.h"

namespace vmoba::train {
namespace {

using nlohmann::json;

constexpr int64_t kMaxStateBytes = 64 << 20;
constexpr const char* kHash = "hash";  // of the file's other fields
constexpr const char* kDamaged = "the checkpoint is damaged, resume from another one";

std::string hash_of(json info) {
  info.erase(kHash);
  return hash_text(content_hash(info.dump(-1, ' ', false, json::error_handler_t::replace)));
}

json changes_to_json(const std::vector<ConfigChange>& changes) {
  json out = json::array();
  for (const ConfigChange& c : changes)
    out.push_back({{"step", c.step}, {"key", c.key}, {"old", c.old_value}, {"new", c.new_value}});
  return out;
}

std::string text_of(const json& info, const char* key) {
  const auto found = info.find(key);
  return found != info.end() && found->is_string() ? found->get<std::string>() : "";
}

int64_t count_of(const json& info, const char* key) {
  const auto found = info.find(key);
  return found == info.end() ? 0 : json_count(*found).value_or(0);
}

// Optimiser steps that each expert has made; checkpoints of earlier versions, which have one, do not say.
std::vector<int64_t> updates_of(const json& info, int64_t step) {
  const auto found = info.find("updates");
  if (found == info.end()) return {step};
  std::vector<int64_t> updates;
  for (const json& count : *found) updates.push_back(json_count(count).value_or(-1));
  return updates;
}

RunRecord record_of(const json& info) {
  RunRecord out;
  out.run = text_of(info, "run");
  out.folder = text_of(info, "folder");
  out.parent_step = count_of(info, "parent_step");
  out.version = text_of(info, "version");
  out.clip_plan = text_of(info, "clip_plan");
  out.clips = count_of(info, "clips");
  out.base = text_of(info, "base");
  const auto changes = info.find("changes");
  if (changes == info.end() || !changes->is_array()) return out;
  for (const json& c : *changes)
    out.changes.push_back({count_of(c, "step"), text_of(c, "key"), text_of(c, "old"), text_of(c, "new")});
  return out;
}

// Checkpoints of earlier versions have none.
std::vector<data::ClipFailure> failed_clips_of(const json& info) {
  std::vector<data::ClipFailure> out;
  const auto found = info.find("failed_clips");
  if (found == info.end() || !found->is_array()) return out;
  for (const json& entry : *found) {
    const auto count = [&](const char* key) {
      return entry.is_object() && entry.contains(key) && json_count(entry[key]).has_value();
    };
    if (count("clip") && count("sample"))
      out.push_back(
          {entry["clip"].get<int64_t>(), entry["sample"].get<int64_t>(),
           !entry.contains("final") || entry["final"] != false,
           entry.contains("reason") && entry["reason"].is_string() ? entry["reason"].get<std::string>() : ""});
  }
  return out;
}

json failed_to_json(const std::vector<data::ClipFailure>& failures) {
  json out = json::array();
  for (const data::ClipFailure& failure : failures)
    out.push_back(
        {{"clip", failure.clip}, {"sample", failure.sample}, {"final", failure.final}, {"reason", failure.reason}});
  return out;
}

json read_state(const std::string& path) {
  try {
    return read_json(path, kMaxStateBytes, "a checkpoint's state");
  } catch (const StorageError&) {
    throw;
  } catch (const Error& e) {
    throw_input("{}; {}", e.what(), kDamaged);
  }
}

}  // namespace

std::string kind_of_run(const std::string& run) {
  return run.substr(0, run.find('-'));
}

std::string manifest_path(const std::string& folder) {
  return folder + "/state/trainer.json";
}

std::string manifest_to_json(const Manifest& manifest) {
  const RunRecord& record = manifest.record;
  json info = {{"format", 2},
               {"step", manifest.state.step},
               {"next_sample", manifest.state.next_sample},
               {"seed", manifest.state.seed},
               {"skipped_samples", manifest.state.skipped_samples},
               {"failed_clips", failed_to_json(manifest.state.failed_clips)},
               {"updates", manifest.updates},
               {"ema", manifest.ema},
               {"run", record.run},
               {"folder", record.folder},
               {"parent_step", record.parent_step},
               {"version", record.version},
               {"clip_plan", record.clip_plan},
               {"clips", record.clips},
               {"base", record.base},
               {"changes", changes_to_json(record.changes)},
               {"checksums", manifest.checksums}};
  info[kHash] = hash_of(info);
  return info.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

Manifest read_manifest(const std::string& folder) {
  const std::string path = manifest_path(folder);
  const json info = read_state(path);
  const auto is_count = [&](const char* key) { return info.contains(key) && json_count(info[key]).has_value(); };
  VMOBA_CHECK_INPUT(info.is_object() && is_count("step") && is_count("next_sample") && info.contains("seed") &&
                        info["seed"].is_number_unsigned(),
                    "expected step, next_sample and seed in '{}', found something else; {}", path, kDamaged);
  const bool hashed = info.contains(kHash) || count_of(info, "format") >= 2;  // earlier versions wrote none
  VMOBA_CHECK_INPUT(!hashed || text_of(info, kHash) == hash_of(info),
                    "expected '{}' as it was written, found another content; {}", path, kDamaged);
  Manifest out;
  out.state = {info["step"].get<int64_t>(), info["next_sample"].get<int64_t>(), info["seed"].get<uint64_t>(),
               count_of(info, "skipped_samples"), failed_clips_of(info)};
  out.updates = updates_of(info, out.state.step);
  out.ema = info.contains("ema") && info["ema"] == true;
  out.record = record_of(info);
  out.checksums = text_of(info, "checksums");
  return out;
}

}  // namespace vmoba::train
