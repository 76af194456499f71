#include "train/validation/evaluation.h"

#include <ATen/ATen.h>

#include <numeric>

#include "config/experts.h"
#include "core/check.h"
#include "core/log.h"
#include "model/common/dtype.h"

namespace vmoba::train {
namespace {

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

void set_densities(const attention::AttentionStats& stats, int64_t layers, SettingLosses& out) {
  std::vector<attention::AttentionStats::Pairs> by_layer(static_cast<size_t>(layers));
  attention::AttentionStats::Pairs all;
  for (const auto& [place, pairs] : stats.sums().by_head) {
    for (auto* sum : {&by_layer[size_t(place.first)], &all}) {
      sum->first += pairs.first;
      sum->second += pairs.second;
    }
  }
  out.density = all.first / all.second;
  for (const auto& [attended, total] : by_layer) out.density_by_layer.push_back(attended / total);
}

}  // namespace

std::vector<double> SettingLosses::by_clip() const {
  std::vector<double> out;
  for (const std::vector<double>& levels : losses) out.push_back(mean_of(levels));
  return out;
}

std::vector<double> SettingLosses::of_level(size_t level) const {
  std::vector<double> out;
  for (const std::vector<double>& levels : losses) out.push_back(levels[level]);
  return out;
}

double SettingLosses::mean() const {
  return mean_of(by_clip());
}

Evaluation evaluate(const RootConfig& config, const std::vector<model::Dit*>& dits, const HeldOutEncoder& encoder,
                    const std::vector<EvaluatedSetting>& settings,
                    const std::function<void(int64_t, int64_t)>& progress) {
  Evaluation out{{}, config.validation.sigmas, uint64_t(config.validation.seed), {}};
  for (const EvaluatedSetting& setting : settings) out.settings.push_back({setting.name, {}});
  std::vector<attention::AttentionStats> stats(settings.size());
  const auto clips = int64_t(encoder.plan.clips.size());
  for (int64_t i = 0; i < clips; ++i) {
    const HeldOutClip clip = encode_held_out(encoder, i);
    if (!clip.failure.empty()) {
      log_warning("{} cannot be decoded and is left out: {}", encoder.plan.clips[size_t(i)].path, clip.failure);
      continue;
    }
    out.clips.push_back(clip.name);
    for (SettingLosses& setting : out.settings) setting.losses.emplace_back();
    for (const double sigma : out.sigmas) {
      const TrainingBatch batch = held_out_batch(config, out.seed, clip, sigma, encoder.device);
      model::Dit& dit = *dits[expert_at(config.experts, 1000 * sigma)];
      for (size_t s = 0; s < settings.size(); ++s) {
        model::ForwardOptions options{model::scalar_type(config.model.compute_dtype), false, {}, &stats[s]};
        options.attention = &settings[s].attention;
        out.settings[s].losses.back().push_back(held_out_loss(dit, batch, options).item<double>());
      }
    }
    if (progress) progress(i + 1, clips);
  }
  VMOBA_CHECK_INPUT(!out.clips.empty(), "expected a held-out clip that can be decoded, found none among {}", clips);
  for (size_t s = 0; s < settings.size(); ++s)
    set_densities(stats[s], model::layer_count(config.model), out.settings[s]);
  return out;
}

}  // namespace vmoba::train
