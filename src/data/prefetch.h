// Work done ahead in threads, delivered in order, with bounded memory.
//
// Results are numbered 0, 1, 2, ...; next() delivers them in this order whatever order they finish in. At most
// `capacity` results exist at a time, those being made included. The destructor raises `cancel`, which producers poll,
// and joins.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace vmoba::data {

template <typename Result>
class OrderedPrefetcher {
 public:
  // Called from several threads at once, each time with another number.
  using Produce = std::function<Result(int64_t number, const std::atomic<bool>& cancel)>;

  OrderedPrefetcher(int64_t threads, int64_t capacity, Produce produce)
      : capacity_(capacity), produce_(std::move(produce)) {
    try {
      for (int64_t i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (...) {  // the host has no threads left; those that run must not outlive this object
      end_workers();
      throw;
    }
  }
  ~OrderedPrefetcher() { end_workers(); }
  OrderedPrefetcher(const OrderedPrefetcher&) = delete;
  OrderedPrefetcher& operator=(const OrderedPrefetcher&) = delete;

  // Waits for the next result; rethrows what its producer threw.
  Result next() {
    return *next_unless([] { return false; });
  }
  // The same, or nothing where `give_up`, which is asked several times a second, turns true before the result is there.
  std::optional<Result> next_unless(const std::function<bool()>& give_up) {
    std::unique_lock lock(mutex_);
    while (!ready_.wait_for(lock, kAskEvery, [this] { return done_.count(delivered_) != 0; }))
      if (give_up()) return std::nullopt;
    auto node = done_.extract(delivered_++);
    lock.unlock();
    room_.notify_one();
    if (node.mapped().error) std::rethrow_exception(node.mapped().error);
    return std::move(node.mapped().result);
  }

 private:
  static constexpr std::chrono::milliseconds kAskEvery{100};

  void end_workers() {
    {
      const std::lock_guard lock(mutex_);
      cancel_ = true;
    }
    room_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  struct Outcome {
    std::optional<Result> result;
    std::exception_ptr error;
  };

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      room_.wait(lock, [this] { return cancel_ || started_ < delivered_ + capacity_; });
      if (cancel_) return;
      const int64_t number = started_++;
      lock.unlock();
      Outcome outcome;
      try {
        outcome.result = produce_(number, cancel_);
      } catch (...) {
        outcome.error = std::current_exception();
      }
      lock.lock();
      done_.emplace(number, std::move(outcome));
      ready_.notify_all();
    }
  }

  const int64_t capacity_;
  const Produce produce_;
  std::mutex mutex_;
  std::condition_variable room_, ready_;
  std::map<int64_t, Outcome> done_;
  int64_t started_ = 0, delivered_ = 0;
  std::atomic<bool> cancel_{false};
  std::vector<std::thread> workers_;
};

}  // namespace vmoba::data
