// model.recompute: auto on a GPU. What blocks keep for backward fills the memory that training leaves free.
//
// A size of pass that has not run yet runs with `block`, the least memory. The step in which it ran gives the peak, and
// from then on passes of that size and smaller ones keep what fits into the rest (model::fit_plan). The first step that
// keeps something keeps half of that, and shows how many bytes a counted one takes. Ranks that compute a sample together
// keep the same: what is computed again exchanges its tokens again. Values do not depend on what is kept. With other
// values of model.recompute, and on a CPU, the plan is always model::recompute_plan.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "attention/attention.h"
#include "model/dit.h"
#include "train/dist/mesh.h"

namespace vmoba::train {

class RecomputeBudget {
 public:
  // `mesh` must outlive it.
  RecomputeBudget(const model::ModelConfig& config, const attention::AttentionConfig& attention, dist::Mesh& mesh,
                  at::Device device);

  // Memory is measured from here to end_step().
  void begin_step();
  // Ranks hold the model together, and from the next step on its gathered weights stay: so many bytes.
  void hold_weights(double bytes) { held_ = bytes; }
  // Of a GPU's memory, above the most that was taken since begin_step(): of the whole process where model.recompute is
  // not `auto`.
  double unused_bytes() const;
  // Of the step's largest pass, what plans could keep (model::result_bytes); 0 where model.recompute is not `auto`.
  double wanted_bytes() const;
  // For a pass of `samples` samples over `grid` with `text_tokens` each. Collective over the ranks that share samples.
  const model::RecomputePlan& plan(const attention::Grid& grid, int64_t samples, int64_t text_tokens);
  // The optimiser has changed the weights. The first step makes its state, so that the second is the first to count.
  void end_step();
  // Whether a pass may have to be computed again with less kept (give_up()).
  bool can_give_up() const { return fits_memory(); }
  // The GPU's memory did not suffice for the plans: from now on `block`. Whether they had kept anything.
  bool give_up();

 private:
  struct Memory {
    int64_t available = 0;  // to this process, what it holds included
    int64_t allocated = 0, peak = 0;
  };
  Memory memory() const;
  // Of this step's trial, at least 1. Collective as plan().
  double bytes_taken_per_counted() const;
  bool fits_memory() const { return config_.recompute == model::Recompute::kAuto && device_.is_cuda() && !gave_up_; }
  double free_bytes() const;

  model::ModelConfig config_;
  attention::AttentionConfig attention_;
  dist::Mesh& mesh_;
  at::Device device_;
  double held_ = 0;  // gathered weights, from the next step on
  model::RecomputePlan fixed_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>, model::RecomputePlan> fitted_;
  int64_t steps_ = 0;
  int64_t step_tokens_ = 0;      // of the largest pass of this step
  attention::Grid step_grid_;
  model::PassShape step_pass_;
  int64_t measured_tokens_ = 0;  // of the largest pass that was measured
  Memory measured_;
  bool kept_ = false;             // something in this step
  double tried_ = 0;              // counted bytes that this step's largest trial keeps
  double taken_per_counted_ = 0;  // bytes of what is kept; 0 before a trial
  bool gave_up_ = false;
};

}  // namespace vmoba::train
