#include "core/storage.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>

#include "core/elapsed.h"
#include "core/log.h"

namespace vmoba {
namespace {

constexpr std::array kTransient = {ENOENT,   ENOTDIR,     EIO,       ESTALE,       EAGAIN,     EINTR,     EBUSY,
                                   ENXIO,    ENODEV,      ENOTCONN,  ETIMEDOUT,    ECONNRESET, EHOSTDOWN, EHOSTUNREACH,
                                   ENETDOWN, ENETUNREACH, ESHUTDOWN, ECONNABORTED, EREMOTEIO,  EMFILE,    ENFILE};
constexpr std::chrono::milliseconds kPause{250};
constexpr std::chrono::seconds kSayEvery{30};

std::atomic<int> waits{0};

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

bool StorageWait::again(const std::string& reason) {
  outage_.failed();
  if (!since_) {
    since_ = Clock::now();
    ++waits;
  }
  const double waited_s = std::max(seconds_since(*since_), outage_.seconds());
  if (waited_s >= patience_s_ || (cancel_ != nullptr && *cancel_)) return false;
  if (!said_ || Clock::now() - *said_ >= kSayEvery) {
    log_warning("waiting for the storage, for {:.0f} s more (data.patience_s): {}: {}", patience_s_ - waited_s, what_,
                reason);
    said_ = Clock::now();
  }
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

int storage_waits() {
  return waits;
}

}  // namespace vmoba
