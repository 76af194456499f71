// Watches operations that run on a device while the host goes on: NCCL's, which wait for other ranks without limit and
// without a word. Knows neither CUDA nor NCCL: whoever starts an operation says how to ask whether it has begun and
// whether it is done. All operations of a process run in the order of submission, which all ranks share; so a count of
// those begun tells who keeps whom waiting.
//
// Submitting and polling may happen on different threads. Owned by the world; polled by the thread that sends
// heartbeats.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace vmoba::train::dist {

struct WatchedOperation {
  std::string name;
  std::vector<int> ranks;       // of its group, in the world
  std::function<bool()> begun;  // what this rank computes before it is done: from here it waits for others only
  std::function<bool()> finished;
};

class OperationWatch {
 public:
  // `now_s`: seconds of a clock that never goes back; empty: the steady clock.
  explicit OperationWatch(std::function<double()> now_s = {});

  void submitted(WatchedOperation operation);
  // A group of ranks on the device: `error` returns what went wrong, or ""; `abort` frees what waits in it and must not
  // throw. Returns the number to forget it by.
  int64_t add_group(std::function<std::string()> error, std::function<void()> abort);
  void forget_group(int64_t number);

  struct Failure {
    std::string message;     // "ncclAllReduce has waited for other ranks for 45 s"
    std::vector<int> ranks;  // of the operation's group; empty: of no operation
    int64_t number = 0;      // of the operation: a rank whose `begun` count is lower keeps the others waiting
  };
  // What has failed by now: the device, a group, or an operation that waits for others for longer than `limit_s`.
  std::optional<Failure> poll(double limit_s);

  // Counts since the start, as of the last poll.
  struct Progress {
    int64_t submitted = 0, begun = 0, finished = 0;
  };
  Progress progress() const;

  // Calls every group's abort on a thread of its own and returns when all have, or after `within_s`; whether all have.
  bool abort_groups(double within_s);

 private:
  struct Group {
    int64_t number;
    std::function<std::string()> error;
    std::function<void()> abort;
  };

  std::optional<Failure> poll_operations(double limit_s);

  const std::function<double()> now_s_;
  mutable std::mutex mutex_;
  std::deque<WatchedOperation> open_;  // submitted and not known to be finished
  std::vector<Group> groups_;
  int64_t next_group_ = 0;
  Progress progress_;
  double waits_since_s_ = 0;  // when the first open operation was seen to wait
  bool waits_ = false;
};

}  // namespace vmoba::train::dist
