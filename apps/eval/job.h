// What vmoba-eval was asked for, turned into a configuration and settings; its samples.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "apps/sample/job.h"
#include "train/cache/lazy_encoders.h"
#include "train/validation/evaluation.h"

namespace vmoba::apps {

struct EvalArguments {
  SampleArguments model;  // checkpoint or configuration, averaged weights, LoRA, overrides
  std::string data;
  int64_t clips = 0, seed = -1;
  std::vector<double> sigmas;
  std::vector<std::string> sets;  // "NAME: key=value ..."
  std::string against;            // FILE or FILE:NAME
  std::string json, videos;
  int64_t samples = 0;
};

// The configuration with the held-out clips that the options name. Throws Error(kInput) where options do not go
// together.
RootConfig eval_config(const EvalArguments& a);

// The attention of every --set, or the configuration's alone. Only keys of `attention:` can be set, because one load of
// the weights serves all.
std::vector<train::EvaluatedSetting> eval_settings(const EvalArguments& a, const RootConfig& config);

// What encodes held-out clips, with the cache where there is one. Owns all that HeldOutEncoder borrows.
struct EvalSource {
  EvalSource(const RootConfig& config, at::Device device);
  train::HeldOutEncoder encoder(const RootConfig& config) const;

  at::Device device;
  data::ClipPlan plan;
  std::unique_ptr<train::EncodeCache> cache;
  train::LazyCodec codec;
  train::CachedTextEncoder text;
  std::unique_ptr<train::LazyImageEncoder> image;
};

// A video of every setting from the same noise, compared with the first setting's.
struct ComparedSample {
  std::string setting, prompt, video;              // the last is "" where none was written
  double psnr_db = 0, ssim = 1, latent_error = 0;  // of the first setting: infinity, 1 and 0
};
std::vector<ComparedSample> compare_samples(const EvalArguments& a, const RootConfig& config, const EvalSource& source,
                                            const SampleModel& model,
                                            const std::vector<train::EvaluatedSetting>& settings);

}  // namespace vmoba::apps
