// Storage that fails for a while: network file systems lose files for seconds, or answer EIO and ESTALE while a server
// restarts. Such errors are worth waiting for; damaged bytes are not.
#pragma once
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "core/check.h"

namespace vmoba {

// Whether an error of open, read or stat may be gone a moment later: missing, EIO, ESTALE, a lost connection.
bool is_transient(int error_number);

// A file could not be used: `error_number` of the system, or 0 where the file itself is at fault. `waited_out`: all
// patience is spent, so that nobody tries again at once.
class StorageError : public Error {
 public:
  StorageError(ErrorKind kind, const std::string& message, int error_number, bool waited_out = false)
      : Error(kind, message), error_number_(error_number), waited_out_(waited_out) {}
  int error_number() const { return error_number_; }
  bool transient() const { return is_transient(error_number_); }
  bool waited_out() const { return waited_out_; }
  bool missing() const { return error_number_ == ENOENT || error_number_ == ENOTDIR; }

 private:
  int error_number_;
  bool waited_out_;
};

// How long the storage has failed without a success in between, as far as those who share the object have seen. Safe to
// use from several threads.
class Outage {
 public:
  using Clock = std::chrono::steady_clock;
  void failed();
  void succeeded();
  double seconds() const;  // 0: none

 private:
  mutable std::mutex mutex_;
  std::optional<Clock::time_point> since_;
};

// One wait for one file. Logs who waits for what, at once and every half minute, and the end of the wait.
class StorageWait {
 public:
  // `what` names the file. Waits up to `patience_s` from the first failure on, and no longer than the outage has lasted
  // for that long; not beyond `cancel`, which may be null.
  StorageWait(std::string what, double patience_s, Outage& outage, const std::atomic<bool>* cancel)
      : what_(std::move(what)), patience_s_(patience_s), outage_(outage), cancel_(cancel) {}
  ~StorageWait() { leave(); }
  StorageWait(const StorageWait&) = delete;
  StorageWait& operator=(const StorageWait&) = delete;

  // After a failure: sleeps a moment and returns true, or false where it is time to give up.
  bool again(const std::string& reason);
  // That it waits, and why.
  void say(const std::string& reason);
  void succeeded();

 private:
  using Clock = std::chrono::steady_clock;
  double begin();  // seconds since the first failure
  void leave();

  std::string what_;
  double patience_s_;
  Outage& outage_;
  const std::atomic<bool>* cancel_;
  std::optional<Clock::time_point> since_, said_;
};

// Waits of this process that are under way.
int storage_waits();

// What `action` returns; tries again while it throws a transient StorageError.
template <typename Action>
auto with_patience(const std::string& what, double patience_s, Outage& outage, const std::atomic<bool>* cancel,
                   const Action& action) {
  StorageWait wait(what, patience_s, outage, cancel);
  while (true) {
    try {
      auto result = action();
      wait.succeeded();
      return result;
    } catch (const StorageError& error) {
      if (error.waited_out() || !error.transient() || !wait.again(error.what())) throw;
    }
  }
}

// Between a thread that reads a file and the one that waits for it.
class ReadWatch {
 public:
  // By the reader, after every part. True where it is to end soon.
  bool part_read() {
    parts_.fetch_add(1, std::memory_order_relaxed);
    return cancelled_.load(std::memory_order_relaxed);
  }
  int64_t parts() const { return parts_.load(std::memory_order_relaxed); }
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> parts_{0};
  std::atomic<bool> cancelled_{false};
};

// Runs `action` on a thread of its own and returns or throws as it does. A read that a dead server holds in the kernel
// never returns, and no thread can be ended in it: where `action` reads no part for `patience_s` (at least ten seconds,
// and less where the outage has lasted for a part of it), or for three after `cancel` (may be null), this throws
// StorageError, waited out, and the thread goes on alone. `action` must therefore own all that it uses. Says who waits
// for `what` from ten seconds on.
void run_watched(const std::string& what, double patience_s, Outage& outage, const std::atomic<bool>* cancel,
                 std::function<void(ReadWatch&)> action);

}  // namespace vmoba
