// How the ranks of a job share the work. Ranks are numbered with `sequence` fastest, then `shard`, then `data`:
//
//   rank = (data_index * shard + shard_index) * sequence + sequence_index
//
// Ranks that differ in sequence_index share samples and split their tokens; all others take samples of their own. One
// copy of the training state is spread over the shard * sequence ranks of a data_index (consecutive ranks: one host or
// neighbours), and there are `data` copies.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "train/dist/communicator.h"
#include "train/dist/rank_device.h"
#include "train/dist/world.h"

namespace vmoba::train::dist {

struct MeshSizes {
  int data = 1, shard = 1, sequence = 1;
  int state_ranks() const { return shard * sequence; }  // ranks that hold one copy of the state together
  int batch_ranks() const { return data * shard; }      // groups that take samples of their own
};

// Sizes for `ranks` ranks, parallel.data = 0 filled in. Throws Error(kInput) with sizes that would work.
MeshSizes mesh_sizes(const ParallelConfig& config, int64_t ranks);

// What a group of ranks takes of each optimiser step.
struct BatchShare {
  int64_t samples = 1;  // of train.global_batch
  int64_t micro = 1;    // of one forward pass: train.micro_batch, or less so that a pass does not straddle ranks
  int64_t passes = 1;
};
// Throws Error(kInput) where train.global_batch cannot be shared by the ranks, with the nearest that could.
BatchShare batch_share(const TrainConfig& config, const MeshSizes& sizes);

class Mesh {
 public:
  // Makes the groups, over NCCL where `device` is a GPU. Collective. `world` must outlive it.
  Mesh(World& world, const ParallelConfig& config, const at::Device& device);

  const MeshSizes& sizes() const { return sizes_; }
  int batch_rank() const { return batch_rank_; }  // 0 .. batch_ranks() - 1
  int data_rank() const { return data_rank_; }    // which copy of the state
  Communicator& everyone() { return *everyone_; }
  Communicator& state() { return *state_; }        // ranks that hold one copy of the state together
  Communicator& replicas() { return *replicas_; }  // ranks that hold the same part of it
  Communicator& sequence() { return *sequence_; }  // ranks that share samples

 private:
  std::shared_ptr<Communicator> make_group(World& world, const std::vector<int>& ranks, const at::Device& device);

  MeshSizes sizes_;
  int batch_rank_ = 0, data_rank_ = 0;
  std::vector<std::shared_ptr<Communicator>> control_;  // MPI groups beneath the NCCL ones
  std::shared_ptr<Communicator> everyone_, state_, replicas_, sequence_;
};

// One line that says where this rank runs and what its part is; nothing for one rank.
void log_rank(const World& world, const Mesh& mesh, const BatchShare& share, const at::Device& device);

}  // namespace vmoba::train::dist
