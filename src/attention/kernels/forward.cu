// Forward of the attention stage: argument checks, the division of the workspace, and the sequence of launches
// plan -> (attend a wave of heads -> combine it) x waves, all asynchronous on the caller's stream.
#include "attention/kernels/arguments.cuh"
#include "attention/kernels/schedule.cuh"
#include "attention/kernels/workspace.cuh"

namespace vmoba::kernels {
namespace {

bool arguments_valid(const ForwardArgs& a) {
  for (const TensorView* view : {&a.q, &a.k_blocks, &a.v_blocks, &a.out}) {
    if (!view_valid(*view)) return false;
  }
  return attend_shape_valid(a.shape) && lists_valid(a.lists, a.shape) && masks_valid(a.lists) &&
         partition_valid(a.partition, a.shape) && a.partition.token_of != nullptr && a.lse != nullptr &&
         workspace_valid(a.workspace) && a.partial_slots >= slots_per_head_capacity(a.shape) && scale_valid(a.scale);
}

int64_t carve(const Shape& shape, int64_t partial_slots, void* workspace, ForwardProblem* problem) {
  Workspace pieces(workspace);
  const int64_t slots = partial_slots / kTileRows * kTileRows;
  const int64_t heads = int64_t(shape.batch) * shape.heads;
  const int64_t waves = forward_waves(shape, partial_slots);
  problem->partial = pieces.take<__nv_bfloat16>(slots * shape.head_dim);
  problem->partial_lse2 = pieces.take<float>(slots);
  problem->plan.tiles_before = pieces.take<int32_t>(heads + 1);
  problem->plan.wave_first = pieces.take<int32_t>(waves + 1);
  problem->plan.next_tile = pieces.take<int32_t>(waves);
  return pieces.bytes();
}

ForwardProblem problem_of(const ForwardArgs& args) {
  ForwardProblem problem;
  problem.shape = args.shape;
  problem.block_count = args.shape.block_count();
  problem.tokens = args.shape.tokens();
  problem.mask_words = args.shape.mask_words();
  problem.lists = args.lists;
  problem.partition = args.partition;
  problem.q = args.q;
  problem.k_blocks = args.k_blocks;
  problem.v_blocks = args.v_blocks;
  problem.out = args.out;
  problem.lse = args.lse;
  problem.scale = args.scale;
  carve(args.shape, args.partial_slots, args.workspace, &problem);
  return problem;
}

cudaError_t attend_wave(const ForwardProblem& problem, int family, int wave, int sm_count, cudaStream_t stream) {
  if (family != 90) return attend_wave_sm80(problem, wave, sm_count, stream);
  return problem.shape.head_dim == 128 ? attend_wave_sm90_d128(problem, wave, sm_count, stream)
                                       : attend_wave_sm90_d64(problem, wave, sm_count, stream);
}

}  // namespace

int64_t forward_workspace_bytes(const Shape& shape, int64_t partial_slots) {
  if (!attend_shape_valid(shape) || partial_slots < slots_per_head_capacity(shape)) return 0;
  ForwardProblem unused;
  return carve(shape, partial_slots, nullptr, &unused);
}

cudaError_t forward(const ForwardArgs& args, cudaStream_t stream) {
  if (!arguments_valid(args)) return cudaErrorInvalidValue;
  int device = 0, sm_count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int family = kernel_family(device, args.family);
  if (family == 0) return cudaErrorNotSupported;

  const ForwardProblem problem = problem_of(args);
  const int waves = forward_waves(args.shape, args.partial_slots);
  error = plan_forward(problem, waves, args.partial_slots, stream);
  for (int wave = 0; wave < waves && error == cudaSuccess; ++wave) {
    error = attend_wave(problem, family, wave, sm_count, stream);
    if (error == cudaSuccess) error = combine_wave(problem, wave, sm_count, stream);
  }
  return error;
}

}  // namespace vmoba::kernels
