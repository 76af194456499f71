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

void OperationWatch::submitted(WatchedOperation operation) {
  const std::lock_guard lock(mutex_);
  open_.push_back(std::move(operation));
  progress_.submitted += 1;
}

int64_t OperationWatch::add_group(std::function<std::string()> error, std::function<void()> abort) {
  const std::lock_guard lock(mutex_);
  groups_.push_back({next_group_, std::move(error), std::move(abort)});
  return next_group_++;
}

void OperationWatch::forget_group(int64_t number) {
  const std::lock_guard lock(mutex_);
  std::erase_if(groups_, [number](const Group& group) { return group.number == number; });
}

std::optional<OperationWatch::Failure> OperationWatch::poll(double limit_s) {
  const std::lock_guard lock(mutex_);
  try {
    for (const Group& group : groups_)
      if (std::string error = group.error(); !error.empty()) return Failure{std::move(error), {}, 0};
    return poll_operations(limit_s);
  } catch (const std::exception& e) {
    return Failure{fmt::format("the device failed: {}", e.what()), {}, 0};
  }
}

std::optional<OperationWatch::Failure> OperationWatch::poll_operations(double limit_s) {
  while (!open_.empty() && open_.front().finished()) {
    open_.pop_front();
    progress_.finished += 1;
    waits_ = false;
  }
  const bool waits = !open_.empty() && open_.front().begun();
  progress_.begun = progress_.finished + (waits ? 1 : 0);
  const double now = now_s_();
  if (waits && !waits_) waits_since_s_ = now;
  waits_ = waits;
  if (!waits || now - waits_since_s_ < limit_s) return std::nullopt;
  const WatchedOperation& first = open_.front();
  return Failure{fmt::format("{} has waited for other ranks for {:.0f} s", first.name, now - waits_since_s_),
                 first.ranks, progress_.begun};
}

OperationWatch::Progress OperationWatch::progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

bool OperationWatch::abort_groups(double within_s) {
  // The thread may outlive this call: it shares what it needs.
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    std::vector<Group> groups;
  };
  const auto shared = std::make_shared<Shared>();
  {
    const std::lock_guard lock(mutex_);
    shared->groups = groups_;
  }
  if (shared->groups.empty()) return true;
  std::thread([shared] {
    for (const Group& group : shared->groups) group.abort();
    const std::lock_guard lock(shared->mutex);
    shared->done = true;
    shared->changed.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  return shared->changed.wait_for(lock, std::chrono::duration<double>(within_s), [&] { return shared->done; });
}

}  // namespace vmoba::train::dist
