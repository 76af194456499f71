#include "train/host_numbers.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

namespace vmoba::train {

HostNumbers::HostNumbers(const at::Tensor& values) {
  if (!values.is_cuda()) {
    host_ = values;
    return;
  }
  host_ = at::empty(values.sizes(), values.options().device(at::kCPU).pinned_memory(true));
  host_.copy_(values, /*non_blocking=*/true);
  copied_.record(c10::cuda::getCurrentCUDAStream(values.device().index()));
}

const at::Tensor& HostNumbers::wait() {
  if (copied_.isCreated()) copied_.synchronize();
  return host_;
}

}  // namespace vmoba::train
