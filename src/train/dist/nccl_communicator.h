// Communicator over NCCL for CUDA tensors. All groups of a process share one side stream: their operations run in the
// order of submission, which all ranks share, so that groups cannot wait for each other in a circle. An operation
// begins when the current stream's work so far is done; wait() makes the current stream wait for it.
// Included by src/train/dist only.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "train/dist/communicator.h"
#include "train/dist/operation_watch.h"

namespace vmoba::train::dist {

// The ranks of `control`, in the world `world_ranks`, each on its `device`; the unique id travels over `control`.
// Operations report to `watch`, which ends those that never finish and must outlive the group. Collective. Throws
// Error(kRuntime) with NCCL's reason, or where the ranks do not find each other within 45 s.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const at::Device& device,
                                                     OperationWatch& watch, std::vector<int> world_ranks);

}  // namespace vmoba::train::dist
