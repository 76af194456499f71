// What an optimiser step computes, from micro batches to changed weights, on one rank of a job. The trainer decides
// around it; vmoba-bench times it. The host only gives the device its work: what it needs to know (losses, norms, what
// attention attended) travels to it while the device goes on with the update.
//
//   compute()  ->  [anyone_gave_up()]  ->  update()  ->  numbers()
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "attention/attention.h"
#include "config/root_config.h"
#include "model/common/host_inputs.h"
#include "train/dist/mesh.h"
#include "train/expert.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/step_flops.h"
#include "train/host_numbers.h"
#include "train/micro_batch.h"
#include "train/recompute_budget.h"

namespace vmoba::train {

class TrainingStep {
 public:
  // In the run, before the step.
  struct Place {
    int64_t step = 0;         // steps done
    int64_t next_sample = 0;  // the first that is not trained on
    double last_step_s = 0;
  };
  struct Inputs {
    std::vector<int64_t> samples;
    std::vector<std::string> clips;  // paths, for messages
    std::vector<bool> experts;       // which of them have samples in this step, on any rank
  };
  struct Numbers {
    std::vector<double> losses, norms;  // of each pass; of each expert, 0 where the step does not train it
    attention::AttentionStats::Sums attended;
  };

  // Everything must outlive it. `sequence`: where ranks share samples, else null.
  TrainingStep(const RootConfig& config, dist::World& world, dist::Mesh& mesh, const dist::BatchShare& share,
               at::Device device, std::vector<Expert>& experts, model::SequenceParallel* sequence);

  // Forward and backward of this rank's passes, gradients summed and their norms taken. False where all ranks have
  // agreed between two passes to give the step up. Throws what `source` throws where other ranks do not count on this
  // one's part of the step.
  bool compute(const Place& place, MicroBatchSource& source);
  // Whether a rank had no data: then nobody may update. Collective.
  bool anyone_gave_up();
  // One step of the optimisers of the experts that have samples, and of the averages. Nothing changes where this rank's
  // loss or a norm is not finite. Does not wait for the device.
  void update(double lr);
  // Of compute(). The step's one wait for the device, with update() before it in the device's queue.
  Numbers numbers();

  const Inputs& inputs() const { return inputs_; }
  int64_t tokens() const { return tokens_; }  // of this rank's samples
  // FLOPs of their training (forecast/step_flops.h), and the least seconds that a GPU of this peak needs for them.
  double flops(const attention::AttentionStats::Sums& attended) const;
  double least_seconds(const attention::AttentionStats::Sums& attended, double peak_flops_per_s) const;
  bool given_up() const { return given_up_; }              // by this rank
  const std::string& no_data() const { return no_data_; }  // why, where it was for want of data

 private:
  using Losses = std::vector<at::Tensor>;
  // The next micro batch; nothing where the rank gives up and others count on it.
  std::optional<MicroBatch> next_micro_batch(MicroBatchSource& source);
  // Mean loss of one micro batch (a tensor, so that nobody waits for it yet) after its forward and backward: one of
  // each expert that has samples in it. Gradients add up to those of the mean over train.global_batch, for each expert
  // with the others' samples counted as zero, once they are summed over passes and ranks.
  at::Tensor accumulate(const std::optional<MicroBatch>& micro_batch, int64_t pass, const attention::Stage& stage);
  // Whether a pass begins only where every rank has its samples: ranks that compute a sample together must compute with
  // the same sizes, and before the first pass there are none, so that a rank without data cannot stand in with zeros.
  bool all_need_data() const;
  // Whether ranks that hold the experts' parts with this one compute with this expert in the pass.
  bool at_work(size_t expert, int64_t pass) const;
  // Summed loss of samples that train one expert.
  at::Tensor accumulate_for(Expert& expert, const MicroBatch::Part& part, const attention::Stage& stage);
  // A forward and backward on the least input, cut from that of `neighbour`, that adds zeros to the expert's gradients:
  // this rank's share of gathering its weights and summing its gradients for ranks that have samples for it.
  void assist(Expert& expert, const MicroBatch::Part& neighbour);
  // The losses of this rank's passes. Nothing where all ranks have agreed between two passes to give the step up.
  std::optional<Losses> run_passes(MicroBatchSource& source);
  // One try: computes what was `taken` before, and takes the rest.
  std::optional<Losses> try_passes(MicroBatchSource& source, std::vector<std::optional<MicroBatch>>& taken);
  void forget_passes();
  // Whether a stop leaves no time for so many passes more.
  bool too_late_for(int64_t passes) const;
  // Norms, the flag that keeps weights as they are, and all numbers on their way to the host.
  void send_numbers(const Losses& losses);
  void count(const attention::Grid& grid, int64_t text_tokens, int64_t samples);
  // Ranks that hold the model together keep what a step gathers (parallel.gather); `auto` after the second step, when
  // every rank knows how much memory is left. Collective over them.
  void decide_gathers();
  void keep_gathered();
  double gathered_bytes() const;  // of all experts
  double density(const attention::AttentionStats::Sums& attended) const;

  const RootConfig& config_;
  dist::World& world_;
  dist::Mesh& mesh_;
  dist::BatchShare share_;
  at::Device device_;
  at::ScalarType compute_dtype_;
  std::vector<Expert>& experts_;
  model::SequenceParallel* sequence_;
  RecomputeBudget budget_;
  int64_t steps_ = 0;                             // done here, where the gathers are to be decided
  std::optional<model::HostInputs> host_inputs_;  // model.offload activations
  attention::AttentionStats stats_;
  Place place_;
  Inputs inputs_;
  std::vector<at::Tensor> norms_;  // of each expert
  at::Tensor skip_;
  size_t passes_ = 0;
  HostNumbers numbers_;
  int64_t tokens_ = 0;
  SampleWork work_;  // of this rank's samples in this step
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t>, SampleWork> known_work_;  // by grid and text tokens
  PassSize pass_;                                                                    // the pass at hand
  std::optional<MicroBatch::Part> last_part_;                                        // of an earlier pass
  bool given_up_ = false;
  std::string no_data_;
};

}  // namespace vmoba::train
