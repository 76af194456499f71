// Backward of the attention stage: argument checks, the division of the workspace, and the sequence of launches, all
// asynchronous on the caller's stream.
#include "attention/kernels/arguments.cuh"
#include "attention/kernels/backward.cuh"
#include "attention/kernels/workspace.cuh"

namespace vmoba::kernels {
namespace {

constexpr int64_t kMaxRows = INT32_MAX;  // row numbers over all (b, n) are kept in 32 bits

bool backward_shape_valid(const Shape& s) {
  return attend_shape_valid(s) && s.first_word == 0 && s.row_words == 0 &&
         int64_t(s.batch) * s.heads * (int64_t(s.video_tokens) + s.text_tokens + 1) <= kMaxRows;
}

bool arguments_valid(const BackwardArgs& a) {
  for (const TensorView* view : {&a.q, &a.out, &a.dout, &a.k_blocks, &a.v_blocks, &a.dq, &a.dk, &a.dv}) {
    if (!view_valid(*view)) return false;
  }
  return backward_shape_valid(a.shape) && lists_valid(a.lists, a.shape) && partition_valid(a.partition, a.shape) &&
         a.lse != nullptr && workspace_valid(a.workspace) && scale_valid(a.scale);
}

int64_t carve(const Shape& shape, bool deterministic, void* workspace, BackwardProblem* problem) {
  Workspace pieces(workspace);
  const int64_t heads = int64_t(shape.batch) * shape.heads;
  const int64_t rows = heads * shape.tokens();
  problem->next_item = pieces.take<int32_t>(1);
  problem->item_count = pieces.take<int32_t>(1);
  problem->items = pieces.take<KeyTile>(work_item_limit(shape));
  problem->split_sums = pieces.take<float>(int64_t(kSplitTiles) * kSplitParts * kBackwardKeys * 2 * shape.head_dim);
  problem->split_done = pieces.take<int32_t>(kSplitTiles * 2);
  problem->stats = pieces.take<RowStats>(rows + heads);
  if (deterministic) {
    problem->dq_sum = pieces.take<int64_t>(rows * shape.head_dim);
    problem->dq_factor = pieces.take<float>(rows);
    problem->bounds = pieces.take<uint32_t>(heads * 2);
  } else {
    problem->dq_sum = pieces.take<float>(rows * shape.head_dim);
  }
  return pieces.bytes();
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
  carve(args.shape, args.deterministic, args.workspace, &problem);
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
  return backward_shape_valid(shape) ? carve(shape, deterministic, nullptr, &unused) : 0;
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
