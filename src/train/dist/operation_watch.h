// Watches operations that run on a device while the host goes on: NCCL's, which wait for other ranks without limit and
// without a word. Knows neither CUDA nor NCCL: whoever starts an operation says how to ask whether it has begun and
// whether it is done. The operations of a group of ranks run one after the other in the order of submission, which its
// ranks share, beside those of other groups; so a count of those begun in the group tells who keeps whom waiting.
//
// Submitting and polling may happen on different threads; one thread polls. Questions to the device may not return
// while another thread is inside its driver, so they are asked without the lock, and the thread that sends heartbeats
// asks none (mpi_engine.h). Owned by the world.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace vmoba::train::dist {

struct WatchedOperation {
  std::string name;
  std::function<bool()> begun;  // what this rank computes before it is done: from here it waits for others only
  std::function<bool()> finished;
};

class OperationWatch {
 public:
  // `now_s`: seconds of a clock that never goes back; empty: the steady clock.
  explicit OperationWatch(std::function<double()> now_s = {});

  // A group of ranks on the device, `ranks` of the world: `error` returns what went wrong, or ""; `abort` frees what
  // waits in it and must not throw. Returns its number, the least that is free: ranks that make and forget groups in
  // one order agree about the numbers.
  int64_t add_group(std::vector<int> ranks, std::function<std::string()> error, std::function<void()> abort);
  void forget_group(int64_t number);
  void submitted(int64_t group, WatchedOperation operation);

  struct Failure {
    std::string message;     // "ncclAllReduce has waited for other ranks for 45 s"
    std::vector<int> ranks;  // of the operation's group; empty: of no operation
    int64_t group = 0,
            number = 0;  // of the operation: a rank that has begun fewer of the group keeps the others waiting
  };
  // What has failed by now: the device, a group, or an operation that waits for others for longer than `limit_s`; of
  // several the one that has waited longest.
  std::optional<Failure> poll(double limit_s);

  // Counts of a group since it was added, as of the last poll; zeros for none.
  struct Progress {
    int64_t submitted = 0, begun = 0, finished = 0;
  };
  Progress progress(int64_t group) const;

  // Calls each group's abort on a thread of its own and returns when all have, or after `within_s`; whether all have.
  bool abort_groups(double within_s);

 private:
  struct Group {
    std::vector<int> ranks;
    std::function<std::string()> error;
    std::function<void()> abort;
    std::deque<WatchedOperation> open;  // submitted and not known to be finished
    Progress progress;
    double waits_since_s = 0;  // when the first open operation was seen to wait
    bool waits = false;
  };

  // Locked by the caller; nullptr where the group has nothing open, or has been forgotten.
  Group* find_open(int64_t number);
  void advance(int64_t number);

  const std::function<double()> now_s_;
  mutable std::mutex mutex_;
  std::map<int64_t, Group> groups_;
};

}  // namespace vmoba::train::dist
