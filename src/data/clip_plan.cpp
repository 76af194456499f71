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
#include "core/elapsed.h"
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
  FileStamp stamp;
  std::string reason;    // why the file cannot be used, or ""
  int error_number = 0;  // of the storage, where another try may help
};
using Probes = std::unordered_map<std::string, Probe>;
using Progress = std::function<void(int64_t, int64_t)>;

// Storage that has not answered any file for all of the patience is not asked again.
Probe probe(const std::string& path, double patience_s, Outage& outage) {
  const double away_s = outage.seconds();
  if (away_s > 0 && away_s >= patience_s)
    return {{}, {}, fmt::format("unreadable: the storage has not answered for {:.0f} s", away_s), 0};
  const auto out = std::make_shared<Probe>();
  try {
    run_watched(path, patience_s, outage, nullptr, [path, out](ReadWatch& watch) {
      out->info = probe_media(path, &watch);
      out->stamp = stamp_file(path);
    });
    outage.succeeded();
    return *out;
  } catch (const StorageError& error) {
    return {{}, {}, error.what(), error.waited_out() ? 0 : error.error_number()};
  } catch (const Error& error) {
    return {{}, {}, error.what(), 0};
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

void probe_each(const std::vector<Probes::value_type*>& work, const DataConfig& config, Outage& outage,
                const Progress& progress) {
  Counter counter(work.size(), progress);
  for_each_part(static_cast<int64_t>(work.size()), decode_threads(config), [&](int64_t i) {
    auto& [path, result] = *work[static_cast<size_t>(i)];
    result = probe(path, config.patience_s, outage);
    counter.add();
  });
}

// Files whose storage fails are tried again together: one patience for all.
void probe_again(Probes& probes, const DataConfig& config, Outage& outage) {
  const double patience_s = config.patience_s;
  const auto start = std::chrono::steady_clock::now();
  for (bool said = false;; said = true) {
    const double waited_s = seconds_since(start);
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
    probe_each(work, config, outage, {});
  }
}

// Probes each distinct path; the result does not depend on the number of threads.
Probes probe_all(const std::vector<ManifestEntry>& entries, const DataConfig& config, const Progress& progress) {
  Probes probes;
  for (const ManifestEntry& entry : entries) {
    probes.try_emplace(entry.path);
    if (!entry.mask.empty()) probes.try_emplace(entry.mask);
  }
  std::vector<Probes::value_type*> work;
  for (auto& item : probes) work.push_back(&item);
  Outage outage;
  probe_each(work, config, outage, progress);
  probe_again(probes, config, outage);
  return probes;
}

// What is common to the clips of one line.
struct Source {
  const ManifestEntry& entry;
  const MediaInfo& info;
  const FileStamp& stamp;
  FileStamp mask_stamp;
  CropBox crop;           // of the displayed picture; empty: all of it
  int64_t width, height;  // of what is seen
  double fps;             // frames of a clip per second of the file
  FrameSize size;
};

class PlanBuilder {
 public:
  explicit PlanBuilder(const ClipGeometry& geometry) : geometry_(geometry) {}

  // The clips of one data set follow; `config` must live until the next one's.
  void begin_set(const DataConfig& config) {
    config_ = &config;
    sizes_ = aspect_sizes(config, geometry_);
    frames_ = frame_counts(config, geometry_);
  }
  void drop(const std::string& path, std::string reason, const std::string& origin = "", bool failed = false) {
    plan_.dropped.push_back(
        {path, origin.empty() ? std::move(reason) : fmt::format("{} ({})", reason, origin), failed});
  }
  void note(const std::string& text) { plan_.notes.push_back(text); }
  // `mask`: of the entry's mask; null where it has none.
  void add(const ManifestEntry& entry, const Probe& probe, const Probe* mask);
  ClipPlan finish();

 private:
  void add_video(const Source& source);
  void add_clip(const Source& source, int64_t frames, double start_s, double slack_s);

  const ClipGeometry& geometry_;
  const DataConfig* config_ = nullptr;
  std::vector<FrameSize> sizes_;
  std::vector<int64_t> frames_;
  ClipPlan plan_;
  std::map<std::tuple<int64_t, int64_t, int64_t>, int64_t>
      bucket_index_;  // (frames, height, width) -> order of meeting
};

// The part of the file that the line means, in seconds.
FramePart line_part(const MediaCut& cut, const MediaInfo& info) {
  FramePart part{std::max(0.0, cut.start_s), cut.end_s >= 0 ? cut.end_s : info.duration_s};
  if (cut.start_frame >= 0) part.start_s = static_cast<double>(cut.start_frame) / info.fps;
  if (cut.end_frame >= 0) part.end_s = static_cast<double>(cut.end_frame) / info.fps;
  part.end_s = std::min(part.end_s, info.duration_s);
  return part;
}

// The rate at which a clip takes frames, per second of the file: the line may mean them at another rate than the file.
double clip_rate(const MediaCut& cut, const MediaInfo& info, double fps) {
  constexpr double kSame = 0.02;  // rates are rounded
  if (cut.fps <= 0 || info.is_image || std::abs(cut.fps / info.fps - 1) <= kSame) return fps;
  return fps * info.fps / cut.fps;
}

// What is wrong with the mask of a file, or "". Its size may be another, its shape must be the same.
std::string mask_problem(const MediaInfo& info, const std::string& path, const Probe& mask) {
  if (!mask.reason.empty()) return fmt::format("its mask '{}': {}", path, mask.reason);
  constexpr double kSame = 0.02;
  const double aspect = double(info.displayed_width) / double(info.displayed_height);
  const double of_mask = double(mask.info.displayed_width) / double(mask.info.displayed_height);
  if (std::abs(of_mask / aspect - 1) <= kSame) return "";
  return fmt::format("expected a mask of the shape of {} x {}, found '{}' of {} x {}", info.displayed_width,
                     info.displayed_height, path, mask.info.displayed_width, mask.info.displayed_height);
}

void PlanBuilder::add(const ManifestEntry& entry, const Probe& probe, const Probe* mask) {
  if (!probe.reason.empty()) return drop(entry.path, probe.reason, entry.origin, /*failed=*/true);
  const MediaInfo& info = probe.info;
  if (const std::string problem = mask ? mask_problem(info, entry.mask, *mask) : ""; !problem.empty())
    return drop(entry.path, problem, entry.origin, /*failed=*/!mask->reason.empty());
  const auto& [left, right, top, bottom] = entry.cut.crop;
  const CropBox crop{left, top, right - left, bottom - top};
  if (right > info.displayed_width || bottom > info.displayed_height)
    return drop(entry.path,
                fmt::format("expected a crop [x from, x to, y from, y to] within the picture of {} x {}, found [{}, "
                            "{}, {}, {}]",
                            info.displayed_width, info.displayed_height, left, right, top, bottom),
                entry.origin);
  const int64_t width = crop.width > 0 ? crop.width : info.displayed_width;
  const int64_t height = crop.height > 0 ? crop.height : info.displayed_height;
  const FrameSize& size = sizes_[static_cast<size_t>(nearest_size(sizes_, width, height))];
  const Source source{entry, info,  probe.stamp, mask ? mask->stamp : FileStamp(),
                      crop,  width, height,      clip_rate(entry.cut, info, config_->fps),
                      size};
  if (!info.is_image) return add_video(source);
  if (!config_->images) return drop(entry.path, "an image, and data.images is false", entry.origin);
  add_clip(source, 1, 0.0, 0.0);
}

void PlanBuilder::add_video(const Source& source) {
  const MediaInfo& info = source.info;
  const MediaCut& cut = source.entry.cut;
  if (!info.numbered && (cut.start_frame > 0 || cut.end_frame >= 0))
    return drop(source.entry.path,
                "expected start and end in seconds for a video of variable frame rate, found frame numbers",
                source.entry.origin);
  const FramePart line = line_part(cut, info);
  const SourceRate rate = info.rate();
  int64_t most = 0;
  double longest_s = 0;
  bool any = false;
  for (const FramePart& part : info.parts) {
    const double from_s = std::max(part.start_s, line.start_s);
    const double length_s = std::min(part.end_s, line.end_s) - from_s;
    const int64_t available = length_s > 0 ? fillable_frames(length_s, rate, 0.0, source.fps) : 0;
    most = std::max(most, available);
    longest_s = std::max(longest_s, length_s);
    const auto above = std::upper_bound(frames_.begin(), frames_.end(), available);
    if (above == frames_.begin() || (any && config_->frame_extraction == "head")) continue;
    any = true;
    const int64_t frames = *(above - 1);
    const double slack_s = std::max(0.0, length_s - needed_seconds(frames, rate, source.fps));
    for (const double start_s :
         clip_starts(config_->frame_extraction, config_->clips_per_video, frames, length_s, rate, source.fps))
      add_clip(source, frames, from_s + start_s, slack_s);
  }
  plan_.gapped_files += info.parts.size() > 1 ? 1 : 0;
  if (any) return;
  const char* where = info.parts.size() > 1 ? " between gaps of the clock" : "";
  drop(source.entry.path,
       fmt::format("too short: {:.2f} s{} give {} frames at {} fps, the smallest of data.frames is {}", longest_s,
                   where, most, source.fps, frames_.front()),
       source.entry.origin);
}

void PlanBuilder::add_clip(const Source& source, int64_t frames, double start_s, double slack_s) {
  const ManifestEntry& entry = source.entry;
  const MediaInfo& info = source.info;
  if (frames < geometry_.least_frames)
    return drop(entry.path,
                fmt::format("{} of {} frame(s): a model that is given the first frame needs at least {} (model.task)",
                            info.is_image ? "an image" : "a clip", frames, geometry_.least_frames),
                entry.origin);
  VMOBA_CHECK_INPUT(static_cast<int64_t>(plan_.clips.size()) < kMaxClips, "expected at most {} clips, found more in {}",
                    kMaxClips, config_->path);
  const auto [found, added] = bucket_index_.try_emplace({frames, source.size.height, source.size.width},
                                                        static_cast<int64_t>(bucket_index_.size()));
  Clip clip;
  clip.path = entry.path;
  clip.caption = config_->caption_prefix + entry.caption;
  clip.start_s = start_s;
  clip.fps = source.fps;
  clip.crop = source.crop;
  clip.bucket = found->second;
  clip.frames = frames;
  clip.source_width = info.displayed_width;
  clip.source_height = info.displayed_height;
  clip.source_fps = info.fps;
  clip.source_duration_s = info.duration_s;
  clip.is_image = info.is_image;
  clip.random_start = !info.is_image && config_->frame_extraction == "random";
  clip.slack_s = clip.random_start ? slack_s : 0;
  clip.repeats = config_->num_repeats * entry.cut.repeats;
  clip.mask_path = entry.mask;
  clip.stamp = source.stamp;
  clip.mask_stamp = source.mask_stamp;
  plan_.clips.push_back(std::move(clip));
  plan_.missing_captions += entry.caption.empty() ? 1 : 0;
  plan_.upscaled_clips += source.width < source.size.width || source.height < source.size.height ? 1 : 0;
  plan_.interlaced_clips += info.interlaced ? 1 : 0;
  plan_.hdr_clips += info.hdr ? 1 : 0;
  plan_.retimed_clips += source.fps != config_->fps ? 1 : 0;
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

// What a reader of the log should know of a plan that stands.
void log_plan(const ClipPlan& plan) {
  if (!plan.dropped.empty())
    log_warning("data: dropped {} files or lines:{}", plan.dropped.size(), drop_list(plan.dropped));
  for (const std::string& line : plan_remarks(plan)) log_warning("data: {}", line);
}

}  // namespace

int64_t decode_threads(const DataConfig& config) {
  if (config.decode_threads > 0) return config.decode_threads;
  return std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 8);
}

namespace {

// Waits for storage that fails. Returns the number of distinct media files.
int64_t add_set(PlanBuilder& builder, const DataConfig& set, const Progress& progress) {
  Outage outage;
  if (!set.path.empty())
    with_patience(set.path, std::min(set.patience_s, kMissing_s), outage, nullptr, [&] {
      std::error_code error;
      if (!std::filesystem::exists(set.path, error))
        throw StorageError(ErrorKind::kInput, fmt::format("expected data.path to exist, found no '{}'", set.path),
                           ENOENT);
      return true;
    });
  builder.begin_set(set);
  const Manifest manifest =
      with_patience(set.path, set.patience_s, outage, nullptr, [&] { return read_manifest(set); });
  const Probes probes = probe_all(manifest.entries, set, progress);
  for (const DroppedClip& dropped : manifest.dropped) builder.drop(dropped.path, dropped.reason, "", dropped.failed);
  for (const std::string& note : manifest.notes) builder.note(note);
  for (const ManifestEntry& entry : manifest.entries)
    builder.add(entry, probes.at(entry.path), entry.mask.empty() ? nullptr : &probes.at(entry.mask));
  return static_cast<int64_t>(probes.size());
}

}  // namespace

ClipPlan plan_clips(const DataConfig& config, const ClipGeometry& geometry, const Progress& progress) {
  config.validate();
  PlanBuilder builder(geometry);
  const std::vector<DataConfig> sets = config.each_set();
  int64_t files = 0;
  for (const DataConfig& set : sets) files += add_set(builder, set, progress);
  ClipPlan plan = builder.finish();
  plan.files = files;
  std::string paths;
  for (const DataConfig& set : sets) paths += (paths.empty() ? "'" : ", '") + set.path + "'";
  VMOBA_CHECK_INPUT(!plan.clips.empty(), "expected at least one usable clip in {} {}, found none{}",
                    config.sets.empty() ? "data.path" : "data.sets", paths,
                    plan.dropped.empty() ? "; it holds no video or image" : ":" + drop_list(plan.dropped));
  log_plan(plan);
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
