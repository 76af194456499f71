// The one thread that talks to MPI. Operations are queued by any thread and run one after the other, in the order of
// submission, which all ranks share; so communication goes on while the submitting thread computes.
//
// It is the watchman too. Ranks tell rank 0 once a second what they do, and rank 0 answers. An operation whose messages
// from some ranks do not come within the time limit, or a rank that falls silent, ends the whole job with a message
// that names the missing ranks, their hosts and what they were last heard to do. Operations on devices are watched with
// the same limit (operation_watch.h) by a second thread, which may get stuck in the device's driver: the first one
// notices that too. Included by src/train/dist only.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "train/dist/communicator.h"
#include "train/dist/mpi_library.h"
#include "train/dist/operation_watch.h"

namespace vmoba::train::dist {

// The messages under way of an operation's stage.
class Exchange {
 public:
  // `peer`: rank in the world, for reports. Counts above MPI's int go in parts.
  void send(const void* bytes, int64_t count, int to, MPI_Comm group);
  void receive(void* bytes, int64_t count, int from, int peer, MPI_Comm group);
  // Whether all have arrived; never blocks.
  bool finished();
  // World ranks from which something is still awaited, ascending.
  std::vector<int> awaited() const;

 private:
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;  // of each request; -1 for sends
};

// A stage computes, then posts messages; the next stage starts when they have arrived.
using Stage = std::function<void(Exchange&)>;

class MpiEngine {
 public:
  // MPI must be initialised with MPI_THREAD_SERIALIZED; until the destructor no other thread may call MPI. `watch` must
  // outlive the engine.
  MpiEngine(std::vector<std::string> hosts, double timeout_s, OperationWatch& watch);
  // Runs what is queued, then ends the thread.
  ~MpiEngine();
  MpiEngine(const MpiEngine&) = delete;
  MpiEngine& operator=(const MpiEngine&) = delete;

  WorkPtr submit(std::string name, std::vector<Stage> stages);
  // Runs `action` on the engine's thread and waits (for MPI calls that are not messages).
  void run(const std::string& name, const std::function<void()>& action);
  // While above 0, operations may take so long instead (loading, validating, saving): only a silent rank ends the job
  // sooner.
  void set_patience_s(double patience_s) { patience_s_ = patience_s; }
  double patience_s() const { return patience_s_; }
  // Until the first step: for messages.
  void set_starting(bool starting) { starting_ = starting; }
  bool starting() const { return starting_; }
  void set_timeout_s(double timeout_s) { timeout_s_ = timeout_s; }
  // What this rank does now, for reports of others.
  void note(int64_t step, const std::string& phase);
  // Ends every rank of the job with this code; does not return.
  [[noreturn]] void abort(int code);
  // Seconds that wait() has blocked so far.
  double waited_s() const { return waited_us_ * 1e-6; }

 private:
  using Clock = std::chrono::steady_clock;
  // Groups on the device whose counts travel: those of a mesh.
  static constexpr size_t kPulseGroups = 4;
  struct Operation;
  struct OperationWork;
  struct Pulse {  // the message between watchmen
    int64_t step = 0;
    // Operations on the device that wait for others or have ended, by the number of their group.
    std::array<int64_t, kPulseGroups> begun{};
    // From rank 0: who has begun the fewest of all.
    int64_t slowest = 0;
    std::array<int64_t, kPulseGroups> slowest_begun{};
    // Waits for its storage (core/storage.h), for a time that it limits itself; from rank 0: some rank does.
    bool waits_for_storage = false;
    int32_t signal = 0;  // asks this rank to stop; from rank 0: asks any
    char phase[48] = "starting";
  };

  void loop();
  void work();
  void run_operation(Operation& operation);
  // Between two polls: heartbeats, operations on the device, an abort that another thread asked for.
  void attend();
  void beat();
  void add_slowest(Pulse& pulse) const;
  void check_silence();
  // The second thread: asks the device again and again.
  void watch_device();
  void ask_device();
  // Ends the job where the second thread has found a failure, or has not come back.
  void check_device();
  // Of the operation's ranks, those that have not begun it, as far as this rank has heard; and whoever is furthest
  // behind of all, whom these may be waiting for in another group.
  std::vector<std::string> behind(const OperationWatch::Failure& failure) const;
  // Seconds after which this rank ends the job: the time limit, or the patience, and the time for which ranks have
  // waited for their storage meanwhile.
  double limit_s() const;
  const char* limit_name() const;
  // What heartbeats say of others: that they wait for their storage, or were asked to stop.
  void heed();
  void check_patience(const Operation& operation, const Exchange& exchange, Clock::time_point since);
  std::string describe(int rank) const;
  [[noreturn]] void fail(const std::string& message);

  const std::vector<std::string> hosts_;  // by world rank
  std::atomic<double> timeout_s_;
  OperationWatch& watch_;
  int rank_ = 0, size_ = 1;
  MPI_Comm pulses_ = MPI_COMM_NULL;

  std::mutex mutex_;
  std::condition_variable queued_, closes_;
  std::deque<std::shared_ptr<Operation>> queue_;
  bool closing_ = false;
  std::atomic<double> patience_s_{0};
  std::atomic<bool> starting_{false};
  std::atomic<double> excused_s_{0};
  std::atomic<int> abort_code_{-1};
  std::atomic<int64_t> waited_us_{0};

  std::mutex pulse_mutex_;
  Pulse own_;
  struct DeviceState {
    bool asking = false;
    Clock::time_point since{};  // of the question
    std::optional<OperationWatch::Failure> failure;
  };
  std::mutex device_mutex_;
  DeviceState device_;
  // The engine thread's alone.
  Clock::time_point last_beat_{};
  std::optional<Clock::time_point> excused_since_;
  Clock::time_point excused_at_{};
  std::vector<Pulse> heard_;  // rank 0: of everyone
  std::vector<Clock::time_point> heard_at_;
  Pulse incoming_, outgoing_;
  MPI_Request receive_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> sends_;
  std::thread device_thread_, thread_;  // last: they use everything above
};

}  // namespace vmoba::train::dist
