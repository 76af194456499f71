// The training loop: clips -> latents -> noise -> velocity -> loss -> gradients -> update, with checkpoints, metrics
// and validation. One object is one run. It owns model, optimiser and data; callbacks are owned too.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "train/callbacks/callback.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/flow_matching.h"

namespace vmoba::train {

// Where a run begins: nothing (anew), "latest", or a checkpoint folder.
struct ResumeRequest {
  std::string from;
};

class Trainer {
 public:
  // Plans the data and makes all parts; touches nothing on disk.
  explicit Trainer(const RootConfig& config);
  ~Trainer();

  // Runs to train.steps, or until a stop signal. Returns the process's exit code: 0 or kExitStopped.
  // Throws Error: non-finite loss or gradient (before the update, naming step and clips), I/O, unusable data.
  int run(const ResumeRequest& resume);

 private:
  struct StepInputs {
    std::vector<int64_t> samples;
    std::vector<std::string> clips;  // paths, for messages
  };

  void attach_adapters();
  void start(const ResumeRequest& resume);
  void make_callbacks();
  StepReport train_step();
  // Loss of one forward and backward pass over train.micro_batch samples (not yet divided by the accumulation).
  double accumulate(StepInputs& inputs, bool dense, int64_t passes);
  void check_finite(double loss, double norm, const StepInputs& inputs) const;
  void save();
  void validate_now();
  CheckpointParts parts();

  RootConfig config_;
  at::Device device_;
  at::ScalarType compute_dtype_;
  data::ClipPlan plan_;
  std::unique_ptr<model::Dit> dit_;
  std::unique_ptr<model::Codec> codec_;
  std::unique_ptr<model::TextEncoder> text_;
  std::unique_ptr<model::ImageEncoder> image_;  // null for models without image tokens
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Ema> ema_;
  std::unique_ptr<data::SampleStream> stream_;
  std::vector<std::unique_ptr<Callback>> callbacks_;
  attention::AttentionStats stats_;
  TrainerState state_;
  int64_t step_tokens_ = 0;
};

// The device named by run.device; "auto" takes CUDA where present. Also sets the number of CPU threads.
at::Device prepare_device(const RunConfig& config);

// Bytes in use: peak of the GPU allocator, or resident memory of the process.
int64_t memory_in_use_bytes(const at::Device& device);

}  // namespace vmoba::train
