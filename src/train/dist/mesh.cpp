#include "train/dist/mesh.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/cuda/CUDAContextLight.h>

#include <unistd.h>

#include <numeric>

#include "core/check.h"
#include "core/log.h"
#include "train/dist/nccl_communicator.h"

namespace vmoba::train::dist {
namespace {

std::vector<int> ranks_from(int first, int count, int stride) {
  std::vector<int> out;
  for (int i = 0; i < count; ++i) out.push_back(first + i * stride);
  return out;
}

std::string gpu_id(const at::Device& device) {
  const cudaDeviceProp* gpu = at::cuda::getDeviceProperties(device.index());
  std::string out;
  for (const char byte : gpu->uuid.bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return out;
}

}  // namespace

Mesh::Mesh(World& world, const ParallelConfig& config, const at::Device& device)
    : sizes_(mesh_sizes(config, world.size())) {
  const int rank = world.rank(), state = sizes_.state_ranks();
  batch_rank_ = rank / sizes_.sequence;
  data_rank_ = rank / state;
  if (device.is_cuda() && world.size() > 1)
    check_distinct_gpus(world.hosts(), all_gather_text(world.control(), gpu_id(device)));
  everyone_ = make_group(world, ranks_from(0, world.size(), 1), device, config.start_timeout_s);
  state_ = make_group(world, ranks_from(data_rank_ * state, state, 1), device, config.start_timeout_s);
  replicas_ = make_group(world, ranks_from(rank % state, sizes_.data, state), device, config.start_timeout_s);
  sequence_ =
      make_group(world, ranks_from(batch_rank_ * sizes_.sequence, sizes_.sequence, 1), device, config.start_timeout_s);
}

std::shared_ptr<Communicator> Mesh::make_group(World& world, const std::vector<int>& ranks, const at::Device& device,
                                               double start_limit_s) {
  // A collective call even for groups of one: other ranks' groups may have the same shape.
  std::shared_ptr<Communicator> group = world.make_group(ranks);
  if (ranks.size() == 1) return make_single_communicator();
  if (!device.is_cuda()) return group;
  control_.push_back(group);
  return make_nccl_communicator(*group, device, world.device_watch(), ranks, start_limit_s);
}

void log_rank(const World& world, const Mesh& mesh, const BatchShare& share, const at::Device& device) {
  if (world.size() == 1) return;
  const std::string gpu =
      device.is_cuda() ? fmt::format(" ({})", at::cuda::getDeviceProperties(device.index())->name) : "";
  log_info(
      "rank {} of {} ({}) on {}, pid {}, number {} of {} there: {}{}, {} CPU threads; copy {} of {}, samples of part "
      "{} of {}: {} passes of {} per step",
      world.rank(), world.size(), world.launcher(), world.host(world.rank()), ::getpid(), world.local_rank(),
      world.local_size(), device.str(), gpu, at::get_num_threads(), mesh.data_rank(), mesh.sizes().data,
      mesh.batch_rank(), mesh.sizes().batch_ranks(), share.passes, share.micro);
}

}  // namespace vmoba::train::dist
