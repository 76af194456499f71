#include "train/dist/nccl_communicator.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <cstring>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

void check_nccl(ncclResult_t result, const char* call) {
  VMOBA_CHECK(result == ncclSuccess || result == ncclInProgress,
              "expected {} to succeed, found: {} ({}); NCCL_DEBUG=INFO says more", call, ncclGetErrorString(result),
              ncclGetLastError(nullptr));
}

ncclDataType_t nccl_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kLong:
      return ncclInt64;
    case at::kByte:
      return ncclUint8;
    default:
      throw_runtime("expected fp32, fp64, bf16, int64 or bytes for NCCL, found {}", c10::toString(dtype));
  }
}

// Of high priority, so that communication starts between the kernels that compute.
const c10::cuda::CUDAStream& side_stream(const at::Device& device) {
  static const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index());
  return stream;
}

struct NcclWork final : Work {
  explicit NcclWork(std::vector<at::Tensor> kept) : tensors(std::move(kept)) {}
  void wait() override { finished.block(c10::cuda::getCurrentCUDAStream(tensors.front().device().index())); }
  std::vector<at::Tensor> tensors;
  at::cuda::CUDAEvent finished;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& control, const at::Device& device) : device_(device), rank_(control.rank()) {
    const c10::cuda::CUDAGuard guard(device_);
    size_ = control.size();
    const at::Tensor id = at::zeros({NCCL_UNIQUE_ID_BYTES}, at::kByte);
    ncclUniqueId unique{};
    if (rank_ == 0) check_nccl(ncclGetUniqueId(&unique), "ncclGetUniqueId");
    std::memcpy(id.mutable_data_ptr(), unique.internal, NCCL_UNIQUE_ID_BYTES);
    control.broadcast(id, 0)->wait();
    std::memcpy(unique.internal, id.const_data_ptr(), NCCL_UNIQUE_ID_BYTES);
    check_nccl(ncclCommInitRank(&group_, size_, unique, rank_), "ncclCommInitRank");
  }
  // Not destroyed: at the end of a process that failed this would wait for ranks that are gone.
  ~NcclCommunicator() override = default;

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  WorkPtr all_reduce(const at::Tensor& values) override {
    check_exchange("all_reduce", values, 1, values, 1);
    return launch("ncclAllReduce", {values}, [&](cudaStream_t stream) {
      return ncclAllReduce(values.const_data_ptr(), values.mutable_data_ptr(), size_t(values.numel()),
                           nccl_type(values.scalar_type()), ncclSum, group_, stream);
    });
  }
  WorkPtr reduce_scatter(const at::Tensor& in, const at::Tensor& out) override {
    check_exchange("reduce_scatter", in, size_, out, 1);
    return launch("ncclReduceScatter", {in, out}, [&](cudaStream_t stream) {
      return ncclReduceScatter(in.const_data_ptr(), out.mutable_data_ptr(), size_t(out.numel()),
                               nccl_type(in.scalar_type()), ncclSum, group_, stream);
    });
  }
  WorkPtr all_gather(const at::Tensor& in, const at::Tensor& out) override {
    check_exchange("all_gather", in, 1, out, size_);
    return launch("ncclAllGather", {in, out}, [&](cudaStream_t stream) {
      return ncclAllGather(in.const_data_ptr(), out.mutable_data_ptr(), size_t(in.numel()), nccl_type(in.scalar_type()),
                           group_, stream);
    });
  }
  WorkPtr all_to_all(const at::Tensor& in, const at::Tensor& out) override {
    check_exchange("all_to_all", in, size_, out, size_);
    return launch("ncclAlltoAll", {in, out}, [&](cudaStream_t stream) {
      return ncclAlltoAll(in.const_data_ptr(), out.mutable_data_ptr(), size_t(in.numel() / size_),
                          nccl_type(in.scalar_type()), group_, stream);
    });
  }
  WorkPtr broadcast(const at::Tensor& values, int root) override {
    check_exchange("broadcast", values, 1, values, 1);
    return launch("ncclBroadcast", {values}, [&](cudaStream_t stream) {
      return ncclBroadcast(values.const_data_ptr(), values.mutable_data_ptr(), size_t(values.numel()),
                           nccl_type(values.scalar_type()), root, group_, stream);
    });
  }

 private:
  template <typename Call>
  WorkPtr launch(const char* name, std::vector<at::Tensor> tensors, Call call) {
    VMOBA_CHECK(tensors.front().device() == device_, "{}: expected tensors on {}, found {}", name, device_.str(),
                tensors.front().device().str());
    const c10::cuda::CUDAGuard guard(device_);
    const c10::cuda::CUDAStream& side = side_stream(device_);
    at::cuda::CUDAEvent ready;
    ready.record(c10::cuda::getCurrentCUDAStream(device_.index()));
    ready.block(side);
    // The allocator must not give the memory away before the side stream is done with it.
    for (const at::Tensor& tensor : tensors)
      c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(), side);
    check_nccl(call(side.stream()), name);
    auto work = std::make_shared<NcclWork>(std::move(tensors));
    work->finished.record(side);
    return work;
  }

  at::Device device_;
  int rank_ = 0, size_ = 1;
  ncclComm_t group_ = nullptr;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const at::Device& device) {
  return std::make_unique<NcclCommunicator>(control, device);
}

}  // namespace vmoba::train::dist
