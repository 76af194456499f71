// FLOPs of an optimiser step, from the configuration: matrix products and attention; norms and activations are left
// out.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "config/root_config.h"

namespace vmoba::train {

// Values of the adapters of each module that has one; empty without LoRA.
std::map<std::string, int64_t> adapters_of(const RootConfig& config);

struct StepFlops {
  double forward = 0, backward = 0;
  double total() const { return forward + backward; }
};

// Backward costs twice the forward, once for the gradients of inputs and once for those of weights; attention's 2.5
// times is within this figure's accuracy. `recomputed`: and one forward more. Frozen weights need no gradients of their
// own, nor do conditions and what comes before the first adapter.
StepFlops step_flops(const RootConfig& config, const std::map<std::string, int64_t>& adapters,
                     const std::vector<model::ForwardWork>& work, bool recomputed);

// Share of the forward FLOPs of a model's blocks that backward computes again under `plan`, 0 .. 1.
double recomputed_share(const RootConfig& config, const std::vector<model::ForwardWork>& work,
                        const model::RecomputePlan& plan);

// Of training on one sample, without recomputation: what MFU counts.
struct SampleWork {
  double products = 0;          // of linear maps
  double other_attention = 0;   // of dense layers and over conditions
  double sparse_attention = 0;  // of the others, at density 1
  double sparse_layers = 0;     // their share of all layers

  // `density`: attended of all pairs, over all layers (AttentionStats).
  double attention(double density) const;
  double flops(double density) const { return products + attention(density); }
};
SampleWork sample_work(const RootConfig& config, const attention::Grid& grid, int64_t text_tokens);

}  // namespace vmoba::train
