#include "train/signals.h"

#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "core/log.h"

namespace vmoba::train {
namespace {

using SystemClock = std::chrono::system_clock;

constexpr int kStopSignals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU};

// Read by other threads (GraceWatch).
std::atomic<int> g_signal{0};
// Of another rank: does not count as a first one here, which a second one would end.
std::atomic<int> g_noted{0};
std::atomic<int64_t> g_signal_ns{0};     // of the steady clock
std::atomic<int64_t> g_stop_time_ns{0};  // of the system clock; 0: none
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free,
              "the handler may take no lock");

int64_t steady_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

void on_signal(int signal) {
  if (g_signal == signal && (signal == SIGINT || signal == SIGTERM)) ::_exit(128 + signal);
  if (g_signal != 0) return;
  if (g_noted == 0) g_signal_ns = steady_ns();
  g_signal = signal;
}

void check_stop_time() {
  const int64_t stop_ns = g_stop_time_ns;
  if (stop_ns == 0 || g_signal != 0 || g_noted != 0) return;
  const auto now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(SystemClock::now().time_since_epoch());
  if (now_ns.count() >= stop_ns) note_stop(SIGALRM);
}

// "3h50m", "45m", "7200s", "1d": whole numbers, each with its unit.
std::optional<std::chrono::seconds> parse_duration(const std::string& text) {
  std::chrono::seconds out{0};
  const char *at = text.data(), *end = at + text.size();
  while (at != end) {
    int64_t number = 0;
    const auto parsed = std::from_chars(at, end, number);
    if (parsed.ec != std::errc() || parsed.ptr == end || number < 0 || number > 1'000'000'000) return std::nullopt;
    const char* units = "smhd";
    const char* unit = std::strchr(units, *parsed.ptr);
    constexpr int64_t kSeconds[] = {1, 60, 3600, 86400};
    if (unit == nullptr || *unit == '\0') return std::nullopt;
    out += std::chrono::seconds(number * kSeconds[unit - units]);
    at = parsed.ptr + 1;
  }
  return text.empty() ? std::nullopt : std::optional(out);
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // I/O in progress goes on: the checkpoint must not fail with EINTR
  for (const int signal : kStopSignals) {
    struct sigaction before {};
    ::sigaction(signal, nullptr, &before);
    if (signal == SIGHUP && before.sa_handler == SIG_IGN) continue;  // nohup: the run outlives its terminal
    ::sigaction(signal, &action, nullptr);
  }
}

void set_stop_time(SystemClock::time_point time) {
  g_stop_time_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

void note_stop(int signal) {
  if (signal == 0 || g_signal != 0 || g_noted != 0) return;
  g_signal_ns = steady_ns();
  g_noted = signal;
}

int stop_signal() {
  check_stop_time();
  const int own = g_signal;
  return own != 0 ? own : g_noted.load();
}

double seconds_since_stop() {
  return stop_signal() == 0 ? 0 : 1e-9 * double(steady_ns() - g_signal_ns);
}

std::string stop_reason(int signal) {
  if (signal == SIGALRM) return "the time limit run.save_before";
  const char* name = ::sigabbrev_np(signal);
  return fmt::format("signal {}{}", signal, name == nullptr ? "" : fmt::format(" (SIG{})", name));
}

std::optional<SystemClock::time_point> time_limit(const std::string& text, SystemClock::time_point start) {
  if (text.empty()) return std::nullopt;
  if (text != "slurm") {
    const auto duration = parse_duration(text);
    VMOBA_CHECK_INPUT(duration,
                      "run.save_before: expected a duration such as 3h50m, 45m or 7200s, or slurm, found '{}'", text);
    return start + *duration;
  }
  const char* end = std::getenv("SLURM_JOB_END_TIME");
  int64_t seconds = 0;
  const bool known = end != nullptr && std::from_chars(end, end + std::strlen(end), seconds).ec == std::errc();
  VMOBA_CHECK_INPUT(known,
                    "run.save_before slurm: expected the end of the job in SLURM_JOB_END_TIME (Slurm 22.05 and later), "
                    "found {}; set a duration such as 3h50m",
                    end == nullptr ? "none" : end);
  return SystemClock::time_point(std::chrono::seconds(seconds));
}

GraceWatch::GraceWatch(double grace_s) : grace_s_(grace_s), thread_([this] { watch(); }) {}

GraceWatch::~GraceWatch() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  ends_.notify_all();
  thread_.join();
}

void GraceWatch::watch() {
  std::unique_lock lock(mutex_);
  while (!ends_.wait_for(lock, std::chrono::milliseconds(200), [this] { return ended_; })) {
    if (saving_ || seconds_since_stop() < grace_s_) continue;
    if (code_ == kExitStopped)
      log_warning("stopped by {}: all is saved, and a thread hangs in the storage; leaving it",
                  stop_reason(stop_signal()));
    else
      log_error(
          "stopped by {}: expected to save within {:.0f} s (run.grace_s), found the run waiting or computing "
          "still; it ends without saving: continue with --resume latest",
          stop_reason(stop_signal()), grace_s_);
    ::_exit(code_);
  }
}

}  // namespace vmoba::train
