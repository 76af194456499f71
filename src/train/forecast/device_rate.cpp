#include "train/forecast/device_rate.h"

#include <ATen/cuda/CUDAContext.h>

namespace vmoba::train {
namespace {

struct Rate {
  const char* part;  // of the name; the first that fits counts
  double teraflops;
};
// PCIe and NVL cards before their namesakes.
constexpr Rate kRates[] = {{"B200", 2250},      {"H200 NVL", 835},  {"H200", 989},        {"GH200", 989},
                           {"H100 NVL", 835},   {"H100 PCIe", 756}, {"H100", 989},        {"H800", 989},
                           {"A100", 312},       {"A800", 312},      {"L40S", 362},        {"RTX 5090", 209.5},
                           {"RTX 4090", 165.2}, {"RTX 3090", 71},   {"RTX A6000", 154.8}, {"RTX 6000 Ada", 364.2}};

constexpr double kProducts = 0.78, kAttention = 0.56;
constexpr double kAttentionBackward = 3.5 / 3;  // of what step_flops counts

}  // namespace

double peak_flops_per_s(const std::string& gpu_name) {
  for (const Rate& rate : kRates)
    if (gpu_name.find(rate.part) != std::string::npos) return rate.teraflops * 1e12;
  return 0;
}

double peak_flops_per_s(at::Device device) {
  if (!device.is_cuda()) return 0;
  return peak_flops_per_s(std::string(at::cuda::getDeviceProperties(device.index())->name));
}

double least_seconds(const SampleWork& work, double density, double peak) {
  if (peak == 0) return 0;
  return work.products / (kProducts * peak) + kAttentionBackward * work.attention(density) / (kAttention * peak);
}

}  // namespace vmoba::train
