// The training loop: clips -> latents -> noise -> velocity -> loss -> gradients -> update, with checkpoints, metrics
// and validation videos. One object is one run. It owns model, optimiser and data; callbacks are owned too.
#pragma once
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/epochs.h"
#include "config/root_config.h"
#include "core/folder_lock.h"
#include "data/dataset.h"
#include "train/cache/lazy_encoders.h"
#include "train/checkpoint/run_folder.h"
#include "train/dist/mesh.h"
#include "train/dist/step_exchange.h"
#include "train/dist/ulysses.h"
#include "train/dist/world.h"
#include "train/expert.h"
#include "train/loss_watch.h"
#include "train/micro_batches.h"
#include "train/report/callback.h"
#include "train/resume.h"
#include "train/run_saver.h"
#include "train/signals.h"
#include "train/training_step.h"
#include "train/validation/held_out_loss.h"

namespace vmoba::train {

class Trainer {
 public:
  // Plans the data and makes all parts; touches nothing on disk. Collective over the ranks of `world`, which must
  // outlive it.
  Trainer(const RootConfig& config, dist::World& world);
  ~Trainer();

  // Runs to train.steps, or until it is asked to stop (train/signals.h). Returns the process's exit code: 0 or
  // kExitStopped. Throws Error: non-finite loss or gradient (before the update, naming step and clips), too many clips
  // that cannot be read (the state is saved first), a last checkpoint that the disk does not take.
  int run(const ResumeRequest& resume);

 private:
  // Of this run; all ranks have planned the same clips when it returns.
  RunRecord make_record();
  // model.offload auto becomes what this rank's device needs. Returns the bytes of blocks that stay there all the same.
  int64_t decide_offload();
  void open_cache(const data::ClipPlan& plan);
  void load_encoders();
  // False where nothing is left to train.
  bool start(const ResumeRequest& resume);
  // The state, and what changed since it was saved.
  void load(const std::string& checkpoint);
  // Says so where train.steps is reached; true where the run's folder would only lose by going on.
  bool is_over(const std::string& checkpoint) const;
  // On the first rank: this run's folder alone, with what it does not continue set aside.
  void lock_folder();
  void prepare_folder(const std::string& checkpoint);
  void set_aside_other_run();
  void set_aside_other_branch(const std::string& checkpoint);
  // Checkpoints that stay whatever their number.
  std::set<int64_t> lasting_checkpoints() const;
  int64_t proven_checkpoint() const;
  void say_start();
  // From state_.next_sample on.
  void make_stream();
  // Goes back to the last proven checkpoint and past the samples since (train.rewind). False where that is not allowed
  // or nothing is there to go back to.
  bool rewind(double loss);
  // Nothing where the step was given up for a stop, for want of data or for a rewind: then no rank has updated
  // anything.
  std::optional<StepReport> train_step();
  std::optional<StepReport> profiled_step();
  dist::StepResult step_result(const TrainingStep::Numbers& numbers) const;
  // Throws on all ranks where the step's loss or gradient is not finite, after a checkpoint that is under way.
  void check_finite(const dist::StepTotals& totals, double norm);
  StepReport report(const dist::StepTotals& totals, const std::vector<double>& norms, double lr) const;
  // All ranks learn which clips have failed on any of them; too many end the run. Collective.
  void gather_failures();
  void validate_now();
  // The stop signal of any rank, or 0. Collective.
  int agreed_signal();
  // After the last step: saves what is not saved, and says why the run ends where it is not finished.
  int finish(int64_t first_step);
  HeldOutReport held_out_loss();
  // The folder is still this run's, and copies of what is trained agree. Collective.
  void check_before_saving();
  CheckpointParts parts();

  RootConfig config_;
  GraceWatch grace_;  // before all threads that may hang
  dist::World& world_;
  std::optional<dist::Patience> starting_;
  at::Device device_;
  dist::Mesh mesh_;
  dist::BatchShare share_;
  data::ClipPlan plan_, held_out_plan_;
  Epochs epochs_;  // of the plan
  std::vector<Expert> experts_;
  std::unique_ptr<EncodeCache> cache_;  // null without
  std::unique_ptr<LazyCodec> codec_;
  std::unique_ptr<CachedTextEncoder> text_;
  std::unique_ptr<LazyImageEncoder> image_;            // null for models without image tokens
  std::unique_ptr<model::SequenceParallel> sequence_;  // where ranks share samples
  std::unique_ptr<TrainingStep> step_;
  double peak_flops_per_s_;  // of a GPU; 0: not known
  std::unique_ptr<data::SampleStream> stream_;
  std::unique_ptr<MicroBatches> micro_batches_;  // from the stream
  std::unique_ptr<HeldOutLoss> held_out_;        // null without held-out clips
  Callbacks callbacks_;
  std::unique_ptr<FolderLock> lock_;  // of the first rank
  RunFolder folder_;
  RunRecord record_;
  TrainerState state_;
  int64_t sane_step_ = 0;  // the last that ended well
  LossWatch loss_watch_;
  bool rewound_ = false;  // in place of the last step
  RunSaver saver_;
  // As agreed by all ranks: a checkpoint is under way, and nobody writes any more or somebody failed.
  bool save_written_ = false;
  double step_s_ = 0;           // of the last step
  int stop_signal_ = 0;         // as agreed by all ranks
  int64_t known_failures_ = 0;  // sum over the ranks at the last look
  int64_t failed_files_ = 0;    // distinct, of all ranks
  std::string failure_;         // why the run must end, as agreed by all ranks; "" where it need not
  dist::StragglerReport stragglers_;
};

}  // namespace vmoba::train
