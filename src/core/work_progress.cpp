#include "core/work_progress.h"

#include <algorithm>
#include <utility>

#include "core/elapsed.h"
#include "core/log.h"

namespace vmoba {
namespace {

constexpr double kQuiet_s = 5, kInterval_s = 10;

double seconds_between(WorkProgress::Clock::time_point from, WorkProgress::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

WorkProgress::WorkProgress(std::string what, int64_t total, std::string unit)
    : what_(std::move(what)), unit_(std::move(unit)), total_(total), start_(Clock::now()), said_(start_) {}

WorkProgress::~WorkProgress() {
  if (spoke_) log_info("{}: {} in {:.0f} s", what_, amount_text(done_), seconds_since(start_));
}

std::string WorkProgress::amount_text(int64_t amount) const {
  if (unit_ != kBytes) return fmt::format("{} {}", amount, unit_);
  return amount < 1'000'000'000 ? fmt::format("{:.0f} MB", double(amount) / 1e6)
                                : fmt::format("{:.1f} GB", double(amount) / 1e9);
}

void WorkProgress::add(int64_t amount) {
  add(amount, Clock::now());
}

void WorkProgress::add(int64_t amount, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  done_ += amount;
  const double wait_s = spoke_ ? kInterval_s : kQuiet_s;
  if (seconds_between(said_, now) < wait_s || done_ >= total_) return;
  said_ = now;
  spoke_ = true;
  const double left_s = seconds_between(start_, now) * double(total_ - done_) / double(std::max<int64_t>(1, done_));
  log_info("{}: {} of {} ({:.0f} %), {:.0f} s left", what_, amount_text(done_), amount_text(total_),
           100.0 * double(done_) / double(total_), left_s);
}

}  // namespace vmoba
