// Tensors on their way from the host to the model's device.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

// A CPU tensor on `device`. To a GPU it travels through page-locked memory and the call returns at once: a plain copy
// would wait until the GPU has done all that it was given before.
at::Tensor to_device(const at::Tensor& host, at::Device device);

}  // namespace vmoba::model
