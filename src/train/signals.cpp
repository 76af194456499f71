#include "train/signals.h"

#include <signal.h>
#include <unistd.h>

namespace vmoba::train {
namespace {

volatile sig_atomic_t g_signal = 0;

void on_signal(int signal) {
  if (g_signal != 0) ::_exit(128 + signal);
  g_signal = signal;
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // I/O in progress goes on: the checkpoint must not fail with EINTR
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
}

int stop_signal() {
  return g_signal;
}

}  // namespace vmoba::train
