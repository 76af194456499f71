// What one rank of a job holds in memory, from the configuration alone (vmoba-train --dry-run,
// src/train/forecast/scale_model.h).
#pragma once
#include <cstdint>

#include "config/root_config.h"
#include "train/dist/mesh_sizes.h"

namespace vmoba::train {

// Numbers in one transformer. `outer` and `largest_block` are the units that ranks gather where they hold the state
// together: everything outside the blocks, and the largest block.
struct ModelSizes {
  int64_t experts = 1;     // transformers of this size
  int64_t parameters = 0;  // without adapters
  int64_t trainable = 0;   // the adapters' with LoRA, else all
  int64_t outer = 0, largest_block = 0;
  int64_t fp8 = 0;  // of the blocks' parameters, that travel as fp8 factors (model.linear_compute)
  // Of the parameters as model.weights_dtype keeps them: all, those outside blocks, those of the largest block.
  int64_t kept_bytes = 0, outer_bytes = 0, largest_block_bytes = 0;
};
ModelSizes model_sizes(const RootConfig& config);

// Whether backward computes blocks again. `auto` is forecast as `block`, the least memory.
bool recomputes(const RootConfig& config);

// Bytes of a value in model.compute_dtype, and of a weight on its way between ranks: the narrower of that and the type
// that it is kept in.
int64_t compute_width(const RootConfig& config);
int64_t carried_width(const RootConfig& config);

// Bytes, of all experts together; one computes at a time.
struct RankMemory {
  int64_t weights = 0;    // as model.weights_dtype keeps them, and adapters in fp32
  int64_t gradients = 0;  // fp32; of weights in bf16 that one rank holds alone, bf16
  int64_t optimizer = 0;  // its state
  int64_t ema = 0;        // fp32
  int64_t working = 0;    // weights in the compute dtype and gradients of the units at hand
  int64_t activations = 0;
  int64_t ring = 0;  // of model.offload weights: the frozen blocks that are on the device
  // Of gradients and activations, what is not there at the moment of the most: in the only pass of a step gradients
  // come as activations go.
  int64_t apart = 0;
  int64_t state() const { return weights + gradients + optimizer + ema; }
  int64_t total() const { return state() + working + activations + ring - apart; }
  // In page-locked memory of the host (model.offload), not part of the above.
  int64_t host_weights = 0, host_activations = 0;
};

// A rank of a job of these sizes, for samples of `grid` tokens in passes of `micro` samples. The shard * sequence
// ranks of a copy hold the state together (adapters lie on every rank, their frozen base is held together). They gather
// the outer unit and two blocks (the one at work and the next, with what the rank sends of it) in the compute dtype,
// all blocks where backward does not recompute them, and hold a block's gradients until they are summed into parts: in
// the compute dtype, and in fp32 with the part that comes back. A rank that holds all of the state makes copies of a
// block's weights in the compute dtype where that is another. model.offload `auto` counts as `none`: what it becomes is
// decided before (forecast/offload_choice.h).
RankMemory rank_memory(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid,
                       int64_t micro);

}  // namespace vmoba::train
