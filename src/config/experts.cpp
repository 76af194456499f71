#include "config/experts.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"

namespace vmoba {

void ExpertConfig::visit(ConfigVisitor& v) {
  v.field("weights", weights, "Pretrained weights of this expert, as `model.weights`; empty: random. All or none.");
  v.field("until_timestep", until_timestep,
          "The last timestep of this expert: it works from the end of the one before it (1000 for the first) down to "
          "here; 0 for the last expert.",
          between(0, 1000));
  v.field("guidance", guidance,
          "Scale of its classifier-free guidance; 0: `sample.guidance`, which also says whether there is any.",
          at_least(0));
  v.field("lora", lora, "LoRA file that its adapters go on from, as `lora.init_from`.");
}

size_t expert_at(const std::vector<ExpertConfig>& experts, double timestep) {
  size_t expert = 0;
  while (expert + 1 < experts.size() && timestep < experts[expert].until_timestep) ++expert;
  return expert;
}

size_t expert_count(const RootConfig& config) {
  return std::max<size_t>(1, config.experts.size());
}

model::ModelConfig expert_model(const RootConfig& config, size_t expert) {
  model::ModelConfig out = config.model;
  if (config.experts.empty()) return out;
  out.weights = config.experts.at(expert).weights;
  VMOBA_CHECK_INPUT(out.weights.empty() || std::filesystem::exists(out.weights),
                    "experts[{}].weights: expected pretrained weights at '{}', found nothing; docs/pretrained.md says "
                    "where to get them",
                    expert, out.weights);
  return out;
}

model::ModelConfig teacher_model(const RootConfig& config, size_t expert) {
  model::ModelConfig out = expert_model(config, expert);
  if (!config.train.distill.weights.empty()) out.weights = config.train.distill.weights;
  out.weights_dtype = out.compute_dtype;
  return out;
}

model::LoraConfig expert_lora(const RootConfig& config, size_t expert) {
  model::LoraConfig out = config.lora;
  if (!config.experts.empty()) out.init_from = config.experts.at(expert).lora;
  return out;
}

void check_experts(const RootConfig& config) {
  const std::vector<ExpertConfig>& experts = config.experts;
  if (experts.empty()) return;
  VMOBA_CHECK_INPUT(config.model.weights.empty(),
                    "model.weights: expected none beside experts, which name their own, found '{}'; remove it, or set "
                    "experts to [] for one transformer",
                    config.model.weights);
  VMOBA_CHECK_INPUT(config.lora.init_from.empty(),
                    "lora.init_from: expected none beside experts, found '{}'; write experts[0].lora",
                    config.lora.init_from);
  for (size_t i = 0; i < experts.size(); ++i) {
    VMOBA_CHECK_INPUT(experts[i].weights.empty() == experts[0].weights.empty(),
                      "experts[{}].weights: expected weights of all experts or of none, found '{}' beside '{}'", i,
                      experts[i].weights, experts[0].weights);
    const bool last = i + 1 == experts.size();
    const double until = experts[i].until_timestep;
    VMOBA_CHECK_INPUT(!last || until == 0, "experts[{}].until_timestep: expected 0 for the last expert, found {}", i,
                      until);
    VMOBA_CHECK_INPUT(last || until > experts[i + 1].until_timestep,
                      "experts[{}].until_timestep: expected more than that of the next expert ({}), because experts "
                      "stand in the order of denoising, found {}",
                      i, experts[i + 1].until_timestep, until);
  }
}

void check_experts_are_trained(const RootConfig& config) {
  const std::vector<ExpertConfig>& experts = config.experts;
  if (experts.size() < 2) return;
  const FlowConfig& flow = config.train.flow;
  const double highest = experts.front().until_timestep, lowest = experts[experts.size() - 2].until_timestep;
  VMOBA_CHECK_INPUT(flow.min_timestep < lowest && highest < flow.max_timestep,
                    "train.flow.min_timestep and max_timestep: expected a range from below {} to above {}, so that all "
                    "{} experts are trained, found [{}, {}]; to train one of them alone, set model.weights to it and "
                    "experts to []",
                    lowest, highest, experts.size(), flow.min_timestep, flow.max_timestep);
}

}  // namespace vmoba
