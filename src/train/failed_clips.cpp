#include "train/failed_clips.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/json.h"

namespace vmoba::train {
namespace {

constexpr size_t kListedBytes = 4096;

// By clip and sample.
std::map<std::pair<int64_t, int64_t>, data::ClipFailure> gather(dist::Communicator& ranks,
                                                                const std::vector<data::ClipFailure>& own) {
  nlohmann::json mine = nlohmann::json::array();
  for (const data::ClipFailure& failure : own)
    mine.push_back({failure.clip, failure.sample, failure.final, failure.reason});
  const std::string text = mine.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::map<std::pair<int64_t, int64_t>, data::ClipFailure> out;
  for (const std::string& of_rank : dist::all_gather_text(ranks, text))
    for (const nlohmann::json& one : parse_json(of_rank, "the failed clips of a rank"))
      out[{one[0].get<int64_t>(), one[1].get<int64_t>()}] = {one[0].get<int64_t>(), one[1].get<int64_t>(),
                                                             one[2].get<bool>(), one[3].get<std::string>()};
  return out;
}

std::string refusal_of(const data::ClipPlan& plan, const data::DataConfig& config,
                       const std::map<std::string, std::string>& files) {
  const int64_t dropped = std::count_if(plan.dropped.begin(), plan.dropped.end(),
                                        [](const data::DroppedClip& clip) { return clip.failed; });
  const int64_t allowed = data::allowed_failures(config, plan), found = dropped + int64_t(files.size());
  if (found <= allowed) return "";
  std::string list;
  for (const auto& [path, reason] : files)
    if (list.size() < kListedBytes) list += fmt::format("\n  {}: {}", path, reason);
  return fmt::format(
      "data.max_failed {}: expected at most {} of {} files that cannot be read, found {}, these while training:{}",
      config.max_failed, allowed, plan.files, found, list);
}

}  // namespace

FailedClips gather_failed_clips(dist::Communicator& ranks, const data::ClipPlan& plan, const data::DataConfig& config,
                                const std::vector<data::ClipFailure>& own, const std::string& no_data,
                                int64_t next_sample) {
  FailedClips out;
  std::map<std::string, std::string> files;
  for (const auto& [place, failure] : gather(ranks, own)) {
    files.emplace(plan.clips[size_t(failure.clip)].path, failure.reason);
    if (failure.final || failure.sample >= next_sample) out.to_repeat.push_back(failure);
  }
  out.files = int64_t(files.size());
  for (const std::string& text : dist::all_gather_text(ranks, no_data))
    if (out.refusal.empty()) out.refusal = text;
  if (out.refusal.empty()) out.refusal = refusal_of(plan, config, files);
  if (!out.refusal.empty()) out.to_repeat.clear();  // the next run tries all of them again
  return out;
}

}  // namespace vmoba::train
