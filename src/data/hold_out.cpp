#include "data/hold_out.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <tuple>

#include "core/check.h"
#include "core/random.h"

namespace vmoba::data {
namespace {

// Files in the order in which they are held out.
std::vector<std::string> files_by_hash(const ClipPlan& plan) {
  std::set<std::tuple<uint64_t, std::string>> ordered;
  for (const Clip& clip : plan.clips) {
    const uint64_t name = hash_name(std::filesystem::path(clip.path).filename().string());
    ordered.emplace(RandomStream(0, "validate.holdout", name).next_u64(), clip.path);
  }
  std::vector<std::string> out;
  for (const auto& [hash, path] : ordered) out.push_back(path);
  return out;
}

// Counts clips by bucket anew and leaves out the buckets without any.
void settle_buckets(ClipPlan& plan) {
  std::map<std::tuple<int64_t, int64_t, int64_t>, Bucket> used;
  const auto key = [](const Bucket& b) { return std::tuple(b.frames, b.height, b.width); };
  for (const Clip& clip : plan.clips) {
    Bucket bucket = plan.buckets[size_t(clip.bucket)];
    bucket.clips = 0;
    used.try_emplace(key(bucket), bucket).first->second.clips += 1;
  }
  for (Clip& clip : plan.clips)
    clip.bucket = std::distance(used.begin(), used.find(key(plan.buckets[size_t(clip.bucket)])));
  plan.buckets.clear();
  for (const auto& [shape, bucket] : used) plan.buckets.push_back(bucket);
}

// What is known of the plan as a whole stays with its training's part.
ClipPlan training_clips(const ClipPlan& plan, const std::vector<int64_t>& clips) {
  ClipPlan picked = picked_clips(plan, clips);
  ClipPlan out = plan;
  out.clips = std::move(picked.clips);
  out.buckets = std::move(picked.buckets);
  return out;
}

}  // namespace

ClipPlan picked_clips(const ClipPlan& plan, const std::vector<int64_t>& clips) {
  ClipPlan out;
  out.buckets = plan.buckets;
  for (const int64_t clip : clips) out.clips.push_back(plan.clips[size_t(clip)]);
  settle_buckets(out);
  return out;
}

SplitPlan hold_out(const ClipPlan& plan, double share) {
  const std::vector<std::string> files = files_by_hash(plan);
  VMOBA_CHECK_INPUT(files.size() > 1,
                    "validate.holdout: expected at least 2 files in data.path, to train on one and hold out the other, "
                    "found {}; name held-out clips in validate.path",
                    files.size());
  const auto count = std::clamp<int64_t>(std::llround(share * double(files.size())), 1, int64_t(files.size()) - 1);
  const std::set<std::string> held(files.begin(), files.begin() + count);
  std::vector<int64_t> training, held_out;
  for (size_t i = 0; i < plan.clips.size(); ++i)
    (held.contains(plan.clips[i].path) ? held_out : training).push_back(int64_t(i));
  return {training_clips(plan, training), picked_clips(plan, held_out)};
}

ClipPlan without_files_of(const ClipPlan& held_out, const ClipPlan& plan) {
  std::set<std::string> held;
  for (const Clip& clip : held_out.clips) held.insert(std::filesystem::weakly_canonical(clip.path).string());
  std::vector<int64_t> training;
  for (size_t i = 0; i < plan.clips.size(); ++i)
    if (!held.contains(std::filesystem::weakly_canonical(plan.clips[i].path).string())) training.push_back(int64_t(i));
  VMOBA_CHECK_INPUT(!training.empty(),
                    "validate.path: expected other files than those of data.path, found all {} clips in both; use "
                    "validate.holdout to hold out a share of them",
                    plan.clips.size());
  return training_clips(plan, training);
}

ClipPlan validation_clips(const ClipPlan& plan, int64_t count) {
  const auto all = int64_t(plan.clips.size()), taken = std::min(count, all);
  std::vector<int64_t> clips;
  for (int64_t i = 0; i < taken; ++i) clips.push_back(i * all / taken);
  ClipPlan out = picked_clips(plan, clips);
  for (Clip& clip : out.clips) {
    if (clip.random_start) clip.start_s += clip.slack_s / 2;
    clip.random_start = false;
    clip.repeats = 1;
  }
  return out;
}

ClipPlan joined_plans(const ClipPlan& training, const ClipPlan& held_out) {
  ClipPlan out = training;
  for (Clip clip : held_out.clips) {
    clip.bucket += int64_t(training.buckets.size());
    clip.held_out = true;
    out.clips.push_back(std::move(clip));
  }
  out.buckets.insert(out.buckets.end(), held_out.buckets.begin(), held_out.buckets.end());
  settle_buckets(out);
  return out;
}

}  // namespace vmoba::data
