// Which GPU is whose.
#pragma once
#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "train/dist/world.h"

namespace vmoba::train::dist {

// The GPU of this rank, or the CPU. Makes the GPU this thread's current one, so that nothing (page-locked memory, a
// library's handle) is made on another rank's. Throws Error(kInput) where a host has more ranks than GPUs.
at::Device device_of_rank(const at::Device& device, const World& world);

// Throws Error(kInput) where two ranks of a host have the same GPU, which NCCL would hang or fail on with a worse
// message. Both by rank; `gpus`: what tells the GPUs of a host apart.
void check_distinct_gpus(const std::vector<std::string>& hosts, const std::vector<std::string>& gpus);

}  // namespace vmoba::train::dist
