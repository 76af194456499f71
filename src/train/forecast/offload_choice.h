// What model.offload `auto` becomes: by the forecast, before a model is made.
#pragma once
#include <cstdint>
#include <string>

#include "config/root_config.h"
#include "train/dist/mesh_sizes.h"

namespace vmoba::train {

struct OffloadChoice {
  model::Offload offload = model::Offload::kNone;
  std::string reason;  // a line for the log
};

// For a rank of a job of these sizes, samples of `grid` tokens in passes of `micro`, on a GPU of so many bytes (0: a
// CPU, or unknown: nothing is offloaded). Of what fits, that which moves the fewest bytes in a step; where nothing
// fits, all that this configuration allows (validate_training).
OffloadChoice choose_offload(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid,
                             int64_t micro, int64_t gpu_bytes);

// Bytes of frozen blocks that stay on the GPU with model.offload `weights` or `both`: as many as let the copies of the
// others hide behind computing, by the forecast of both, within the memory that the forecast leaves. 0 where all hide.
int64_t resident_weights(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid,
                         int64_t micro, int64_t gpu_bytes);

// The configuration with model.offload decided, where it is `auto`.
RootConfig with_offload(RootConfig config, const OffloadChoice& choice);

}  // namespace vmoba::train
