// The groups of ranks that share the work (mesh_sizes.h). Ranks are numbered with `sequence` fastest, then `shard`,
// then `data`:
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

#include "train/dist/communicator.h"
#include "train/dist/mesh_sizes.h"
#include "train/dist/rank_device.h"
#include "train/dist/world.h"

namespace vmoba::train::dist {

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
  std::shared_ptr<Communicator> make_group(World& world, const std::vector<int>& ranks, const at::Device& device,
                                           double start_limit_s);

  MeshSizes sizes_;
  int batch_rank_ = 0, data_rank_ = 0;
  std::vector<std::shared_ptr<Communicator>> control_;  // MPI groups beneath the NCCL ones
  std::shared_ptr<Communicator> everyone_, state_, replicas_, sequence_;
};

// One line that says where this rank runs and what its part is; nothing for one rank.
void log_rank(const World& world, const Mesh& mesh, const BatchShare& share, const at::Device& device);

}  // namespace vmoba::train::dist
