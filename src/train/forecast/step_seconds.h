// How long training takes a GPU, from the configuration alone: the FLOPs and bytes of a sample by kind of kernel, each
// at the rate that kernels of that kind were measured to reach on an H200 (docs/benchmarks.md). None of the rates is
// fitted to whole steps.
#pragma once
#include <string>

#include "config/root_config.h"
#include "train/forecast/estimate.h"

namespace vmoba::train {

// FLOPs and bytes per second.
struct KernelRates {
  // FLOPs of the pairs that are attended; backward has 2.5 times those of forward.
  struct Pairs {
    double forward, backward;
  };
  // Keys and values of many tokens do not stay in the GPU's cache: rates at 55,296 tokens and fewer, at 118,800 and
  // more, and on a straight line between them.
  struct Attention {
    Pairs few, many;
    Pairs at(int64_t tokens) const;
  };
  double products;              // of bf16 matrices, within a step
  double fp8_products;          // model.linear_compute fp8
  Attention full, full_narrow;  // cuDNN, heads of 128 and of 64
  // Sparse: each query by itself; cubes that choose together, of 64 tokens and of 128.
  Attention rows, pieces, pairs;
  double few_keys;  // cross attention, forward and backward
  double bytes;     // of kernels that move values
  double cells;     // of a tile's choice among blocks: gates each head looks through
  double muon;      // products of Newton-Schulz
  double gaps;      // seconds between the kernels of a block, forward and backward once
};
KernelRates h200_rates();

// Seconds by kind of kernel. `again`: what of them is forward within backward.
struct StepSeconds {
  double products = 0;
  double attention = 0;  // of tokens among themselves
  double few_keys = 0;   // over conditions
  double moved = 0;      // norms, rotations, residuals, GELU, sums for biases; a LoRA's adapters
  double weights = 0;    // copies in the compute dtype
  double gaps = 0;       // between kernels
  double again = 0;      // of the others, forward computed again
  double backward = 0;   // of the others, within backward (`again` too)
  double total() const { return products + attention + few_keys + moved + weights + gaps; }
};

// Of training on one sample of `grid`, `density` of the pairs of sparse layers attended, by one rank alone; without the
// optimiser.
StepSeconds sample_seconds(const RootConfig& config, const attention::Grid& grid, double density,
                           const model::RecomputePlan& plan, const KernelRates& rates);
// Of an update of all that is trained.
double optimizer_seconds(const RootConfig& config, const KernelRates& rates);

// What backward computes again with `free_bytes` beside what `block` takes: model.recompute `auto` fills them, a share
// of a sample's tokens in passes of `micro` samples. `weights_stay`: they are on the device until backward.
model::RecomputePlan forecast_plan(const RootConfig& config, const attention::Grid& grid, int64_t micro, double share,
                                   double free_bytes, bool weights_stay = true);

// Seconds of a step of each bucket on one GPU of so many bytes (0: an H200's), by kind of kernel.
std::string time_to_text(const RootConfig& config, const RunEstimate& run, int64_t gpu_bytes);

}  // namespace vmoba::train
