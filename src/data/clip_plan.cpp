#include "data/clip_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>

#include "core/check.h"
#include "core/log.h"
#include "data/buckets.h"
#include "data/frame_sampler.h"
#include "data/manifest.h"
#include "data/video_reader.h"

namespace vmoba::data {
namespace {

constexpr int64_t kMaxClips = 100'000'000;
constexpr size_t kListedDrops = 20;

struct Probe {
  MediaInfo info;
  std::string reason;  // why the file cannot be used, or ""
};

Probe probe(const std::string& path) {
  try {
    return {probe_media(path), ""};
  } catch (const Error& error) {
    return {{}, error.what()};
  }
}

// Probes each distinct path once; the result does not depend on the number of threads.
std::unordered_map<std::string, Probe> probe_all(const std::vector<ManifestEntry>& entries, int64_t threads) {
  std::unordered_map<std::string, Probe> probes;
  for (const ManifestEntry& entry : entries) probes.try_emplace(entry.path);
  std::vector<std::pair<const std::string, Probe>*> work;
  for (auto& item : probes) work.push_back(&item);
  std::atomic<size_t> next{0};
  const auto run = [&] {
    for (size_t i; (i = next.fetch_add(1)) < work.size();) work[i]->second = probe(work[i]->first);
  };
  std::vector<std::jthread> workers;
  for (int64_t i = 1; i < std::min<int64_t>(threads, static_cast<int64_t>(work.size())); ++i) workers.emplace_back(run);
  run();
  workers.clear();
  return probes;
}

class PlanBuilder {
 public:
  PlanBuilder(const DataConfig& config, const ClipGeometry& geometry)
      : config_(config),
        geometry_(geometry),
        sizes_(aspect_sizes(config, geometry)),
        frames_(frame_counts(config, geometry)) {}

  void drop(const std::string& path, std::string reason, const std::string& origin = "") {
    plan_.dropped.push_back({path, origin.empty() ? std::move(reason) : fmt::format("{} ({})", reason, origin)});
  }
  void add(const ManifestEntry& entry, const Probe& probe);
  ClipPlan finish();

 private:
  void add_clip(const ManifestEntry& entry, const MediaInfo& info, const FrameSize& size, int64_t frames,
                double start_s);

  const DataConfig& config_;
  const ClipGeometry& geometry_;
  const std::vector<FrameSize> sizes_;
  const std::vector<int64_t> frames_;
  ClipPlan plan_;
  std::map<std::tuple<int64_t, int64_t, int64_t>, int64_t>
      bucket_index_;  // (frames, height, width) -> order of meeting
};

void PlanBuilder::add(const ManifestEntry& entry, const Probe& probe) {
  if (!probe.reason.empty()) return drop(entry.path, probe.reason, entry.origin);
  const MediaInfo& info = probe.info;
  const FrameSize& size =
      sizes_[static_cast<size_t>(nearest_size(sizes_, info.displayed_width, info.displayed_height))];
  if (info.is_image) {
    if (!config_.images) return drop(entry.path, "an image, and data.images is false", entry.origin);
    return add_clip(entry, info, size, 1, 0.0);
  }
  const int64_t available = fillable_frames(info.duration_s, info.fps, 0.0, config_.fps);
  const auto above = std::upper_bound(frames_.begin(), frames_.end(), available);
  if (above == frames_.begin())
    return drop(entry.path,
                fmt::format("too short: {:.2f} s give {} frames at {} fps, the smallest of data.frames is {}",
                            info.duration_s, available, config_.fps, frames_.front()),
                entry.origin);
  const int64_t frames = *(above - 1);
  for (const double start_s :
       clip_starts(config_.frame_extraction, config_.clips_per_video, frames, info.duration_s, info.fps, config_.fps))
    add_clip(entry, info, size, frames, start_s);
}

void PlanBuilder::add_clip(const ManifestEntry& entry, const MediaInfo& info, const FrameSize& size, int64_t frames,
                           double start_s) {
  if (frames < geometry_.least_frames)
    return drop(entry.path,
                fmt::format("{} of {} frame(s): a model that is given the first frame needs at least {} (model.task)",
                            info.is_image ? "an image" : "a clip", frames, geometry_.least_frames),
                entry.origin);
  VMOBA_CHECK_INPUT(static_cast<int64_t>(plan_.clips.size()) < kMaxClips, "expected at most {} clips, found more in {}",
                    kMaxClips, config_.path);
  const auto [found, added] =
      bucket_index_.try_emplace({frames, size.height, size.width}, static_cast<int64_t>(bucket_index_.size()));
  Clip clip;
  clip.path = entry.path;
  clip.caption = config_.caption_prefix + entry.caption;
  clip.start_s = start_s;
  clip.bucket = found->second;
  clip.frames = frames;
  clip.source_width = info.displayed_width;
  clip.source_height = info.displayed_height;
  clip.source_fps = info.fps;
  clip.source_duration_s = info.duration_s;
  clip.is_image = info.is_image;
  clip.random_start = !info.is_image && config_.frame_extraction == "random";
  clip.repeats = config_.num_repeats;
  plan_.clips.push_back(std::move(clip));
  plan_.missing_captions += entry.caption.empty() ? 1 : 0;
  plan_.upscaled_clips += info.displayed_width < size.width || info.displayed_height < size.height ? 1 : 0;
}

ClipPlan PlanBuilder::finish() {
  std::vector<int64_t> place(bucket_index_.size());
  for (const auto& [shape, index] : bucket_index_) {
    const auto [frames, height, width] = shape;
    place[static_cast<size_t>(index)] = static_cast<int64_t>(plan_.buckets.size());
    plan_.buckets.push_back({frames, height, width, geometry_.tokens(frames, height, width), 0});
  }
  for (Clip& clip : plan_.clips) {
    clip.bucket = place[static_cast<size_t>(clip.bucket)];
    ++plan_.buckets[static_cast<size_t>(clip.bucket)].clips;
  }
  return std::move(plan_);
}

std::string drop_list(const std::vector<DroppedClip>& dropped) {
  std::string out;
  for (size_t i = 0; i < dropped.size() && i < kListedDrops; ++i)
    out += fmt::format("\n  {}: {}", dropped[i].path, dropped[i].reason);
  if (dropped.size() > kListedDrops)
    out += fmt::format("\n  and {} more (vmoba-data --config lists them all)", dropped.size() - kListedDrops);
  return out;
}

}  // namespace

int64_t decode_threads(const DataConfig& config) {
  if (config.decode_threads > 0) return config.decode_threads;
  return std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 8);
}

ClipPlan plan_clips(const DataConfig& config, const ClipGeometry& geometry) {
  config.validate();
  PlanBuilder builder(config, geometry);
  const Manifest manifest = read_manifest(config);
  const auto probes = probe_all(manifest.entries, decode_threads(config));
  for (const DroppedClip& dropped : manifest.dropped) builder.drop(dropped.path, dropped.reason);
  for (const ManifestEntry& entry : manifest.entries) builder.add(entry, probes.at(entry.path));
  ClipPlan plan = builder.finish();
  VMOBA_CHECK_INPUT(!plan.clips.empty(), "expected at least one usable clip in data.path '{}', found none{}",
                    config.path, plan.dropped.empty() ? "; it holds no video or image" : ":" + drop_list(plan.dropped));
  if (!plan.dropped.empty())
    log_warning("data: {} files or lines give no clip:{}", plan.dropped.size(), drop_list(plan.dropped));
  if (plan.missing_captions > 0)
    log_warning("data: {} clips have no caption and train with an empty one", plan.missing_captions);
  if (plan.upscaled_clips > 0)
    log_warning("data: {} clips are smaller than their bucket and are enlarged", plan.upscaled_clips);
  return plan;
}

}  // namespace vmoba::data
