#include "train/dist/nccl_communicator.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/ranges.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

// Longer than the watch waits, which names who is missing.
constexpr double kTakeUpLimit_s = 2 * 3600;

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

// Apart from the tensors, which must not live until the next poll.
struct Events {
  at::cuda::CUDAEvent ready, finished;
  std::atomic<bool> taken_up{false};  // `finished` is recorded
};

class NcclWork final : public Work {
 public:
  NcclWork(std::vector<at::Tensor> tensors, std::shared_ptr<Events> events, const c10::cuda::CUDAStream& submitter,
           const c10::cuda::CUDAStream& side)
      : tensors_(std::move(tensors)), events_(std::move(events)), submitter_(submitter), side_(side) {}
  ~NcclWork() override { let_go(/*ordered=*/false); }
  NcclWork(const NcclWork&) = delete;
  NcclWork& operator=(const NcclWork&) = delete;

  void wait() override {
    const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream(side_.device_index());
    events_->finished.block(current);
    let_go(current == submitter_);
  }

 private:
  // Memory that is freed behind a stream's wait is used again behind it, on this stream. Otherwise the allocator must
  // ask the side stream first, which holds the memory back for as long as the host runs ahead of the GPU.
  void let_go(bool ordered) {
    if (!ordered)
      for (const at::Tensor& tensor : tensors_)
        c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(), side_);
    tensors_.clear();
  }

  std::vector<at::Tensor> tensors_;
  std::shared_ptr<Events> events_;
  c10::cuda::CUDAStream submitter_, side_;
};

bool passed(const at::cuda::CUDAEvent& event, const at::Device& device) {
  const c10::cuda::CUDAGuard guard(device);
  return event.query();
}

// NCCL's group. Its calls must not overlap: the thread that submits and the one that watches take turns.
class Group {
 public:
  // `call(ncclComm_t)` returns an ncclResult_t.
  template <typename Call>
  ncclResult_t run(Call call) {
    const std::lock_guard lock(turn_);
    VMOBA_CHECK(!aborted_, "expected a group of NCCL that works, found that it was aborted");
    return call(comm_);
  }
  // What a call that was only taken up has come to.
  ncclResult_t state() {
    return run([this](ncclComm_t) { return ask(); });
  }
  // For the watch: what went wrong, or "".
  std::string error() {
    const std::unique_lock lock(turn_, std::try_to_lock);
    if (!lock || aborted_) return "";  // asked again soon
    const ncclResult_t found = ask();
    if (found == ncclSuccess || found == ncclInProgress) return "";
    return fmt::format("NCCL: {} ({}); NCCL_DEBUG=INFO says more", ncclGetErrorString(found), ncclGetLastError(comm_));
  }
  void abort() {
    // Out of turn where a call does not return: this frees it.
    const std::unique_lock lock(turn_, std::chrono::seconds(1));
    if (!aborted_.exchange(true)) ncclCommAbort(comm_);
  }
  ncclComm_t* address() { return &comm_; }

 private:
  // In turn: the state, or why it cannot be told.
  ncclResult_t ask() const {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    return asked != ncclSuccess ? asked : state;
  }

  std::timed_mutex turn_;
  std::atomic<bool> aborted_{false};
  ncclComm_t comm_ = nullptr;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& control, const at::Device& device, OperationWatch& watch, std::vector<int> world_ranks,
                   double start_limit_s)
      : device_(device),
        // Of high priority, so that communication starts between the kernels that compute.
        side_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index())),
        rank_(control.rank()),
        size_(control.size()),
        watch_(watch),
        world_ranks_(std::move(world_ranks)) {
    const c10::cuda::CUDAGuard guard(device_);
    const at::Tensor id = at::zeros({NCCL_UNIQUE_ID_BYTES}, at::kByte);
    ncclUniqueId unique{};
    if (rank_ == 0) check_nccl(ncclGetUniqueId(&unique), "ncclGetUniqueId");
    std::memcpy(id.mutable_data_ptr(), unique.internal, NCCL_UNIQUE_ID_BYTES);
    control.broadcast(id, 0)->wait();
    std::memcpy(unique.internal, id.const_data_ptr(), NCCL_UNIQUE_ID_BYTES);
    barrier(control);  // a rank that does not come is named here
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    check_nccl(ncclCommInitRankConfig(group_->address(), size_, unique, rank_, &config), "ncclCommInitRankConfig");
    settle("ncclCommInitRankConfig", start_limit_s);
    number_ = watch_.add_group(
        world_ranks_, [group = group_] { return group->error(); }, [group = group_] { group->abort(); });
  }
  // The group itself is not destroyed: at the end of a process that failed this would wait for ranks that are gone.
  ~NcclCommunicator() override { watch_.forget_group(number_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  WorkPtr all_reduce(const at::Tensor& values) override {
    check_exchange("all_reduce", values, 1, values, 1);
    return launch("ncclAllReduce", {values}, [&](ncclComm_t group, cudaStream_t stream) {
      return ncclAllReduce(values.const_data_ptr(), values.mutable_data_ptr(), size_t(values.numel()),
                           nccl_type(values.scalar_type()), ncclSum, group, stream);
    });
  }
  WorkPtr reduce_scatter(const at::Tensor& in, const at::Tensor& out) override {
    check_exchange("reduce_scatter", in, size_, out, 1);
    return launch("ncclReduceScatter", {in, out}, [&](ncclComm_t group, cudaStream_t stream) {
      return ncclReduceScatter(in.const_data_ptr(), out.mutable_data_ptr(), size_t(out.numel()),
                               nccl_type(in.scalar_type()), ncclSum, group, stream);
    });
  }
  WorkPtr all_gather(const at::Tensor& in, const at::Tensor& out) override {
    check_exchange("all_gather", in, 1, out, size_);
    return launch("ncclAllGather", {in, out}, [&](ncclComm_t group, cudaStream_t stream) {
      return ncclAllGather(in.const_data_ptr(), out.mutable_data_ptr(), size_t(in.numel()), nccl_type(in.scalar_type()),
                           group, stream);
    });
  }
  WorkPtr all_to_all(const at::Tensor& in, const at::Tensor& out) override {
    check_exchange("all_to_all", in, size_, out, size_);
    return launch("ncclAlltoAll", {in, out}, [&](ncclComm_t group, cudaStream_t stream) {
      return ncclAlltoAll(in.const_data_ptr(), out.mutable_data_ptr(), size_t(in.numel() / size_),
                          nccl_type(in.scalar_type()), group, stream);
    });
  }
  WorkPtr broadcast(const at::Tensor& values, int root) override {
    check_exchange("broadcast", values, 1, values, 1);
    return launch("ncclBroadcast", {values}, [&](ncclComm_t group, cudaStream_t stream) {
      return ncclBroadcast(values.const_data_ptr(), values.mutable_data_ptr(), size_t(values.numel()),
                           nccl_type(values.scalar_type()), root, group, stream);
    });
  }

 private:
  template <typename Call>
  WorkPtr launch(const char* name, std::vector<at::Tensor> tensors, Call call) {
    VMOBA_CHECK(tensors.front().device() == device_, "{}: expected tensors on {}, found {}", name, device_.str(),
                tensors.front().device().str());
    const c10::cuda::CUDAGuard guard(device_);
    const c10::cuda::CUDAStream submitter = c10::cuda::getCurrentCUDAStream(device_.index());
    const auto events = std::make_shared<Events>();
    events->ready.record(submitter);
    events->ready.block(side_);
    // Watched from here: the first operations make connections and so wait for other ranks on the host already.
    watch_.submitted(
        number_,
        {fmt::format("{} of {} {} values", name, tensors.front().numel(), c10::toString(tensors.front().scalar_type())),
         [events, device = device_] { return passed(events->ready, device); },
         [events, device = device_] { return events->taken_up && passed(events->finished, device); }});
    const ncclResult_t result = group_->run([&](ncclComm_t group) { return call(group, side_.stream()); });
    check_nccl(result, name);
    if (result == ncclInProgress) settle(name, kTakeUpLimit_s);
    events->finished.record(side_);
    events->taken_up = true;
    return std::make_shared<NcclWork>(std::move(tensors), events, submitter, side_);
  }

  // A group that does not block only takes a call up: returns when it has done it.
  void settle(const char* call, double limit_s) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t polls = 0;; ++polls) {
      const ncclResult_t state = group_->state();
      check_nccl(state, call);
      if (state == ncclSuccess) return;
      if (std::chrono::steady_clock::now() - start > std::chrono::duration<double>(limit_s)) {
        group_->abort();
        throw_runtime(
            "expected {} over ranks {} to start within {:.0f} s, found it waiting; check the network between their "
            "hosts (NCCL_DEBUG=INFO prints more)",
            call, fmt::join(world_ranks_, ", "), limit_s);
      }
      if (polls < 200) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  at::Device device_;
  c10::cuda::CUDAStream side_;
  int rank_ = 0, size_ = 1;
  OperationWatch& watch_;
  std::vector<int> world_ranks_;
  int64_t number_ = -1;                                       // in the watch
  std::shared_ptr<Group> group_ = std::make_shared<Group>();  // the watch's too
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const at::Device& device,
                                                     OperationWatch& watch, std::vector<int> world_ranks,
                                                     double start_limit_s) {
  return std::make_unique<NcclCommunicator>(control, device, watch, std::move(world_ranks), start_limit_s);
}

}  // namespace vmoba::train::dist
