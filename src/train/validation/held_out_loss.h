// The held-out loss of a run: clips of the `validate:` group at its noise levels, with the averaged weights where there
// are any. The ranks share the clips; every rank gets the same numbers, which are those of one rank up to rounding.
#pragma once
#include <vector>

#include "model/sequence_parallel.h"
#include "train/dist/mesh.h"
#include "train/expert.h"
#include "train/report/callback.h"
#include "train/validation/held_out_clips.h"

namespace vmoba::train {

class HeldOutLoss {
 public:
  // Encodes this rank's clips. Throws Error(kInput) where none of the plan can be decoded. Collective over the world;
  // configuration, mesh and world must outlive it.
  HeldOutLoss(const HeldOutEncoder& encoder, const dist::Mesh& mesh, dist::World& world);

  // `stage`: how sparse attention is; `sequence`: where ranks share samples, else null. Weights are as before
  // when it returns or throws. Collective over the world.
  HeldOutReport compute(const std::vector<Expert>& experts, const attention::Stage& stage,
                        model::SequenceParallel* sequence) const;

 private:
  // Clip that this rank computes in a round: beyond the last one it repeats an earlier one, so that ranks which hold
  // the model together stay in step.
  int64_t clip_of_round(int64_t round) const;

  const RootConfig& config_;
  at::Device device_;
  const dist::Mesh& mesh_;
  dist::World& world_;
  int64_t clips_, rounds_;
  std::vector<HeldOutClip> of_round_;
  std::vector<bool> usable_;  // by clip
};

}  // namespace vmoba::train
