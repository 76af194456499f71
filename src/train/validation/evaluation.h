// Held-out losses of one model under several attentions: every clip and noise level once, the same noise for all.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "attention/attention.h"
#include "train/validation/held_out_clips.h"

namespace vmoba::train {

// A name and the attention that it stands for.
struct EvaluatedSetting {
  std::string name;
  attention::AttentionConfig attention;
};

struct SettingLosses {
  std::string name;
  std::vector<std::vector<double>> losses;  // [clip][noise level]
  double density = 1;                       // attended pairs of all pairs, over layers, clips and levels
  std::vector<double> density_by_layer = {};

  std::vector<double> by_clip() const;  // mean over the levels
  std::vector<double> of_level(size_t level) const;
  double mean() const;
};

struct Evaluation {
  std::vector<std::string> clips;  // names; those that cannot be decoded are left out, with a warning
  std::vector<double> sigmas;
  uint64_t seed = 0;
  std::vector<SettingLosses> settings;
};

// `dits`: one for each expert. Clips, levels and seed are those of config.validation. `progress(clip, clips)` may be
// empty. Throws Error(kInput) where no clip can be decoded.
Evaluation evaluate(const RootConfig& config, const std::vector<model::Dit*>& dits, const HeldOutEncoder& encoder,
                    const std::vector<EvaluatedSetting>& settings,
                    const std::function<void(int64_t, int64_t)>& progress);

// Losses to compare with: of another setting or evaluation.
struct Baseline {
  std::string name;
  SettingLosses losses;
};

// One JSON object; settings other than the baseline have their paired differences to it.
std::string evaluation_to_json(const Evaluation& evaluation, const Baseline& baseline);
// For people: a table.
std::string evaluation_to_text(const Evaluation& evaluation, const Baseline& baseline);
// The losses of setting `name` ("": the first) in a file that evaluation_to_json made. Throws Error(kInput) where it
// has other clips, levels or another seed than `evaluation`, naming both.
Baseline read_baseline(const std::string& path, const std::string& name, const Evaluation& evaluation);

}  // namespace vmoba::train
