// A transformer in training with everything that follows from its gradients. A run has one, or the two experts of a
// model with model.boundary: that of high noise first, that of low noise second. Owns its parts, which live on one
// device.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/dit.h"
#include "train/config.h"
#include "train/dist/gradient_buckets.h"
#include "train/ema.h"
#include "train/optimizer.h"

namespace vmoba::train {

struct Expert {
  std::unique_ptr<model::Dit> dit;
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<Ema> ema;                        // null without
  std::unique_ptr<dist::GradientBuckets> buckets;  // where several ranks hold all parameters each
  int64_t updates = 0;                             // optimiser steps that changed it

  // Gradients become zero, or none.
  void begin_gradients();
  // L2 norm of all gradients. One synchronisation with a GPU.
  double gradient_norm() const;
  // One step of the optimiser, with gradients whose norm is `norm` scaled down to `max_norm` (0: as they are), and of
  // the average.
  void update(double lr, double norm, double max_norm);
};

// The model from model.weights, adapters where lora.rank says so, optimiser and average. `ranks`: the group that sums
// gradients, or null.
Expert make_expert(const RootConfig& config, at::Device device, dist::Communicator* ranks);

}  // namespace vmoba::train
