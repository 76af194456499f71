// The root of a configuration file: every group, and the checks that no group can make alone.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "config/cache_config.h"
#include "config/expert_config.h"
#include "config/run_config.h"
#include "config/sample_config.h"
#include "config/train_config.h"
#include "config/validate_config.h"
#include "core/config.h"
#include "data/config.h"
#include "model/adapter/lora.h"
#include "model/codec.h"
#include "model/dit.h"
#include "model/image_encoder.h"
#include "model/text_encoder.h"

namespace vmoba {

struct RootConfig {
  int64_t seed = 0;
  RunConfig run;
  ParallelConfig parallel;
  data::DataConfig data;
  model::ModelConfig model;
  std::vector<ExpertConfig> experts;  // empty: one transformer (config/experts.h)
  model::LoraConfig lora;
  model::CodecConfig codec;
  model::TextEncoderConfig text;
  model::ImageEncoderConfig image_encoder;
  attention::AttentionConfig attention;
  CacheConfig cache;
  TrainConfig train;
  ValidateConfig validation;  // the group `validate:`
  SampleConfig sample;

  void visit(ConfigVisitor& v);
  // Agreement between groups; throws Error(kInput).
  void validate() const;
};

// Reads, checks and returns a configuration. `path` empty: defaults and overrides only. Sizes that model.weights states
// and the default lora.targets of the architecture are filled in.
RootConfig load_root_config(const std::string& path, const std::vector<std::string>& overrides);

// What training asks beyond validate(): weights that can be trained, timesteps of every expert. Throws Error(kInput).
void validate_training(const RootConfig& config);

// docs/config.md
std::string config_reference();

}  // namespace vmoba
