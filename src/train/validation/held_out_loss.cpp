#include "train/validation/held_out_loss.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "config/experts.h"
#include "core/check.h"
#include "core/log.h"
#include "model/common/dtype.h"
#include "train/validation/averaged_weights.h"

namespace vmoba::train {

HeldOutLoss::HeldOutLoss(const HeldOutEncoder& encoder, const dist::Mesh& mesh, dist::World& world)
    : config_(encoder.config),
      device_(encoder.device),
      mesh_(mesh),
      world_(world),
      clips_(int64_t(encoder.plan.clips.size())),
      rounds_((clips_ - 1) / mesh.sizes().batch_ranks() + 1) {
  at::Tensor failed_C = at::zeros({clips_}, at::kDouble);
  for (int64_t round = 0; round < rounds_; ++round) {
    const int64_t clip = clip_of_round(round);
    of_round_.push_back(encode_held_out(encoder, clip));
    if (of_round_.back().failure.empty()) continue;
    failed_C[clip] = 1;
    log_warning("validate: {} cannot be decoded and is left out: {}", encoder.plan.clips[size_t(clip)].path,
                of_round_.back().failure);
  }
  world_.control().all_reduce(failed_C)->wait();
  for (int64_t clip = 0; clip < clips_; ++clip) usable_.push_back(failed_C[clip].item<double>() == 0);
  VMOBA_CHECK_INPUT(std::count(usable_.begin(), usable_.end(), true) > 0,
                    "validate: expected a held-out clip that can be decoded, found none among {}; name others in "
                    "validate.path",
                    clips_);
}

int64_t HeldOutLoss::clip_of_round(int64_t round) const {
  return (round * mesh_.sizes().batch_ranks() + mesh_.batch_rank()) % clips_;
}

HeldOutReport HeldOutLoss::compute(const std::vector<Expert>& experts, const attention::Stage& stage,
                                   model::SequenceParallel* sequence) const {
  const AveragedWeights averaged(experts);
  const std::vector<double>& sigmas = config_.validation.sigmas;
  const auto levels = int64_t(sigmas.size());
  model::ForwardOptions options{model::scalar_type(config_.model.compute_dtype), stage.dense, {}, nullptr, sequence};
  options.sparsity = stage.sparsity;
  // Ranks that share samples get the same losses: the first of them speaks.
  const bool speaks = sequence == nullptr || sequence->rank() == 0;
  at::Tensor losses_CL = at::zeros({clips_, levels}, at::kDouble);
  for (int64_t round = 0; round < rounds_; ++round) {
    const bool repeated = round * mesh_.sizes().batch_ranks() + mesh_.batch_rank() >= clips_;
    if (repeated && !experts.front().shards) continue;
    const int64_t clip = clip_of_round(round);
    for (int64_t level = 0; level < levels; ++level) {
      const double sigma = sigmas[size_t(level)];
      const TrainingBatch batch =
          held_out_batch(config_, uint64_t(config_.validation.seed), of_round_[size_t(round)], sigma, device_);
      const at::Tensor loss = held_out_loss(*experts[expert_at(config_.experts, 1000 * sigma)].dit, batch, options);
      if (speaks && !repeated) losses_CL[clip][level].copy_(loss);
    }
  }
  world_.control().all_reduce(losses_CL)->wait();  // one rank's value and zeros
  HeldOutReport out;
  for (int64_t level = 0; level < levels; ++level) {
    double sum = 0;
    for (int64_t clip = 0; clip < clips_; ++clip)
      if (usable_[size_t(clip)]) sum += losses_CL[clip][level].item<double>();
    out.by_sigma.emplace_back(sigmas[size_t(level)], sum / double(std::count(usable_.begin(), usable_.end(), true)));
    out.loss += out.by_sigma.back().second / double(levels);
  }
  return out;
}

}  // namespace vmoba::train
