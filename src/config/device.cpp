#include "config/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "core/check.h"

namespace vmoba {
namespace {

// The allocator's segments grow instead of lying beside each other: passes of many sizes leave no gaps that none of
// them fits into. Who sets the allocator by its variables of the environment decides alone.
void grow_segments() {
  for (const char* name : {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"})
    if (std::getenv(name) != nullptr) return;
  c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
}

}  // namespace

at::Device prepare_device(const RunConfig& config, int local_ranks) {
  const int allowed = int(std::max(1u, std::thread::hardware_concurrency()));
  const bool bound = allowed < int(::sysconf(_SC_NPROCESSORS_ONLN));
  at::set_num_threads(config.threads > 0 ? int(config.threads) : std::max(1, bound ? allowed : allowed / local_ranks));
  const bool has_cuda = at::hasCUDA();
  VMOBA_CHECK_INPUT(config.device != "cuda" || has_cuda,
                    "run.device: expected a CUDA GPU, found none; set run.device=cpu or check the driver (nvidia-smi)");
  if (config.device == "cpu" || !has_cuda) return at::Device(at::kCPU);
  at::globalContext().setDeterministicAlgorithms(config.deterministic, /*warn_only=*/true);
  grow_segments();
  return at::Device(at::kCUDA, 0);
}

std::string device_text(const at::Device& device) {
  if (!device.is_cuda()) return fmt::format("cpu, {} threads", at::get_num_threads());
  // "NVRM version: NVIDIA UNIX ... Kernel Module  580.65.06  Release ..."
  std::ifstream file("/proc/driver/nvidia/version");
  std::string driver, word;
  while (driver.empty() && file >> word)
    if (word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos)
      driver = word;
  const long cuda = at::detail::getCUDAHooks().versionCUDART();
  return fmt::format("{}, {}, driver {}, CUDA {}.{}", device.str(), at::cuda::getDeviceProperties(device.index())->name,
                     driver.empty() ? "unknown" : driver, cuda / 1000, cuda % 1000 / 10);
}

void limit_gpu_memory(const RunConfig& config, const at::Device& device) {
  if (config.gpu_memory_gib == 0 || !device.is_cuda()) return;
  at::globalContext().lazyInitDevice(at::kCUDA);
  const auto total = double(at::cuda::getDeviceProperties(device.index())->totalGlobalMem);
  const double share = config.gpu_memory_gib * double(1 << 30) / total;
  c10::cuda::CUDACachingAllocator::setMemoryFraction(std::min(1.0, share), device.index());
}

int64_t device_memory_bytes(const at::Device& device) {
  if (!device.is_cuda()) return 0;
  at::globalContext().lazyInitDevice(at::kCUDA);
  const auto total = double(at::cuda::getDeviceProperties(device.index())->totalGlobalMem);
  return int64_t(total * c10::cuda::CUDACachingAllocator::getMemoryFraction(device.index()));
}

int64_t memory_in_use_bytes(const at::Device& device) {
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    return stats.allocated_bytes[size_t(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  }
  std::ifstream statm("/proc/self/statm");
  int64_t total_pages = 0, resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * int64_t(::sysconf(_SC_PAGESIZE));
}

}  // namespace vmoba
