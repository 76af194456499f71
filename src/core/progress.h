// One line that says how a run stands. On a terminal it is rewritten in place below the log lines; elsewhere it is a
// plain log line at an interval, and always for the first and the last step.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vmoba {

// Of one layer: over all heads, and of the sparsest and the densest one. NaN where no sample passed it.
struct LayerDensity {
  double mean = 0, least_head = 0, greatest_head = 0;
};

struct ProgressReport {
  int64_t step = 0, steps = 0;
  double loss = 0, lr = 0, grad_norm = 0;
  double tokens_per_s = 0;
  std::map<std::string, double> density;  // by partition name, "full" and "all" included
  std::vector<LayerDensity> density_by_layer;
  double step_s = 0;
  double data_wait_s = 0;  // of step_s
  int64_t memory_bytes = 0;
  double mfu = 0;  // model's FLOPs over what the GPUs could do in step_s (0..1); 0: not known
};

// The line, at most `columns` wide (0: any): a narrow one leaves out the partitions' densities first, then memory and
// data wait, all densities, the learning rate and the gradient; speed and remaining time stay at 80 columns. `eta_s` <
// 0: unknown.
std::string format_progress(const ProgressReport& report, double eta_s, int columns);

class Progress {
 public:
  // `columns`: width of the terminal (core/log.h terminal_columns()), 0 for plain lines.
  Progress(int columns, double plain_interval_s);
  ~Progress();  // takes the terminal's line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `now_s`: seconds of any clock that never goes back.
  void update(const ProgressReport& report, double now_s);
  void update(const ProgressReport& report);  // now
  // Leaves the last line standing, as a log line where the terminal showed it.
  void finish();

 private:
  double remaining_s(const ProgressReport& report);

  int columns_;
  double plain_interval_s_;
  double shown_at_s_ = -1e300;
  double step_s_ = 0;  // running mean
  double step_weight_ = 0;
  std::string last_line_;  // of a terminal
};

}  // namespace vmoba
