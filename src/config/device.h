// Where a program computes.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "config/run_config.h"

namespace vmoba {

// The device named by run.device; "auto" takes CUDA where present. Also sets the number of CPU threads: all of this
// process's cores, or its share where the host's `local_ranks` ranks are not bound to cores of their own.
at::Device prepare_device(const RunConfig& config, int local_ranks = 1);

// "cuda:0, NVIDIA H200, driver 580.65.06, CUDA 13.0", "cpu, 16 threads".
std::string device_text(const at::Device& device);
// From now on tensors on this GPU take no more than run.gpu_memory_gib, where that is set.
void limit_gpu_memory(const RunConfig& config, const at::Device& device);
// Memory of a GPU, or what limit_gpu_memory() left of it; 0 for the CPU.
int64_t device_memory_bytes(const at::Device& device);

// Bytes in use: peak of the GPU allocator, or resident memory of the process.
int64_t memory_in_use_bytes(const at::Device& device);

}  // namespace vmoba
