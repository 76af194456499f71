// Communicator over NCCL for CUDA tensors. Each group has a side stream of its own, so that gathers of weights, sums of
// gradients and exchanges around attention do not wait for each other: within a group operations run in the order of
// submission, groups run beside each other. A rank submits the operations of all its groups in one order that the ranks
// share; as the kernels of all groups fit on a GPU together, groups cannot wait for each other in a circle
// (NCCL_LAUNCH_ORDER_IMPLICIT=1 would have NCCL enforce the order, and the waiting with it).
//
// An operation begins when the current stream's work so far is done; wait() makes the current stream wait for it. An
// operation's tensors are kept until then; what is freed behind it is used again behind it, so that a host that runs
// ahead of its GPU needs no more memory.
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
// Error(kRuntime) with NCCL's reason, or where the ranks do not find each other within `start_limit_s`.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const at::Device& device,
                                                     OperationWatch& watch, std::vector<int> world_ranks,
                                                     double start_limit_s = 45);

}  // namespace vmoba::train::dist
