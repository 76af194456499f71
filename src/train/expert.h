// A transformer in training with everything that follows from its gradients. A run has one, or those of the list
// `experts` in the order of denoising. Owns its parts, which live on one device.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "model/common/weight_ring.h"
#include "model/dit.h"
#include "train/dist/mesh.h"
#include "train/dist/sharded_weights.h"
#include "train/optim/ema.h"
#include "train/optim/optimizer.h"

namespace vmoba::train {

struct Expert {
  std::unique_ptr<model::WeightStore> ring;  // of the frozen base where it waits in the host's memory; null without
  std::unique_ptr<model::Dit> dit;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<Ema> ema;                              // null without
  std::unique_ptr<model::Dit> teacher;                   // of train.distill; null with LoRA, where the base teaches
  std::shared_ptr<dist::ShardedWeights> shards;          // where several ranks hold the parameters together
  std::shared_ptr<dist::ShardedWeights> teacher_shards;  // where they hold the teacher together
  std::shared_ptr<dist::GradientSums> sums;              // null for one rank
  // Ranks that hold what is trained together, a part each; null where each holds all of it.
  dist::Communicator* holders = nullptr;
  // Ranks that hold the same of it as this one; null for this rank alone.
  dist::Communicator* copies = nullptr;
  int64_t updates = 0;  // optimiser steps that changed it

  // Gradients become zero, or none; where ranks hold the model together, its weights are gathered anew.
  void begin_gradients();
  // The teacher's velocity under full attention, without gradients; collective where ranks hold it together.
  at::Tensor teach(const model::DitInput& input, model::ForwardOptions options) const;
  // Sums gradients over ranks; collective.
  void finish_gradients();
  // Frees gathered weights that a step has kept, whether its gradients were finished or not.
  void drop_gathered();
  // L2 norm of all gradients, a scalar on their device; no synchronisation with a GPU. Collective over `holders`.
  at::Tensor gradient_norm() const;
  // One step of the optimiser, with gradients whose norm is `norm` scaled down to `max_norm` (0: as they are), and of
  // the average. Where `skip`, a scalar, is not 0, no weight changes (Update). No synchronisation.
  void update(double lr, const at::Tensor& norm, double max_norm, const at::Tensor& skip);
};

// Each with its model, adapters where lora.rank says so, optimiser and average (config/experts.h). What is drawn for an
// expert differs from what is drawn for the others. Ranks share them as `mesh` says, which must outlive them: what is
// trained or, beside adapters, the frozen base lies in parts on the ranks of mesh.state(). `resident_bytes`: see
// model::RingSlots.
std::vector<Expert> make_experts(const RootConfig& config, at::Device device, dist::Mesh& mesh,
                                 int64_t resident_bytes = 0);

// The expert that a sample trains: the one that works at its timestep, a function of (seed, sample).
size_t expert_of_sample(const RootConfig& config, int64_t sample);

// Whether each expert has any of the step's samples [first, first + train.global_batch): the same on all ranks. One
// without is not touched by the step: no weight decay, no average, no count in its optimiser.
std::vector<bool> experts_in_step(const RootConfig& config, int64_t first_sample);

// "high_noise" or "low_noise", as users of two experts' files name them; "" for the only one; of more "expert_1", ...
std::string expert_name(size_t expert, size_t experts);

}  // namespace vmoba::train
