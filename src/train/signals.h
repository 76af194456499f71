// What asks a run to save and leave: SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU, or its time limit. A second
// SIGINT, and a second SIGTERM, end it at once; the others may come again (the kernel sends SIGXCPU every second, Slurm
// SIGTERM behind SIGUSR1).
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace vmoba::train {

void install_stop_signals();
// Another rank was asked with this signal.
void note_stop(int signal);
// Asks for a stop at this time, as SIGALRM.
void set_stop_time(std::chrono::system_clock::time_point time);
// The signal that arrived first, here or at another rank, SIGALRM once the stop time has come, or 0.
int stop_signal();
// Since stop_signal() is not 0.
double seconds_since_stop();
// "signal 15 (SIGTERM)", "the time limit run.save_before".
std::string stop_reason(int signal);

// When a run with this run.save_before must have left: `text` is a duration since `start`, or "slurm". Nothing where it
// is empty. Throws Error(kInput).
std::optional<std::chrono::system_clock::time_point> time_limit(const std::string& text,
                                                                std::chrono::system_clock::time_point start);

// Left a wait or a computation because a stop was asked for.
class Stopped : public std::exception {
 public:
  const char* what() const noexcept override { return "stopped"; }
};

// Ends the process where a stop has not come to its end within the grace: a step, a wait for data or the joining of a
// thread that hangs in the storage. A checkpoint under way is left to finish. Owns a thread.
class GraceWatch {
 public:
  explicit GraceWatch(double grace_s);
  ~GraceWatch();
  GraceWatch(const GraceWatch&) = delete;
  GraceWatch& operator=(const GraceWatch&) = delete;

  void saving(bool under_way) { saving_ = under_way; }
  // All is saved: only threads are to be joined, and the process ends with this code.
  void saved(int code) { code_ = code; }

 private:
  void watch();

  const double grace_s_;
  std::atomic<bool> saving_{false};
  std::atomic<int> code_{1};
  std::mutex mutex_;
  std::condition_variable ends_;
  bool ended_ = false;
  std::thread thread_;
};

constexpr int kExitStopped = 75;  // EX_TEMPFAIL: saved and left after a signal, run again with --resume latest

}  // namespace vmoba::train
