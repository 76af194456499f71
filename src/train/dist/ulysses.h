// model::SequenceParallel over a group of ranks: an all_to_all for each of q, k, v and for the output of self
// attention, one all_gather at the end of the model.
#pragma once
#include <memory>

#include "model/sequence_parallel.h"
#include "train/dist/communicator.h"

namespace vmoba::train::dist {

// `ranks` must outlive it and every graph made with it.
std::unique_ptr<model::SequenceParallel> make_ulysses(Communicator& ranks);

}  // namespace vmoba::train::dist
