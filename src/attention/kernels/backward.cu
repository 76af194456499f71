// Backward of the attention stage: argument checks, the division of the workspace, and the sequence of launches, all
// asynchronous on the caller's stream.
#include <cmath>

#include "attention/kernels/backward.cuh"

namespace vmoba::kernels {
namespace {

constexpr int64_t kWorkspaceAlign = 256;
constexpr int64_t kMaxRows = INT32_MAX;  // row numbers over all (b, n) are kept in 32 bits

bool shape_valid(const Shape& s) {
  return s.batch > 0 && s.heads > 0 && s.video_tokens > 0 && s.text_tokens >= 0 && s.blocks > 0 &&
         s.blocks <= s.video_tokens && (s.head_dim == 64 || s.head_dim == 128) &&
         int64_t(s.batch) * s.heads * (int64_t(s.video_tokens) + s.text_tokens + 1) <= kMaxRows;
}

// TMA and 16-byte accesses want rows that start at multiples of 8 elements; the gather multiplies 32-bit token numbers
// with 32-bit byte strides.
bool view_valid(const TensorView& view) {
  return view.data != nullptr && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch_stride % 8 == 0 &&
         view.token_stride % 8 == 0 && view.head_stride % 8 == 0 && view.batch_stride >= 0 && view.token_stride >= 0 &&
         view.token_stride < INT32_MAX / 2 && view.head_stride >= 0;
}

bool lists_valid(const SlotLists& lists) {
  return lists.length != nullptr && lists.start != nullptr && lists.row != nullptr &&
         reinterpret_cast<uintptr_t>(lists.row) % 16 == 0 && lists.row_stride > 0 && lists.row_stride % kSlotAlign == 0;
}

bool partition_valid(const PartitionView& partition) {
  return partition.block_start != nullptr && (partition.identity || partition.token_of != nullptr);
}

bool arguments_valid(const BackwardArgs& a) {
  for (const TensorView* view : {&a.q, &a.out, &a.dout, &a.k_blocks, &a.v_blocks, &a.dq, &a.dk, &a.dv}) {
    if (!view_valid(*view)) return false;
  }
  return shape_valid(a.shape) && lists_valid(a.lists) && partition_valid(a.partition) && a.lse != nullptr &&
         a.workspace != nullptr && reinterpret_cast<uintptr_t>(a.workspace) % kWorkspaceAlign == 0 && a.scale > 0 &&
         std::isfinite(a.scale);
}

// Hands out consecutive aligned pieces; with a null base it only counts.
class Divider {
 public:
  explicit Divider(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * int64_t(sizeof(T)) + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

int64_t divide_workspace(const Shape& shape, bool deterministic, void* workspace, BackwardProblem* problem) {
  Divider divider(workspace);
  const int64_t heads = int64_t(shape.batch) * shape.heads;
  const int64_t rows = heads * shape.tokens();
  problem->next_item = divider.take<int32_t>(1);
  problem->item_count = divider.take<int32_t>(1);
  problem->items = divider.take<KeyTile>(work_item_limit(shape));
  problem->split_sums = divider.take<float>(int64_t(kSplitTiles) * kSplitParts * kBackwardKeys * 2 * shape.head_dim);
  problem->split_done = divider.take<int32_t>(kSplitTiles * 2);
  problem->stats = divider.take<RowStats>(rows + heads);
  if (deterministic) {
    problem->dq_sum = divider.take<int64_t>(rows * shape.head_dim);
    problem->dq_factor = divider.take<float>(rows);
    problem->bounds = divider.take<uint32_t>(heads * 2);
  } else {
    problem->dq_sum = divider.take<float>(rows * shape.head_dim);
  }
  return divider.bytes();
}

BackwardProblem problem_of(const BackwardArgs& args) {
  BackwardProblem problem;
  problem.shape = args.shape;
  problem.tokens = args.shape.tokens();
  problem.block_count = args.shape.block_count();
  problem.lists = args.lists;
  problem.partition = args.partition;
  problem.q = args.q;
  problem.out = args.out;
  problem.dout = args.dout;
  problem.k_blocks = args.k_blocks;
  problem.v_blocks = args.v_blocks;
  problem.dq = args.dq;
  problem.dk = args.dk;
  problem.dv = args.dv;
  problem.lse = args.lse;
  problem.scale = args.scale;
  problem.score_scale = args.scale * 1.4426950408889634f;
  problem.deterministic = args.deterministic;
  problem.q_row_bytes = uint32_t(args.q.token_stride * 2);
  problem.dout_row_bytes = uint32_t(args.dout.token_stride * 2);
  divide_workspace(args.shape, args.deterministic, args.workspace, &problem);
  return problem;
}

cudaError_t backward_main(const BackwardProblem& problem, int family, int sm_count, cudaStream_t stream) {
  if (family != 90) return backward_main_sm80(problem, sm_count, stream);
  return problem.shape.head_dim == 128 ? backward_main_sm90_d128(problem, sm_count, stream)
                                       : backward_main_sm90_d64(problem, sm_count, stream);
}

}  // namespace

int64_t backward_workspace_bytes(const Shape& shape, bool deterministic) {
  BackwardProblem unused;
  return shape_valid(shape) ? divide_workspace(shape, deterministic, nullptr, &unused) : 0;
}

cudaError_t backward(const BackwardArgs& args, cudaStream_t stream) {
  if (!arguments_valid(args)) return cudaErrorInvalidValue;
  int device = 0, sm_count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int family = kernel_family(device, args.family);
  if (family == 0) return cudaErrorNotSupported;

  BackwardProblem problem = problem_of(args);
  problem.split = family == 90;
  error = schedule_backward(problem, stream);
  if (error == cudaSuccess && problem.deterministic) error = bound_backward(problem, stream);
  if (error == cudaSuccess) error = prepare_backward(problem, stream);
  if (error == cudaSuccess) error = backward_main(problem, family, sm_count, stream);
  if (error == cudaSuccess) error = finish_backward(problem, stream);
  return error;
}

}  // namespace vmoba::kernels
