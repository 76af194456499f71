// Numbers on their way from the device to the host, while the device goes on.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAEvent.h>

namespace vmoba::train {

class HostNumbers {
 public:
  HostNumbers() = default;
  // Begins to copy `values` (any device) behind what the current stream has been given; work that is launched later
  // does not hold it up.
  explicit HostNumbers(const at::Tensor& values);
  // Waits for the copy. The values on the host.
  const at::Tensor& wait();

 private:
  at::Tensor host_;
  at::cuda::CUDAEvent copied_;
};

}  // namespace vmoba::train
