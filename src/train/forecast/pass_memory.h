// What blocks hold in a rank's memory during one pass of training, from the configuration alone: the counts of
// model::BlockActivations and attention::selection_bytes in bytes. Forward goes through the blocks in order and leaves
// something of each; backward goes back, computes a block again where model.recompute says so, and leaves its
// gradients.
#pragma once
#include <vector>

#include "attention/attention.h"
#include "config/root_config.h"

namespace vmoba::train {

// A pass: `micro` samples of `grid`, each computed by `sequence` ranks together.
struct PassPlace {
  attention::Grid grid;
  int64_t micro = 1;
  int64_t sequence = 1;
};

// Bytes of a block on the device.
struct BlockMemory {
  double held = 0;  // from its forward to its backward
  double busy = 0;  // the most in its backward, what it held among it
};

// Of all blocks, in the order of computing. `auto` counts as recomputing `block`. With model.offload
// activations the inputs wait elsewhere, but two.
std::vector<BlockMemory> block_memory(const RootConfig& config, const PassPlace& pass);

// Inputs of all blocks, in bytes.
double block_input_bytes(const RootConfig& config, const PassPlace& pass);

// The most that lies there at one moment: of blocks alone, and of blocks with the gradients of those behind them,
// `gradients` bytes each (or none).
double most_activations(const std::vector<BlockMemory>& blocks);
double most_with_gradients(const std::vector<BlockMemory>& blocks, const std::vector<double>& gradients);

}  // namespace vmoba::train
