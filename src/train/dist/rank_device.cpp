#include "train/dist/rank_device.h"

#include <c10/cuda/CUDAFunctions.h>

#include <map>

#include "core/check.h"

namespace vmoba::train::dist {

at::Device device_of_rank(const at::Device& device, const World& world) {
  if (!device.is_cuda()) return device;
  const int count = int(c10::cuda::device_count());
  // Where the launcher shows each rank a GPU of its own (Slurm's --gpus-per-task), that is number 0.
  VMOBA_CHECK_INPUT(count == 1 || world.local_rank() < count,
                    "expected a GPU for each of the {} ranks on {}, found {}; start at most {} ranks per host",
                    world.local_size(), world.host(world.rank()), count, count);
  const auto index = c10::DeviceIndex(count == 1 ? 0 : world.local_rank());
  c10::cuda::set_device(index);
  return at::Device(at::kCUDA, index);
}

void check_distinct_gpus(const std::vector<std::string>& hosts, const std::vector<std::string>& gpus) {
  std::map<std::pair<std::string, std::string>, size_t> owners;
  for (size_t rank = 0; rank < gpus.size(); ++rank) {
    const auto [owner, fresh] = owners.emplace(std::pair(hosts[rank], gpus[rank]), rank);
    VMOBA_CHECK_INPUT(fresh,
                      "expected a GPU of its own for every rank, found ranks {} and {} on {} with the same one ({}); "
                      "start one rank per GPU, let every rank see all GPUs of its host, or give each its own "
                      "(--gpus-per-task=1)",
                      owner->second, rank, hosts[rank], gpus[rank]);
  }
}

}  // namespace vmoba::train::dist
