#include <fmt/format.h>

#include <map>
#include <mutex>
#include <vector>

#include "core/check.h"
#include "core/random.h"
#include "data/dataset.h"

namespace vmoba::data {

struct SampleOrder::State {
  using Epoch = std::vector<int64_t>;  // clip of each of the epoch's samples

  uint64_t seed = 0;
  int64_t group = 1;
  int64_t samples_per_epoch = 0;
  std::vector<std::vector<int64_t>> buckets;  // clip indices, each as often as it repeats
  std::mutex mutex;
  std::map<int64_t, Epoch> epochs;  // the ones drawn last: workers straddle at most two

  Epoch draw(int64_t epoch) const;
};

SampleOrder::State::Epoch SampleOrder::State::draw(int64_t epoch) const {
  const auto number = static_cast<uint64_t>(epoch);
  Epoch grouped;
  grouped.reserve(static_cast<size_t>(samples_per_epoch));
  for (size_t b = 0; b < buckets.size(); ++b) {
    const std::vector<int64_t>& clips = buckets[b];
    const auto count = static_cast<int64_t>(clips.size());
    const auto order = random_permutation(seed, fmt::format("data.order.bucket{}", b), number, count);
    const int64_t padded = (count + group - 1) / group * group;
    for (int64_t i = 0; i < padded; ++i)
      grouped.push_back(clips[static_cast<size_t>(order[static_cast<size_t>(i % count)])]);
  }
  Epoch out;
  out.reserve(grouped.size());
  for (const int64_t g : random_permutation(seed, "data.order.groups", number, samples_per_epoch / group))
    out.insert(out.end(), grouped.begin() + g * group, grouped.begin() + (g + 1) * group);
  return out;
}

SampleOrder::SampleOrder(const ClipPlan& plan, uint64_t seed, int64_t group) : state_(std::make_shared<State>()) {
  VMOBA_CHECK(!plan.clips.empty() && group >= 1, "expected clips and a group of at least 1, found {} and {}",
              plan.clips.size(), group);
  state_->seed = seed;
  state_->group = group;
  std::vector<std::vector<int64_t>> buckets(plan.buckets.size());
  for (size_t i = 0; i < plan.clips.size(); ++i)
    buckets.at(static_cast<size_t>(plan.clips[i].bucket))
        .insert(buckets[static_cast<size_t>(plan.clips[i].bucket)].end(), static_cast<size_t>(plan.clips[i].repeats),
                static_cast<int64_t>(i));
  for (std::vector<int64_t>& clips : buckets) {
    if (clips.empty()) continue;
    state_->samples_per_epoch += (static_cast<int64_t>(clips.size()) + group - 1) / group * group;
    state_->buckets.push_back(std::move(clips));
  }
}

int64_t SampleOrder::samples_per_epoch() const {
  return state_->samples_per_epoch;
}

int64_t SampleOrder::clip_of(int64_t sample) const {
  VMOBA_CHECK(sample >= 0, "expected a sample number of at least 0, found {}", sample);
  State& s = *state_;
  const int64_t epoch = sample / s.samples_per_epoch;
  const std::lock_guard lock(s.mutex);
  auto found = s.epochs.find(epoch);
  if (found == s.epochs.end()) {
    found = s.epochs.emplace(epoch, s.draw(epoch)).first;
    while (s.epochs.size() > 2) s.epochs.erase(s.epochs.begin() == found ? std::next(found) : s.epochs.begin());
  }
  return found->second[static_cast<size_t>(sample % s.samples_per_epoch)];
}

}  // namespace vmoba::data
