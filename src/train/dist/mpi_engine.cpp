#include "train/dist/mpi_engine.h"

#include <fmt/ranges.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "core/storage.h"
#include "train/signals.h"

namespace vmoba::train::dist {
namespace {

constexpr int64_t kPartBytes = int64_t{1} << 30;
constexpr int kTag = 1;
// Rank 0 knows what everyone does and so has the better message: the others leave it this much time to give it.
constexpr double kCourtesySeconds = 3;
// What a group on the device may take to free its waiting operations before the process ends regardless.
constexpr double kDeviceAbortSeconds = 5;
constexpr auto kDevicePause = std::chrono::milliseconds(500);  // between two rounds of questions

template <size_t groups>
int64_t total(const std::array<int64_t, groups>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw_runtime("expected {} to succeed, found: {}", call, std::string(text, size_t(length)));
}

}  // namespace

void Exchange::send(const void* bytes, int64_t count, int to, MPI_Comm group) {
  const char* at = static_cast<const char*>(bytes);
  for (int64_t done = 0; done < count; done += kPartBytes) {
    requests_.push_back(MPI_REQUEST_NULL);
    peers_.push_back(-1);
    check_mpi(
        MPI_Isend(at + done, int(std::min(kPartBytes, count - done)), MPI_BYTE, to, kTag, group, &requests_.back()),
        "MPI_Isend");
  }
}

void Exchange::receive(void* bytes, int64_t count, int from, int peer, MPI_Comm group) {
  char* at = static_cast<char*>(bytes);
  for (int64_t done = 0; done < count; done += kPartBytes) {
    requests_.push_back(MPI_REQUEST_NULL);
    peers_.push_back(peer);
    check_mpi(
        MPI_Irecv(at + done, int(std::min(kPartBytes, count - done)), MPI_BYTE, from, kTag, group, &requests_.back()),
        "MPI_Irecv");
  }
}

bool Exchange::finished() {
  int all = 0;
  if (!requests_.empty())
    check_mpi(MPI_Testall(int(requests_.size()), requests_.data(), &all, MPI_STATUSES_IGNORE), "MPI_Testall");
  return requests_.empty() || all != 0;
}

std::vector<int> Exchange::awaited() const {
  std::vector<int> out;
  for (size_t i = 0; i < requests_.size(); ++i) {
    int arrived = 0;
    if (peers_[i] < 0 || requests_[i] == MPI_REQUEST_NULL) continue;
    // Testall leaves finished requests alone until all are: ask for each.
    MPI_Request_get_status(requests_[i], &arrived, MPI_STATUS_IGNORE);
    if (!arrived) out.push_back(peers_[i]);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

struct MpiEngine::Operation {
  std::string name;
  std::vector<Stage> stages;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;

  void finish(std::exception_ptr failure) {
    stages.clear();  // lets the tensors go
    const std::lock_guard lock(mutex);
    error = std::move(failure);
    done = true;
    changed.notify_all();
  }
};

struct MpiEngine::OperationWork final : Work {
  OperationWork(MpiEngine& engine, std::shared_ptr<Operation> operation)
      : engine(engine), operation(std::move(operation)) {}
  void wait() override {
    const Clock::time_point start = Clock::now();
    std::unique_lock lock(operation->mutex);
    operation->changed.wait(lock, [&] { return operation->done; });
    engine.waited_us_ += int64_t(1e6 * seconds_since(start));
    if (operation->error) std::rethrow_exception(operation->error);
  }
  MpiEngine& engine;
  std::shared_ptr<Operation> operation;
};

MpiEngine::MpiEngine(std::vector<std::string> hosts, double timeout_s, OperationWatch& watch)
    : hosts_(std::move(hosts)), timeout_s_(timeout_s), watch_(watch), size_(int(hosts_.size())) {
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &pulses_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(pulses_, MPI_ERRORS_RETURN);
  heard_.resize(size_t(size_));
  heard_at_.assign(size_t(size_), Clock::now());
  sends_.assign(size_t(size_), MPI_REQUEST_NULL);
  device_thread_ = std::thread([this] { watch_device(); });
  thread_ = std::thread([this] { loop(); });
}

MpiEngine::~MpiEngine() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  queued_.notify_all();
  closes_.notify_all();
  thread_.join();
  device_thread_.join();
}

WorkPtr MpiEngine::submit(std::string name, std::vector<Stage> stages) {
  auto operation = std::make_shared<Operation>();
  operation->name = std::move(name);
  operation->stages = std::move(stages);
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(operation);
  }
  queued_.notify_one();
  return std::make_shared<OperationWork>(*this, std::move(operation));
}

void MpiEngine::run(const std::string& name, const std::function<void()>& action) {
  submit(name, {[action](Exchange&) { action(); }})->wait();
}

void MpiEngine::note(int64_t step, const std::string& phase) {
  const std::lock_guard lock(pulse_mutex_);
  own_.step = step;
  const size_t length = phase.copy(own_.phase, sizeof own_.phase - 1);
  own_.phase[length] = '\0';
}

void MpiEngine::abort(int code) {
  abort_code_ = code;
  queued_.notify_all();
  ::sleep(10);  // the engine's thread ends the process meanwhile
  ::_exit(code);
}

void MpiEngine::loop() {
  try {
    work();
  } catch (const std::exception& e) {
    fail(fmt::format("expected MPI to work, found: {}", e.what()));
  }
}

void MpiEngine::work() {
  while (true) {
    std::shared_ptr<Operation> operation;
    {
      std::unique_lock lock(mutex_);
      queued_.wait_for(lock, std::chrono::milliseconds(200), [this] { return closing_ || !queue_.empty(); });
      if (!queue_.empty()) {
        operation = std::move(queue_.front());
        queue_.pop_front();
      } else if (closing_) {
        break;
      }
    }
    attend();
    if (operation) run_operation(*operation);
  }
  if (receive_ == MPI_REQUEST_NULL) return;
  MPI_Cancel(&receive_);
  MPI_Request_free(&receive_);
}

void MpiEngine::run_operation(Operation& operation) {
  try {
    for (const Stage& stage : operation.stages) {
      Exchange exchange;
      stage(exchange);
      const Clock::time_point start = Clock::now();
      for (int64_t polls = 0; !exchange.finished(); ++polls) {
        if (polls < 200) {
          ::sched_yield();
          continue;
        }
        ::usleep(polls < 1000 ? 50 : 500);
        attend();
        check_patience(operation, exchange, start);
      }
    }
    operation.finish(nullptr);
  } catch (...) {
    operation.finish(std::current_exception());
  }
}

void MpiEngine::attend() {
  if (abort_code_ >= 0) {
    MPI_Abort(MPI_COMM_WORLD, abort_code_);
    ::_exit(abort_code_);
  }
  check_device();
  beat();
  heed();
}

// A rank that waits for its storage says so, and the others give it the time: what they wait for comes after it. The
// extra time ends with the next operation that takes no part of it.
void MpiEngine::heed() {
  const auto now = Clock::now();
  bool waits = storage_waits() > 0;
  for (int other = rank_ == 0 ? 1 : 0; other < (rank_ == 0 ? size_ : 1); ++other) {
    waits |= heard_[size_t(other)].waits_for_storage;
    note_stop(heard_[size_t(other)].signal);
  }
  if (waits) {
    if (!excused_since_) excused_since_ = now;
    excused_at_ = now;
    excused_s_ = seconds_since(*excused_since_);
  } else if (excused_since_ && seconds_since(excused_at_) > timeout_s_) {
    excused_since_.reset();
    excused_s_ = 0;
  }
}

void MpiEngine::watch_device() {
  try {
    ask_device();
  } catch (const std::exception& e) {
    const std::lock_guard lock(device_mutex_);
    device_ = {false, {}, OperationWatch::Failure{e.what(), {}, 0, 0}};
  }
}

void MpiEngine::ask_device() {
  std::unique_lock lock(mutex_);
  while (!closes_.wait_for(lock, kDevicePause, [this] { return closing_; })) {
    lock.unlock();
    {
      const std::lock_guard device_lock(device_mutex_);
      device_ = {true, Clock::now(), std::nullopt};
    }
    const auto failure = watch_.poll(limit_s());
    {
      const std::lock_guard pulse_lock(pulse_mutex_);
      for (size_t group = 0; group < kPulseGroups; ++group) own_.begun[group] = watch_.progress(int64_t(group)).begun;
    }
    {
      const std::lock_guard device_lock(device_mutex_);
      device_ = {false, {}, failure};
    }
    lock.lock();
  }
}

void MpiEngine::check_device() {
  DeviceState device;
  {
    const std::lock_guard lock(device_mutex_);
    device = device_;
  }
  const double limit = limit_s();
  // A rank that is silent for as long is the likelier cause, and is named first.
  const double unanswered_s = device.asking ? seconds_since(device.since) : 0;
  if (unanswered_s > limit + kCourtesySeconds)
    fail(
        fmt::format("expected the device to answer within {:.0f} s (parallel.timeout_s), found a question about its "
                    "operations open for {:.0f} s; furthest behind of all: {}",
                    limit, unanswered_s, describe(int((rank_ == 0 ? outgoing_ : heard_[0]).slowest))));
  const auto& failure = device.failure;
  if (!failure) return;
  if (failure->ranks.empty()) fail(fmt::format("expected the device to exchange tensors, found: {}", failure->message));
  const std::vector<std::string> missing = behind(*failure);
  fail(fmt::format("expected operations on the device to finish within {:.0f} s ({}), found: {}; {}", limit,
                   limit_name(), failure->message,
                   missing.empty() ? fmt::format("no missing rank is known among ranks {} of its group: the device or "
                                                 "its network may be stuck",
                                                 fmt::join(failure->ranks, ", "))
                                   : fmt::format("these ranks are missing: {}", fmt::join(missing, "; "))));
}

std::vector<std::string> MpiEngine::behind(const OperationWatch::Failure& failure) const {
  std::vector<std::string> out;
  const auto group = size_t(failure.group);
  if (group >= kPulseGroups) return out;
  const Pulse& zero = heard_[0];  // others than rank 0 hear only of rank 0 and the slowest
  const Pulse& newest = rank_ == 0 ? outgoing_ : zero;
  const int slowest = int(newest.slowest);
  for (const int other : failure.ranks) {
    if (other == rank_) continue;
    const int64_t begun = rank_ == 0         ? heard_[size_t(other)].begun[group]
                          : other == 0       ? zero.begun[group]
                          : other == slowest ? newest.slowest_begun[group]
                                             : failure.number;
    if (begun < failure.number)
      out.push_back(fmt::format("{}, behind by {} on the device", describe(other), failure.number - begun));
  }
  const bool outside = std::find(failure.ranks.begin(), failure.ranks.end(), slowest) == failure.ranks.end();
  if (outside && total(newest.slowest_begun) < total(own_.begun))
    out.push_back(fmt::format("{}, furthest behind of all on the device", describe(slowest)));
  return out;
}

double MpiEngine::limit_s() const {
  return (patience_s_ > 0 ? patience_s_.load() : timeout_s_.load()) + excused_s_ + (rank_ == 0 ? 0 : kCourtesySeconds);
}

// Rank 0 hears everyone and everyone hears rank 0; a message that cannot be sent yet is left out, never queued.
void MpiEngine::beat() {
  if (size_ == 1) return;
  int arrived = 1;
  while (arrived != 0) {
    if (receive_ == MPI_REQUEST_NULL)
      MPI_Irecv(&incoming_, sizeof incoming_, MPI_BYTE, rank_ == 0 ? MPI_ANY_SOURCE : 0, kTag, pulses_, &receive_);
    MPI_Status status;
    MPI_Test(&receive_, &arrived, &status);
    if (arrived == 0) break;
    heard_[size_t(status.MPI_SOURCE)] = incoming_;
    heard_at_[size_t(status.MPI_SOURCE)] = Clock::now();
  }
  if (seconds_since(last_beat_) < 1) return;
  last_beat_ = Clock::now();
  int sent = 1;
  MPI_Testall(int(sends_.size()), sends_.data(), &sent, MPI_STATUSES_IGNORE);
  if (sent != 0) {
    {
      const std::lock_guard lock(pulse_mutex_);
      outgoing_ = own_;
    }
    outgoing_.waits_for_storage = storage_waits() > 0;
    outgoing_.signal = stop_signal();
    for (int other = 1; rank_ == 0 && other < size_; ++other)
      outgoing_.waits_for_storage |= heard_[size_t(other)].waits_for_storage;
    if (rank_ == 0) add_slowest(outgoing_);
    for (int to = rank_ == 0 ? 1 : 0; to < (rank_ == 0 ? size_ : 1); ++to)
      MPI_Isend(&outgoing_, sizeof outgoing_, MPI_BYTE, to, kTag, pulses_, &sends_[size_t(to)]);
  }
  check_silence();
}

void MpiEngine::add_slowest(Pulse& pulse) const {
  pulse.slowest = 0;
  pulse.slowest_begun = pulse.begun;
  for (int other = 1; other < size_; ++other) {
    const Pulse& heard = heard_[size_t(other)];
    if (total(heard.begun) >= total(pulse.slowest_begun)) continue;
    pulse.slowest = other;
    pulse.slowest_begun = heard.begun;
  }
}

void MpiEngine::check_silence() {
  const double limit = timeout_s_ + (rank_ == 0 ? 0 : kCourtesySeconds);
  std::vector<std::string> silent;
  for (int other = rank_ == 0 ? 1 : 0; other < (rank_ == 0 ? size_ : 1); ++other)
    if (seconds_since(heard_at_[size_t(other)]) > limit) silent.push_back(describe(other));
  if (!silent.empty())
    fail(
        fmt::format("expected a sign of life every second, found {} rank(s) silent for more than {:.0f} s: {}; the "
                    "process is stopped, or its host or network is down",
                    silent.size(), limit, fmt::join(silent, "; ")));
}

void MpiEngine::check_patience(const Operation& operation, const Exchange& exchange, Clock::time_point since) {
  const double limit = limit_s();
  if (seconds_since(since) < limit) return;
  std::vector<std::string> missing;
  for (const int peer : exchange.awaited()) missing.push_back(describe(peer));
  fail(fmt::format("expected {} to finish within {:.0f} s ({}), found these ranks missing: {}", operation.name, limit,
                   limit_name(),
                   missing.empty() ? "none, but a message is not received; look at the network"
                                   : fmt::format("{}", fmt::join(missing, "; "))));
}

const char* MpiEngine::limit_name() const {
  if (patience_s_ == 0) return "parallel.timeout_s";
  return starting_ ? "parallel.start_timeout_s" : "while ranks validate or save";
}

std::string MpiEngine::describe(int rank) const {
  const std::string who = fmt::format("rank {} on {}", rank, hosts_[size_t(rank)]);
  if (rank_ != 0 && rank != 0) return who;
  const Pulse& pulse = heard_[size_t(rank)];
  return fmt::format("{} (last heard {:.0f} s ago in step {}: {})", who, seconds_since(heard_at_[size_t(rank)]),
                     pulse.step, std::string(pulse.phase, ::strnlen(pulse.phase, sizeof pulse.phase)));
}

void MpiEngine::fail(const std::string& message) {
  int64_t step;
  {
    const std::lock_guard lock(pulse_mutex_);
    step = own_.step;
  }
  log_error("{} (here: rank {} on {}, step {}); all {} ranks end; continue with --resume latest", message, rank_,
            hosts_[size_t(rank_)], step, size_);
  if (!watch_.abort_groups(kDeviceAbortSeconds))
    log_error("NCCL: expected its groups to abort, found them still busy; the process exits anyway");
  MPI_Abort(MPI_COMM_WORLD, 1);
  ::_exit(1);
}

}  // namespace vmoba::train::dist
