// Communicator over NCCL for CUDA tensors. All groups of a process share one side stream: their operations run in the
// order of submission, which all ranks share, so that groups cannot wait for each other in a circle. An operation
// begins when the current stream's work so far is done; wait() makes the current stream wait for it.
// Included by src/train/dist only.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>

#include "train/dist/communicator.h"

namespace vmoba::train::dist {

// The ranks of `control`, each on its `device`; the unique id travels over `control`. Collective. Throws
// Error(kRuntime) with NCCL's reason.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const at::Device& device);

}  // namespace vmoba::train::dist
