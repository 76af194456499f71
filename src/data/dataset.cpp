#include "data/dataset.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>

#include "core/check.h"
#include "core/log.h"
#include "core/random.h"
#include "data/clip_decoder.h"
#include "data/prefetch.h"

namespace vmoba::data {

struct SampleStream::State {
  State(const ClipPlan& plan, const DataConfig& config, uint64_t seed, int64_t group, const EncodedClips* encoded)
      : plan(plan),
        config(config),
        seed(seed),
        order(plan, seed, group),
        encoded(encoded),
        by_bucket(plan.buckets.size()) {
    for (size_t i = 0; i < plan.clips.size(); ++i)
      by_bucket[static_cast<size_t>(plan.clips[i].bucket)].push_back(static_cast<int64_t>(i));
    const int64_t threads = decode_threads(config);
    workers = std::min(threads, config.prefetch_clips);
    threads_per_clip = static_cast<int>(std::max<int64_t>(1, threads / workers));
  }

  Sample produce(int64_t index, const std::atomic<bool>& cancel);
  // Fills the sample's frames, or what was made of them before; false where the clip cannot be decoded.
  bool try_clip(int64_t clip, Sample& sample, const std::atomic<bool>& cancel);
  void record_failure(int64_t clip, const std::string& reason);
  [[noreturn]] void fail_bucket(int64_t bucket);

  const ClipPlan plan;
  const DataConfig config;
  const uint64_t seed;
  const SampleOrder order;
  const EncodedClips* const encoded;
  std::vector<std::vector<int64_t>> by_bucket;
  int64_t workers = 1;
  int threads_per_clip = 1;

  std::mutex mutex;
  std::map<int64_t, std::string> failures;  // clip -> reason
  std::set<std::string> reported;           // paths
  double wait_seconds = 0;
  // Last, so that its threads are gone before what they use.
  std::unique_ptr<OrderedPrefetcher<Sample>> prefetcher;
};

bool SampleStream::State::try_clip(int64_t index_of_clip, Sample& sample, const std::atomic<bool>& cancel) {
  const Clip& clip = plan.clips[static_cast<size_t>(index_of_clip)];
  // A clip with a fixed start fails each time alike. One with a random start may succeed elsewhere, and whether it is
  // tried must not depend on what other threads have met.
  if (!clip.random_start) {
    const std::lock_guard lock(mutex);
    if (failures.count(index_of_clip)) return false;
  }
  const auto number = static_cast<uint64_t>(sample.index);
  double start_s = clip.start_s;
  if (clip.random_start) start_s += clip.slack_s * RandomStream(seed, "data.start", number).uniform();
  const bool flip = RandomStream(seed, "data.flip", number).uniform() < config.horizontal_flip;
  try {
    std::optional<EncodedClip> known;
    if (encoded && !clip.random_start) known = encoded->find(index_of_clip, flip);
    if (known && !known->failure.empty()) throw MediaError(known->failure);
    if (known)
      sample.encoded = std::move(known->tensors);
    else
      sample.video_CFHW = decode_planned_clip(plan, index_of_clip, start_s, flip, threads_per_clip, cancel);
    return true;
  } catch (const MediaError& error) {
    if (cancel) throw;
    record_failure(index_of_clip, error.what());
    return false;
  }
}

void SampleStream::State::record_failure(int64_t clip, const std::string& reason) {
  const std::string& path = plan.clips[static_cast<size_t>(clip)].path;
  const std::lock_guard lock(mutex);
  failures.emplace(clip, reason);
  if (reported.insert(path).second)
    log_warning("data: {} cannot be decoded and is replaced by other clips: {}", path, reason);
}

void SampleStream::State::fail_bucket(int64_t bucket) {
  const Bucket& b = plan.buckets[static_cast<size_t>(bucket)];
  std::string list;
  const std::lock_guard lock(mutex);
  for (const auto& [clip, reason] : failures)
    if (plan.clips[static_cast<size_t>(clip)].bucket == bucket && list.size() < 8192)
      list += fmt::format("\n  {}: {}", plan.clips[static_cast<size_t>(clip)].path, reason);
  throw_input("expected a decodable clip in the bucket of {} frames of {}x{}, found none among {}:{}", b.frames,
              b.width, b.height, by_bucket[static_cast<size_t>(bucket)].size(), list);
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
                           int64_t stride, int64_t block, const EncodedClips* encoded)
    : state_(std::make_unique<State>(plan, config, seed, group, encoded)) {
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
  const auto start = std::chrono::steady_clock::now();
  Sample sample = state_->prefetcher->next();
  const std::lock_guard lock(state_->mutex);
  state_->wait_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return sample;
}

StreamStats SampleStream::stats() const {
  const std::lock_guard lock(state_->mutex);
  return {static_cast<int64_t>(state_->failures.size()), state_->wait_seconds};
}

at::Tensor decode_planned_clip(const ClipPlan& plan, int64_t clip, double start_s, bool flip, int threads,
                               const std::atomic<bool>& cancel) {
  const Clip& c = plan.clips[static_cast<size_t>(clip)];
  const Bucket& bucket = plan.buckets[static_cast<size_t>(c.bucket)];
  VideoReader reader(c.path, threads, &cancel);
  return decode_clip(reader, {start_s, c.fps, c.frames, bucket.height, bucket.width, flip, c.crop});
}

at::Tensor to_unit_range(const at::Tensor& video) {
  return video.to(at::kFloat).mul_(2.0 / 255.0).sub_(1.0);
}

}  // namespace vmoba::data
