// What the training loop tells the outside, and who listens. Callbacks never change training, nor end it: what one of
// them throws (a full disk, a picture that cannot be drawn) is a warning.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/progress.h"

namespace vmoba::train {

// Mean loss over held-out clips: of each noise level, and their mean.
struct HeldOutReport {
  double loss = 0;
  std::vector<std::pair<double, double>> by_sigma;  // (noise level, loss)
};

// `step` is the 1-based number of the optimiser step that was done; `grad_norm` is that before clipping; densities by
// partition ("temporal", ..., "full") and "all"; memory is the GPU's peak, or resident memory on a CPU.
struct StepReport : ProgressReport {
  int64_t samples = 0;  // that the run has trained on up to this step
  int64_t ranks = 1;
  std::optional<HeldOutReport> held_out;  // where this step has one
  // Of several experts, by name: the norm of each, 0 where it had no sample; grad_norm is that of all together.
  std::vector<std::pair<std::string, double>> grad_norm_by_expert;
  int64_t failed_clips = 0;
};

struct ValidationVideo {
  std::string prompt;
  std::string path;
  at::Tensor frames_CFHW;  // uint8
  double fps = 16;
};

class Callback {
 public:
  virtual ~Callback() = default;
  virtual void on_step(const StepReport& report) {}
  virtual void on_checkpoint(int64_t step, const std::string& folder) {}
  virtual void on_validation(int64_t step, const std::vector<ValidationVideo>& videos) {}
  // The run ends (finished or stopped); not called after an error.
  virtual void on_end() {}
};

// All listeners of a run. Owns them.
class Callbacks {
 public:
  Callbacks() = default;
  explicit Callbacks(std::vector<std::unique_ptr<Callback>> listeners) : listeners_(std::move(listeners)) {}

  void on_step(const StepReport& report);
  void on_checkpoint(int64_t step, const std::string& folder);
  void on_validation(int64_t step, const std::vector<ValidationVideo>& videos);
  void on_end();

 private:
  void tell(const std::function<void(Callback&)>& news);

  std::vector<std::unique_ptr<Callback>> listeners_;
};

// Runs `action`, which writes a report and nothing that training needs: what it throws becomes a warning.
void without_ending_the_run(const std::function<void()>& action);

}  // namespace vmoba::train
