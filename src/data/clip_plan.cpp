#include "data/clip_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "core/check.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "data/buckets.h"
#include "data/frame_sampler.h"
#include "data/manifest.h"
#include "data/video_reader.h"

namespace vmoba::data {
namespace {

constexpr int64_t kMaxClips = 100'000'000;
constexpr size_t kListedDrops = 20;

// Typing errors in a manifest must not cost every start the whole patience.
constexpr double kMissing_s = 3;
constexpr std::chrono::milliseconds kPause{500};
constexpr std::chrono::seconds kProgressEvery{1};

struct Probe {
  MediaInfo info;
  std::string reason;    // why the file cannot be used, or ""
  int error_number = 0;  // of the storage
};
using Probes = std::unordered_map<std::string, Probe>;
using Progress = std::function<void(int64_t, int64_t)>;

Probe probe(const std::string& path) {
  try {
    return {probe_media(path), "", 0};
  } catch (const StorageError& error) {
    return {{}, error.what(), error.error_number()};
  } catch (const Error& error) {
    return {{}, error.what(), 0};
  }
}

// Tells `progress` how many items are done, from whichever thread, once in a while.
class Counter {
 public:
  Counter(size_t total, const Progress& progress) : total_(static_cast<int64_t>(total)), progress_(progress) {}
  void add() {
    const std::lock_guard lock(mutex_);
    ++done_;
    const auto now = Clock::now();
    if (!progress_ || (done_ < total_ && now - told_ < kProgressEvery)) return;
    told_ = now;
    progress_(done_, total_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  const int64_t total_;
  const Progress& progress_;
  std::mutex mutex_;
  int64_t done_ = 0;
  Clock::time_point told_ = Clock::now();
};

void probe_each(const std::vector<Probes::value_type*>& work, int64_t threads, const Progress& progress) {
  Counter counter(work.size(), progress);
  for_each_part(static_cast<int64_t>(work.size()), threads, [&](int64_t i) {
    auto& [path, result] = *work[static_cast<size_t>(i)];
    result = probe(path);
    counter.add();
  });
}

// Files whose storage fails are tried again together: one patience for all.
void probe_again(Probes& probes, int64_t threads, double patience_s) {
  const auto start = std::chrono::steady_clock::now();
  for (bool said = false;; said = true) {
    const double waited_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::vector<Probes::value_type*> work;
    for (auto& item : probes) {
      const StorageError found(ErrorKind::kInput, "", item.second.error_number);
      const double limit_s = found.missing() ? std::min(patience_s, kMissing_s) : patience_s;
      if (found.transient() && waited_s < limit_s) work.push_back(&item);
    }
    if (work.empty()) return;
    if (!said)
      log_warning("data: waiting for the storage, for up to {:.0f} s (data.patience_s): {} files, among them {}: {}",
                  patience_s, work.size(), work.front()->first, work.front()->second.reason);
    std::this_thread::sleep_for(kPause);
    probe_each(work, threads, {});
  }
}

// Probes each distinct path; the result does not depend on the number of threads.
Probes probe_all(const std::vector<ManifestEntry>& entries, const DataConfig& config, const Progress& progress) {
  Probes probes;
  for (const ManifestEntry& entry : entries) probes.try_emplace(entry.path);
  std::vector<Probes::value_type*> work;
  for (auto& item : probes) work.push_back(&item);
  probe_each(work, decode_threads(config), progress);
  probe_again(probes, decode_threads(config), config.patience_s);
  return probes;
}

class PlanBuilder {
 public:
  PlanBuilder(const DataConfig& config, const ClipGeometry& geometry)
      : config_(config),
        geometry_(geometry),
        sizes_(aspect_sizes(config, geometry)),
        frames_(frame_counts(config, geometry)) {}

  void drop(const std::string& path, std::string reason, const std::string& origin = "", bool failed = false) {
    plan_.dropped.push_back(
        {path, origin.empty() ? std::move(reason) : fmt::format("{} ({})", reason, origin), failed});
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
  if (!probe.reason.empty()) return drop(entry.path, probe.reason, entry.origin, /*failed=*/true);
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

ClipPlan plan_clips(const DataConfig& config, const ClipGeometry& geometry, const Progress& progress) {
  config.validate();
  PlanBuilder builder(config, geometry);
  Outage outage;
  if (!config.path.empty())
    with_patience(config.path, std::min(config.patience_s, kMissing_s), outage, nullptr, [&] {
      std::error_code error;
      if (!std::filesystem::exists(config.path, error))
        throw StorageError(ErrorKind::kInput, fmt::format("expected data.path to exist, found no '{}'", config.path),
                           ENOENT);
      return true;
    });
  const Manifest manifest =
      with_patience(config.path, config.patience_s, outage, nullptr, [&] { return read_manifest(config); });
  const Probes probes = probe_all(manifest.entries, config, progress);
  for (const DroppedClip& dropped : manifest.dropped) builder.drop(dropped.path, dropped.reason, "", dropped.failed);
  for (const ManifestEntry& entry : manifest.entries) builder.add(entry, probes.at(entry.path));
  ClipPlan plan = builder.finish();
  plan.files = static_cast<int64_t>(probes.size());
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

int64_t allowed_failures(const DataConfig& config, const ClipPlan& plan) {
  const auto share = static_cast<int64_t>(config.max_failed * static_cast<double>(plan.files));
  return config.max_failed > 0 ? std::max<int64_t>(1, share) : 0;
}

void check_failures(const DataConfig& config, const ClipPlan& plan) {
  std::vector<DroppedClip> failed;
  std::set<std::string> paths;
  for (const DroppedClip& dropped : plan.dropped)
    if (dropped.failed && paths.insert(dropped.path).second) failed.push_back(dropped);
  const int64_t allowed = allowed_failures(config, plan);
  VMOBA_CHECK_INPUT(
      static_cast<int64_t>(failed.size()) <= allowed,
      "data.max_failed {}: expected at most {} of {} files that cannot be read, found {}; mend the storage "
      "or the files, or raise the key:{}",
      config.max_failed, allowed, plan.files, failed.size(), drop_list(failed));
}

}  // namespace vmoba::data
