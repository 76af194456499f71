// The root of a configuration file and the groups that belong to training.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "core/config.h"
#include "data/clip_plan.h"
#include "model/codec.h"
#include "model/common/lora.h"
#include "model/dit.h"
#include "model/image_encoder.h"
#include "model/text_encoder.h"
#include "sample/pipeline.h"
#include "train/cache/cache_config.h"

namespace vmoba::train {

// The `run:` group: where a run lives and how it talks.
struct RunConfig {
  std::string dir = "runs/default";
  std::string device = "auto";  // auto | cpu | cuda
  std::string log_level = "info";
  bool deterministic = false;  // GPU only
  int64_t threads = 0;         // CPU threads of tensor operations; 0: all cores
  int64_t profile_step = 0;    // 0: none

  void visit(ConfigVisitor& v);
};

// The `train.optimizer:` group.
struct OptimizerConfig {
  double lr = 1e-5;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.01;
  std::string schedule = "constant";  // constant | linear | cosine
  int64_t warmup_steps = 0;
  double final_lr = 0.0;
  double max_grad_norm = 1.0;

  void visit(ConfigVisitor& v);
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

  void visit(ConfigVisitor& v);
};

// The `train.ema:` group.
struct EmaConfig {
  bool enabled = false;
  double decay = 0.999;

  void visit(ConfigVisitor& v);
};

// The `train:` group.
struct TrainConfig {
  int64_t steps = 1000;
  int64_t global_batch = 1;
  int64_t micro_batch = 1;
  int64_t checkpoint_every = 500;
  int64_t keep_checkpoints = 3;
  bool checkpoint_async = true;
  int64_t validate_every = 0;
  bool tensorboard = true;
  OptimizerConfig optimizer;
  FlowConfig flow;
  EmaConfig ema;

  void visit(ConfigVisitor& v);
};

// The `parallel:` group: how the ranks of a job share the work (src/train/dist/mesh.h).
struct ParallelConfig {
  int64_t data = 0;  // 0: what the number of ranks leaves
  int64_t shard = 1;
  int64_t sequence = 1;
  double timeout_s = 45;
  int64_t report_every = 100;

  void visit(ConfigVisitor& v);
};

struct RootConfig {
  int64_t seed = 0;
  RunConfig run;
  ParallelConfig parallel;
  data::DataConfig data;
  model::ModelConfig model;
  model::LoraConfig lora;
  model::CodecConfig codec;
  model::TextEncoderConfig text;
  model::ImageEncoderConfig image_encoder;
  attention::AttentionConfig attention;
  CacheConfig cache;
  TrainConfig train;
  sample::SampleConfig sample;

  void visit(ConfigVisitor& v);
  // Agreement between groups; throws Error(kInput).
  void validate() const;
};

// Reads, checks and returns a configuration. `path` empty: defaults and overrides only.
RootConfig load_root_config(const std::string& path, const std::vector<std::string>& overrides);

// What training asks beyond validate(): weights that can be trained. Throws Error(kInput).
void validate_training(const RootConfig& config);

// What clips the configured codec and model take.
data::ClipGeometry clip_geometry(const RootConfig& config);

// Throws Error(kInput) where embeddings of this width do not fit the model.
void check_text_width(const RootConfig& config, int64_t width);

// docs/config.md
std::string config_reference();

}  // namespace vmoba::train
