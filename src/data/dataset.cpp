#include "data/dataset.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "core/random.h"
#include "data/clip_decoder.h"
#include "data/prefetch.h"

namespace vmoba::data {

struct SampleStream::State {
  State(const ClipPlan& plan, const DataConfig& config, uint64_t seed, int64_t group, const EncodedClips* encoded,
        std::vector<ClipFailure> known)
      : plan(plan),
        config(config),
        seed(seed),
        order(plan, seed, group),
        encoded(encoded),
        by_bucket(plan.buckets.size()),
        failures(std::move(known)) {
    for (size_t i = 0; i < plan.clips.size(); ++i)
      by_bucket[static_cast<size_t>(plan.clips[i].bucket)].push_back(static_cast<int64_t>(i));
    const int64_t threads = decode_threads(config);
    workers = std::min(threads, config.prefetch_clips);
    threads_per_clip = static_cast<int>(std::max<int64_t>(1, threads / workers));
  }

  Sample produce(int64_t index, const std::atomic<bool>& cancel);
  // Fills the sample's frames, or what was made of them before; false where the clip cannot be decoded.
  bool try_clip(int64_t clip, Sample& sample, const std::atomic<bool>& cancel);
  bool has_failed(int64_t clip, int64_t sample);
  void record_failure(ClipFailure failure);
  [[noreturn]] void fail_bucket(int64_t bucket);

  const ClipPlan plan;
  const DataConfig config;
  const uint64_t seed;
  const SampleOrder order;
  const EncodedClips* const encoded;
  std::vector<std::vector<int64_t>> by_bucket;
  int64_t workers = 1;
  int threads_per_clip = 1;
  Outage outage;

  std::mutex mutex;
  std::vector<ClipFailure> failures;
  std::set<std::string> reported;  // paths
  double wait_seconds = 0;
  // Last, so that its threads are gone before what they use.
  std::unique_ptr<OrderedPrefetcher<Sample>> prefetcher;
};

// Whether a clip is tried must not depend on what other threads have met at other samples.
bool SampleStream::State::has_failed(int64_t clip, int64_t sample) {
  const std::lock_guard lock(mutex);
  return std::any_of(failures.begin(), failures.end(), [&](const ClipFailure& known) {
    return known.clip == clip && (known.final ? sample >= known.sample : sample == known.sample);
  });
}

bool SampleStream::State::try_clip(int64_t index_of_clip, Sample& sample, const std::atomic<bool>& cancel) {
  if (has_failed(index_of_clip, sample.index)) return false;
  const Clip& clip = plan.clips[static_cast<size_t>(index_of_clip)];
  const auto [start_s, flip] = draw_clip(clip, config, seed, sample.index);
  try {
    std::optional<EncodedClip> known;
    if (encoded && !clip.random_start) known = encoded->find(index_of_clip, flip);
    if (known && !known->failure.empty()) throw MediaError(known->failure);
    if (known) {
      sample.encoded = std::move(known->tensors);
    } else {
      sample.video_CFHW =
          decode_planned_clip(plan, config, index_of_clip, start_s, flip, threads_per_clip, outage, cancel);
    }
    sample.mask_FHW =
        decode_planned_mask(plan, config, index_of_clip, {start_s, flip}, threads_per_clip, outage, cancel);
    return true;
  } catch (const MediaError& error) {
    if (cancel) throw;
    // One with a random start may succeed elsewhere in the file.
    record_failure({index_of_clip, sample.index, !error.transient() && !clip.random_start, error.what()});
    return false;
  }
}

void SampleStream::State::record_failure(ClipFailure failure) {
  const std::string& path = plan.clips[static_cast<size_t>(failure.clip)].path;
  const std::lock_guard lock(mutex);
  if (reported.insert(path).second)
    log_warning("data: {} cannot be read and is replaced by other clips: {}", path, failure.reason);
  failures.push_back(std::move(failure));
}

void SampleStream::State::fail_bucket(int64_t bucket) {
  const Bucket& b = plan.buckets[static_cast<size_t>(bucket)];
  std::string list;
  std::set<int64_t> listed;
  const std::lock_guard lock(mutex);
  for (const ClipFailure& failure : failures)
    if (plan.clips[static_cast<size_t>(failure.clip)].bucket == bucket && list.size() < 8192 &&
        listed.insert(failure.clip).second)
      list += fmt::format("\n  {}: {}", plan.clips[static_cast<size_t>(failure.clip)].path, failure.reason);
  throw NoUsableClip(
      fmt::format("expected a decodable clip in the bucket of {} frames of {}x{}, found none among {}:{}", b.frames,
                  b.width, b.height, by_bucket[static_cast<size_t>(bucket)].size(), list));
}

Sample SampleStream::State::produce(int64_t index, const std::atomic<bool>& cancel) {
  Sample sample;
  sample.index = index;
  sample.clip = order.clip_of(index);
  if (!try_clip(sample.clip, sample, cancel)) {
    const int64_t bucket = plan.clips[static_cast<size_t>(sample.clip)].bucket;
    const std::vector<int64_t>& others = by_bucket[static_cast<size_t>(bucket)];
    const uint64_t first = RandomStream(seed, "data.replacement", static_cast<uint64_t>(index)).below(others.size());
    bool found = false;
    for (size_t i = 0; i < others.size() && !found; ++i) {
      sample.clip = others[(first + i) % others.size()];
      found = try_clip(sample.clip, sample, cancel);
    }
    if (!found) fail_bucket(bucket);
  }
  sample.caption = plan.clips[static_cast<size_t>(sample.clip)].caption;
  return sample;
}

SampleStream::SampleStream(const ClipPlan& plan, const DataConfig& config, uint64_t seed, int64_t group, int64_t first,
                           int64_t stride, int64_t block, const EncodedClips* encoded, std::vector<ClipFailure> known)
    : state_(std::make_unique<State>(plan, config, seed, group, encoded, std::move(known))) {
  VMOBA_CHECK(
      first >= 0 && block >= 1 && stride >= block,
      "expected a first sample of at least 0 and a stride of at least the block's size of at least 1, found {}, "
      "{} and {}",
      first, stride, block);
  State* s = state_.get();
  s->prefetcher = std::make_unique<OrderedPrefetcher<Sample>>(
      s->workers, config.prefetch_clips, [s, first, stride, block](int64_t number, const std::atomic<bool>& cancel) {
        return s->produce(first + number / block * stride + number % block, cancel);
      });
}

SampleStream::~SampleStream() = default;

Sample SampleStream::next() {
  return *next_unless([] { return false; });
}

std::optional<Sample> SampleStream::next_unless(const std::function<bool()>& give_up) {
  const auto start = std::chrono::steady_clock::now();
  std::optional<Sample> sample = state_->prefetcher->next_unless(give_up);
  const std::lock_guard lock(state_->mutex);
  state_->wait_seconds += seconds_since(start);
  return sample;
}

StreamStats SampleStream::stats() const {
  const std::lock_guard lock(state_->mutex);
  std::set<int64_t> clips;
  for (const ClipFailure& failure : state_->failures) clips.insert(failure.clip);
  return {static_cast<int64_t>(clips.size()), state_->wait_seconds};
}

std::vector<ClipFailure> SampleStream::failures() const {
  const std::lock_guard lock(state_->mutex);
  return state_->failures;
}

ClipDraw draw_clip(const Clip& clip, const DataConfig& config, uint64_t seed, int64_t sample) {
  const auto number = static_cast<uint64_t>(sample);
  ClipDraw out{clip.start_s, RandomStream(seed, "data.flip", number).uniform() < config.horizontal_flip};
  if (clip.random_start) out.start_s += clip.slack_s * RandomStream(seed, "data.start", number).uniform();
  return out;
}

namespace {

// What `decode` makes of the file, which must be that of the plan before and after. `decode` owns what it uses.
at::Tensor decode_watched(const std::string& path, const FileStamp& stamp, int threads, double patience_s,
                          Outage& outage, const std::atomic<bool>& cancel,
                          std::function<at::Tensor(VideoReader&)> decode) {
  return with_patience(path, patience_s, outage, &cancel, [&] {
    const auto video = std::make_shared<at::Tensor>();
    try {
      run_watched(path, patience_s, outage, &cancel, [path, stamp, threads, decode, video](ReadWatch& watch) {
        require_unchanged(stamp, path);
        VideoReader reader(path, threads, &watch);
        at::Tensor decoded = decode(reader);
        require_unchanged(stamp, path);
        *video = std::move(decoded);
      });
    } catch (const MediaError&) {
      throw;
    } catch (const StorageError& error) {
      throw MediaError(error.what(), error.error_number(), error.waited_out());
    }
    return *video;
  });
}

}  // namespace

at::Tensor decode_planned_clip(const ClipPlan& plan, const DataConfig& config, int64_t clip, double start_s, bool flip,
                               int threads, Outage& outage, const std::atomic<bool>& cancel) {
  const Clip& c = plan.clips[static_cast<size_t>(clip)];
  const Bucket& bucket = plan.buckets[static_cast<size_t>(c.bucket)];
  const ClipRequest request{start_s, c.fps, c.frames, bucket.height, bucket.width, flip, c.crop};
  return decode_watched(c.path, c.stamp, threads, config.patience_s, outage, cancel,
                        [request](VideoReader& reader) { return decode_clip(reader, request); });
}

at::Tensor decode_planned_mask(const ClipPlan& plan, const DataConfig& config, int64_t clip, const ClipDraw& draw,
                               int threads, Outage& outage, const std::atomic<bool>& cancel) {
  const Clip& c = plan.clips[static_cast<size_t>(clip)];
  if (c.mask_path.empty()) return {};
  const Bucket& bucket = plan.buckets[static_cast<size_t>(c.bucket)];
  const auto decode = [c, bucket, draw](VideoReader& reader) {
    const MediaInfo& info = reader.info();
    // The mask may be smaller than the file that it belongs to.
    const double wide = static_cast<double>(info.displayed_width) / static_cast<double>(c.source_width);
    const double high = static_cast<double>(info.displayed_height) / static_cast<double>(c.source_height);
    const auto scaled = [](int64_t length, double by) { return std::llround(static_cast<double>(length) * by); };
    const CropBox crop{scaled(c.crop.x, wide), scaled(c.crop.y, high), scaled(c.crop.width, wide),
                       scaled(c.crop.height, high)};
    return decode_clip(reader, {info.is_image ? 0 : draw.start_s, c.fps, info.is_image ? 1 : c.frames, bucket.height,
                                bucket.width, draw.flip, crop});
  };
  try {
    return decode_watched(c.mask_path, c.mask_stamp, threads, config.patience_s, outage, cancel, decode).amax(0);
  } catch (const MediaError& error) {
    throw MediaError(fmt::format("its mask '{}': {}", c.mask_path, error.what()), error.error_number(),
                     error.waited_out());
  }
}

at::Tensor to_unit_range(const at::Tensor& video) {
  return video.to(at::kFloat).mul_(2.0 / 255.0).sub_(1.0);
}

}  // namespace vmoba::data
