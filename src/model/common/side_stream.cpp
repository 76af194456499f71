#include "model/common/side_stream.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::model {

SideStream::SideStream(at::Device device) : device_(device) {
  if (!device.is_cuda()) return;
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, /*isHighPriority=*/true);
}

SideStream::~SideStream() {
  try {
    if (stream_) c10::impl::VirtualGuardImpl(device_.type()).synchronizeStream(*stream_);
  } catch (const c10::Error&) {  // of a device that has failed: who computed there says so
  }
}

void SideStream::follow_current() {
  if (!stream_) return;
  c10::Event event(device_.type());
  event.record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  event.block(*stream_);
}

void SideStream::copy(const at::Tensor& from, const at::Tensor& to) {
  const at::NoGradGuard no_grad;
  std::optional<c10::StreamGuard> guard;
  if (stream_) guard.emplace(*stream_);
  to.copy_(from, /*non_blocking=*/true);
}

SideStream::Mark SideStream::mark() const {
  if (!stream_) return nullptr;
  Mark out = std::make_shared<c10::Event>(device_.type());
  out->record(*stream_);
  return out;
}

void SideStream::hold_current(const Mark& mark) const {
  if (mark) mark->block(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

at::Tensor host_tensor(at::IntArrayRef shape, at::ScalarType dtype, at::Device device) {
  if (!device.is_cuda()) return at::empty(shape, dtype);
  const int64_t bytes = std::max<int64_t>(1, c10::multiply_integers(shape)) * int64_t(c10::elementSize(dtype));
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, size_t(bytes), cudaHostAllocPortable);
  VMOBA_CHECK(error == cudaSuccess,
              "expected {:.2f} GiB more of page-locked host memory for model.offload, found: {}; offload less, or give "
              "the run more memory (Slurm: --mem; containers: the limit of locked memory)",
              double(bytes) / double(1 << 30), cudaGetErrorString(error));
  return at::from_blob(
      memory, shape, [](void* held) { cudaFreeHost(held); }, at::TensorOptions(dtype));
}

}  // namespace vmoba::model
