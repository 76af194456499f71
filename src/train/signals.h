// SIGTERM and SIGINT ask a run to save and leave; a second one ends it at once.
#pragma once

namespace vmoba::train {

void install_stop_signals();
// The signal that arrived, or 0.
int stop_signal();

constexpr int kExitStopped = 75;  // EX_TEMPFAIL: saved and left after a signal, run again with --resume latest

}  // namespace vmoba::train
