#include "train/dist/operation_watch.h"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <thread>

namespace vmoba::train::dist {
namespace {

double steady_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

OperationWatch::OperationWatch(std::function<double()> now_s) : now_s_(now_s ? std::move(now_s) : steady_s) {}

int64_t OperationWatch::add_group(std::vector<int> ranks, std::function<std::string()> error,
                                  std::function<void()> abort) {
  const std::lock_guard lock(mutex_);
  int64_t number = 0;
  while (groups_.count(number) > 0) ++number;
  groups_[number] = {std::move(ranks), std::move(error), std::move(abort), {}, {}, 0, false};
  return number;
}

void OperationWatch::forget_group(int64_t number) {
  const std::lock_guard lock(mutex_);
  groups_.erase(number);
}

void OperationWatch::submitted(int64_t group, WatchedOperation operation) {
  const std::lock_guard lock(mutex_);
  Group& of = groups_.at(group);
  of.open.push_back(std::move(operation));
  of.progress.submitted += 1;
}

std::optional<OperationWatch::Failure> OperationWatch::poll(double limit_s) {
  std::map<int64_t, std::function<std::string()>> errors;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, group] : groups_) errors[number] = group.error;
  }
  try {
    for (const auto& [number, error_of] : errors)
      if (std::string error = error_of(); !error.empty()) return Failure{std::move(error), {}, 0, 0};
    for (const auto& [number, error_of] : errors) advance(number);
  } catch (const std::exception& e) {
    return Failure{fmt::format("the device failed: {}", e.what()), {}, 0, 0};
  }
  const std::lock_guard lock(mutex_);
  const double now = now_s_();
  std::optional<Failure> out;
  double longest_s = 0;
  for (const auto& [number, group] : groups_) {
    const double waited_s = now - group.waits_since_s;
    if (!group.waits || waited_s < limit_s || (out && waited_s <= longest_s)) continue;
    longest_s = waited_s;
    out = Failure{fmt::format("{} has waited for other ranks for {:.0f} s", group.open.front().name, waited_s),
                  group.ranks, number, group.progress.begun};
  }
  return out;
}

OperationWatch::Group* OperationWatch::find_open(int64_t number) {
  const auto found = groups_.find(number);
  return found == groups_.end() || found->second.open.empty() ? nullptr : &found->second;
}

void OperationWatch::advance(int64_t number) {
  while (true) {
    WatchedOperation first;
    {
      const std::lock_guard lock(mutex_);
      const Group* group = find_open(number);
      if (!group) return;
      first = group->open.front();
    }
    const bool finished = first.finished(), waits = !finished && first.begun();
    const std::lock_guard lock(mutex_);
    Group* group = find_open(number);
    if (!group) return;  // forgotten meanwhile
    if (finished) {
      group->open.pop_front();
      group->progress.finished += 1;
    }
    group->progress.begun = group->progress.finished + (waits ? 1 : 0);
    if (waits && !group->waits) group->waits_since_s = now_s_();
    group->waits = waits;
    if (!finished) return;
  }
}

OperationWatch::Progress OperationWatch::progress(int64_t group) const {
  const std::lock_guard lock(mutex_);
  const auto found = groups_.find(group);
  return found == groups_.end() ? Progress{} : found->second.progress;
}

bool OperationWatch::abort_groups(double within_s) {
  // The threads may outlive this call: they share what they need.
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    size_t left = 0;
  };
  const auto shared = std::make_shared<Shared>();
  std::vector<std::function<void()>> aborts;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, group] : groups_) aborts.push_back(group.abort);
  }
  shared->left = aborts.size();
  // At once: what waits in one group may keep another's from ending.
  for (const auto& abort : aborts) {
    std::thread([shared, abort] {
      abort();
      const std::lock_guard lock(shared->mutex);
      shared->left -= 1;
      shared->changed.notify_all();
    }).detach();
  }
  std::unique_lock lock(shared->mutex);
  return shared->changed.wait_for(lock, std::chrono::duration<double>(within_s), [&] { return shared->left == 0; });
}

}  // namespace vmoba::train::dist
