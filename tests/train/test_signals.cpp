// What asks a run to stop: signals, each in a process of its own, and time limits.
#include "train/signals.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>

#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "train/save_schedule.h"

using namespace vmoba;
using namespace vmoba::train;
using test::contains;
using test::refusal_of;
using Clock = std::chrono::system_clock;

namespace {

int in_child(const std::function<int()>& action) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(action());
  return test::wait_process(pid);
}

}  // namespace

TEST_CASE("each stop signal is noted, and the first one counts") {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU}) {
    INFO(stop_reason(signal));
    const int code = in_child([&] {
      install_stop_signals();
      if (stop_signal() != 0) return 1;
      ::raise(signal);
      ::raise(SIGXCPU);
      ::raise(SIGHUP);
      return stop_signal() == signal && seconds_since_stop() < 5 ? 0 : 2;
    });
    CHECK(code == 0);
  }
}

TEST_CASE("a second SIGINT or SIGTERM ends the process at once; the others may come again") {
  const auto twice = [](int first, int second) {
    return in_child([=] {
      install_stop_signals();
      ::raise(first);
      ::raise(second);
      return 0;
    });
  };
  CHECK(twice(SIGINT, SIGINT) == 128 + SIGINT);
  CHECK(twice(SIGTERM, SIGTERM) == 128 + SIGTERM);
  CHECK(twice(SIGXCPU, SIGXCPU) == 0);
  CHECK(twice(SIGUSR1, SIGUSR1) == 0);
  CHECK(twice(SIGUSR1, SIGTERM) == 0);  // Slurm's warning and then its end
  CHECK(twice(SIGHUP, SIGHUP) == 0);
}

TEST_CASE("what another rank was asked stops this one too, and counts as no first signal here") {
  const int code = in_child([] {
    install_stop_signals();
    note_stop(0);
    if (stop_signal() != 0) return 1;
    note_stop(SIGTERM);
    if (stop_signal() != SIGTERM) return 2;
    ::raise(SIGTERM);  // the launcher's, a moment later
    return seconds_since_stop() < 5 ? 0 : 3;
  });
  CHECK(code == 0);
}

TEST_CASE("a stop that hangs ends the process within the grace, one that saves is left alone") {
  const auto hanging = [](const std::function<void(GraceWatch&)>& prepare) {
    return in_child([&] {
      install_stop_signals();
      GraceWatch watch(0.4);
      prepare(watch);
      ::raise(SIGTERM);
      ::usleep(1'500'000);
      return 7;
    });
  };
  CHECK(hanging([](GraceWatch&) {}) == 1);
  CHECK(hanging([](GraceWatch& watch) { watch.saved(kExitStopped); }) == kExitStopped);
  CHECK(hanging([](GraceWatch& watch) { watch.saving(true); }) == 7);
}

TEST_CASE("the stop time asks for a stop when it has come") {
  const int code = in_child([] {
    set_stop_time(Clock::now() + std::chrono::milliseconds(300));
    if (stop_signal() != 0) return 1;
    ::usleep(400'000);
    return stop_signal() == SIGALRM && contains(stop_reason(SIGALRM), "run.save_before") ? 0 : 2;
  });
  CHECK(code == 0);
}

TEST_CASE("time limits are durations, or the end that Slurm gives") {
  const Clock::time_point start{std::chrono::seconds(1'000'000)};
  const auto seconds = [&](const std::string& text) {
    return std::chrono::duration_cast<std::chrono::seconds>(time_limit(text, start).value() - start).count();
  };
  CHECK_FALSE(time_limit("", start));
  CHECK(seconds("7200s") == 7200);
  CHECK(seconds("45m") == 2700);
  CHECK(seconds("3h50m") == 13'800);
  CHECK(seconds("1d2h3m4s") == 93'784);
  for (const char* wrong : {"3", "h", "3x", "-5m", "3h 50m", "1:30", "3h50", "99999999999999999999s"})
    CHECK(contains(refusal_of([&] { time_limit(wrong, start); }), "run.save_before"));
  ::unsetenv("SLURM_JOB_END_TIME");
  CHECK(contains(refusal_of([&] { time_limit("slurm", start); }), "SLURM_JOB_END_TIME"));
  ::setenv("SLURM_JOB_END_TIME", "1000500", 1);
  CHECK(seconds("slurm") == 500);
  ::unsetenv("SLURM_JOB_END_TIME");
}

TEST_CASE("checkpoints are due at their steps, and soon again after one that failed") {
  SaveSchedule schedule(10, 0, {}, 0);
  CHECK_FALSE(schedule.due(9));
  CHECK(schedule.due(10));
  CHECK(schedule.failed(10) == 11);
  CHECK(schedule.due(11));
  CHECK(schedule.failed(11) == 13);
  CHECK_FALSE(schedule.due(12));
  CHECK(schedule.due(13));
  CHECK(schedule.failed(13) == 17);
  schedule.saved(17);
  CHECK(schedule.saved_step() == 17);
  CHECK_FALSE(schedule.due(18));
  CHECK(schedule.due(20));
  CHECK(schedule.failed(20) == 21);
  for (int64_t step = 21; step < 1000; ++step) CHECK(schedule.failed(step) <= step + 64);
  CHECK_FALSE(SaveSchedule(0, 0, {}, 0).due(100));
}
