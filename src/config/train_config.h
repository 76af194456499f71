// The `train:` group and its inner groups: what a training step computes and how often it is saved.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba {

// The `train.optimizer:` group.
struct OptimizerConfig {
  std::string type = "adamw";  // adamw | adamw_8bit | muon
  double lr = 1e-5;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.01;
  std::string schedule = "constant";  // constant | linear | cosine
  int64_t warmup_steps = 0;
  double final_lr = 0.0;
  double max_grad_norm = 1.0;
  // Of muon.
  double momentum = 0.95;
  int64_t newton_schulz_steps = 5;
  std::string matrix_lr = "match_rms";  // match_rms | original

  void visit(ConfigVisitor& v);

 private:
  void visit_muon(ConfigVisitor& v);
};

// The `train.flow:` group: flow matching (src/train/flow_matching.h).
struct FlowConfig {
  std::string timestep_sampling = "logit_normal";  // uniform | logit_normal
  double logit_mean = 0.0, logit_std = 1.0;
  double shift = 3.0;
  double min_timestep = 0.0, max_timestep = 1000.0;
  std::string loss_weighting = "uniform";  // uniform | sigma_sqrt | cosmap
  double caption_dropout = 0.1;
  double first_frame_rate = 1.0;
  double embedded_guidance = 1.0;  // told to models that take a guidance scale as an input

  void visit(ConfigVisitor& v);
};

// The `train.ema:` group.
struct EmaConfig {
  bool enabled = false;
  double decay = 0.999;

  void visit(ConfigVisitor& v);
};

// The `train.rewind:` group: going back past a spike of the loss (src/train/loss_watch.h).
struct RewindConfig {
  int64_t times = 0;  // in the whole run
  double factor = 10;

  void visit(ConfigVisitor& v);
};

// The `train.distill:` group: a dense teacher beside the data (src/train/expert.h).
struct DistillConfig {
  double weight = 0;    // of the teacher's velocity in the loss; 0: no teacher
  std::string weights;  // empty: model.weights

  void visit(ConfigVisitor& v);
};

// The `train:` group.
struct TrainConfig {
  int64_t steps = 1000;
  double epochs = 0;  // above 0: decides the steps (config/epochs.h)
  int64_t global_batch = 1;
  int64_t micro_batch = 1;
  int64_t checkpoint_every = 500;
  int64_t checkpoint_every_epochs = 0;  // 0: none
  int64_t keep_checkpoints = 3;
  int64_t keep_every = 0;  // 0: none
  int64_t keep_best = 0;   // by validation loss
  bool checkpoint_async = true;
  int64_t validate_every = 0;
  int64_t validate_every_epochs = 0;  // 0: none
  bool tensorboard = true;
  bool report = true;
  OptimizerConfig optimizer;
  FlowConfig flow;
  EmaConfig ema;
  RewindConfig rewind;
  DistillConfig distill;

  // Whether the run samples videos.
  bool validates() const { return validate_every > 0 || validate_every_epochs > 0; }
  void visit(ConfigVisitor& v);
};

}  // namespace vmoba
