// Communicator over MPI for CPU tensors. Exchanges are direct, between every pair of ranks: each rank sends and
// receives (size - 1) / size of a tensor for a reduction and the same for a gather, as a ring would, in one round.
// Included by src/train/dist only.
#pragma once
#include <memory>
#include <vector>

#include "train/dist/communicator.h"
#include "train/dist/mpi_engine.h"
#include "train/dist/mpi_library.h"

namespace vmoba::train::dist {

// The group of these world ranks in this order; collective over all ranks of the world, each naming its own group.
// `engine` must outlive it.
std::unique_ptr<Communicator> make_mpi_communicator(MpiEngine& engine, const std::vector<int>& world_ranks);

}  // namespace vmoba::train::dist
