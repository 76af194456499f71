#include "core/storage.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include "core/elapsed.h"
#include "core/log.h"

namespace vmoba {
namespace {

constexpr std::array kTransient = {ENOENT,   ENOTDIR,     EIO,       ESTALE,       EAGAIN,     EINTR,     EBUSY,
                                   ENXIO,    ENODEV,      ENOTCONN,  ETIMEDOUT,    ECONNRESET, EHOSTDOWN, EHOSTUNREACH,
                                   ENETDOWN, ENETUNREACH, ESHUTDOWN, ECONNABORTED, EREMOTEIO,  EMFILE,    ENFILE};
constexpr std::chrono::milliseconds kPause{250};
constexpr std::chrono::milliseconds kLook{50};  // at a read that goes on
constexpr std::chrono::seconds kSayEvery{30};

constexpr double kSilence_s = 10;   // without a part read, before it counts as an outage
constexpr double kCancelled_s = 3;  // that a cancelled read may be silent

std::atomic<int> waits{0};

// Shared with a thread that may be left behind.
struct Attempt {
  ReadWatch watch;
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  std::exception_ptr error;
};

}  // namespace

bool is_transient(int error_number) {
  return std::find(kTransient.begin(), kTransient.end(), error_number) != kTransient.end();
}

void Outage::failed() {
  const std::lock_guard lock(mutex_);
  if (!since_) since_ = Clock::now();
}

void Outage::succeeded() {
  const std::lock_guard lock(mutex_);
  since_.reset();
}

double Outage::seconds() const {
  const std::lock_guard lock(mutex_);
  return since_ ? seconds_since(*since_) : 0;
}

double StorageWait::begin() {
  outage_.failed();
  if (!since_) {
    since_ = Clock::now();
    ++waits;
  }
  return std::max(seconds_since(*since_), outage_.seconds());
}

void StorageWait::say(const std::string& reason) {
  const double waited_s = begin();
  if (said_ && Clock::now() - *said_ < kSayEvery) return;
  log_warning("waiting for the storage, for {:.0f} s more (data.patience_s): {}: {}",
              std::max(0.0, patience_s_ - waited_s), what_, reason);
  said_ = Clock::now();
}

bool StorageWait::again(const std::string& reason) {
  if (begin() >= patience_s_ || (cancel_ != nullptr && *cancel_)) return false;
  say(reason);
  std::this_thread::sleep_for(kPause);
  return true;
}

void StorageWait::succeeded() {
  outage_.succeeded();
  if (said_) log_warning("the storage answers again after {:.0f} s: {}", seconds_since(*since_), what_);
  leave();
}

void StorageWait::leave() {
  if (since_) --waits;
  since_.reset();
  said_.reset();
}

void run_watched(const std::string& what, double patience_s, Outage& outage, const std::atomic<bool>* cancel,
                 std::function<void(ReadWatch&)> action) {
  const auto attempt = std::make_shared<Attempt>();
  std::thread reader([attempt, action = std::move(action)]() mutable {
    std::exception_ptr error;
    try {
      action(attempt->watch);
    } catch (...) {
      error = std::current_exception();
    }
    action = nullptr;  // what it owns goes first
    const std::lock_guard lock(attempt->mutex);
    attempt->error = std::move(error);
    attempt->done = true;
    attempt->ended.notify_all();
  });
  const double limit_s = std::max(kSilence_s, patience_s - outage.seconds());
  double silent_s = 0, cancelled_s = 0;  // counted in looks: pauses of the whole process do not matter
  int64_t parts = 0;
  std::optional<StorageWait> wait;
  std::unique_lock lock(attempt->mutex);
  while (!attempt->ended.wait_for(lock, kLook, [&] { return attempt->done; })) {
    constexpr double kLook_s = std::chrono::duration<double>(kLook).count();
    silent_s = attempt->watch.parts() == parts ? silent_s + kLook_s : 0;
    parts = attempt->watch.parts();
    if (cancel != nullptr && *cancel) {
      attempt->watch.cancel();
      cancelled_s += kLook_s;
    }
    const auto reason = [&] { return fmt::format("a read has not returned for {:.0f} s", silent_s); };
    if (silent_s == 0 && wait) {
      wait->succeeded();
      wait.reset();
    }
    if (silent_s >= kSilence_s && !wait) wait.emplace(what, limit_s - silent_s, outage, nullptr);
    if (wait) wait->say(reason());
    if (silent_s < limit_s && std::min(cancelled_s, silent_s) < kCancelled_s) continue;
    lock.unlock();
    reader.detach();
    throw StorageError(ErrorKind::kInput, "unreadable: " + reason(), ETIMEDOUT, /*waited_out=*/true);
  }
  lock.unlock();
  reader.join();
  if (wait) wait->succeeded();
  if (attempt->error) std::rethrow_exception(attempt->error);
}

int storage_waits() {
  return waits;
}

}  // namespace vmoba
