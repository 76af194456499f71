// What a GPU's tensor cores do at best, and what good kernels reach of it.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "train/forecast/step_flops.h"

namespace vmoba::train {

// FLOPs per second in bf16 with fp32 sums and without sparsity, from the makers' data sheets by the GPU's name; 0 where
// it is not known.
double peak_flops_per_s(const std::string& gpu_name);
// The same of a device; 0 for a CPU.
double peak_flops_per_s(at::Device device);

// Seconds that a sample's training takes at the rates of the best kernels: matrix products at 78 % of the peak,
// attention (its backward at 2.5 times the forward) at 56 %. cuBLAS and FlashAttention reach these on an H200. 0 for a
// peak of 0.
double least_seconds(const SampleWork& work, double density, double peak_flops_per_s);

}  // namespace vmoba::train
