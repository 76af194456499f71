// Forward of the attention stage: argument checks, the division of the workspace, and the sequence of launches
// plan -> (attend a wave of heads -> combine it) x waves, all asynchronous on the caller's stream.
#include <algorithm>

#include "attention/kernels/schedule.cuh"

namespace vmoba::kernels {
namespace {

constexpr int64_t kWorkspaceAlign = 256;

int64_t aligned(int64_t bytes) {
  return (bytes + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
}

bool shape_valid(const Shape& s) {
  return s.batch > 0 && s.heads > 0 && s.video_tokens > 0 && s.text_tokens >= 0 && s.blocks > 0 &&
         s.blocks <= s.video_tokens && (s.head_dim == 64 || s.head_dim == 128);
}

// TMA and 16-byte loads: every row starts at a multiple of 8 elements.
bool view_valid(const TensorView& view) {
  return view.data != nullptr && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch_stride % 8 == 0 &&
         view.token_stride % 8 == 0 && view.head_stride % 8 == 0 && view.batch_stride >= 0 && view.token_stride >= 0 &&
         view.head_stride >= 0;
}

bool lists_valid(const SlotLists& lists) {
  return lists.mask != nullptr && lists.word_rank != nullptr && lists.length != nullptr && lists.start != nullptr &&
         lists.row != nullptr && lists.row_stride > 0;
}

bool partition_valid(const PartitionView& partition) {
  return partition.token_of != nullptr && partition.block_start != nullptr && partition.max_block_tokens > 0;
}

struct WorkspaceLayout {
  int64_t partial_lse2, tiles_before, wave_first, next_tile, bytes;  // the partial outputs come first
};

WorkspaceLayout lay_out(const Shape& shape, int64_t partial_slots) {
  const int64_t slots = partial_slots / kTileRows * kTileRows;
  const int64_t heads = int64_t(shape.batch) * shape.heads;
  const int64_t waves = forward_waves(shape, partial_slots);
  WorkspaceLayout layout;
  layout.partial_lse2 = aligned(slots * shape.head_dim * int64_t(sizeof(__nv_bfloat16)));
  layout.tiles_before = layout.partial_lse2 + aligned(slots * int64_t(sizeof(float)));
  layout.wave_first = layout.tiles_before + aligned((heads + 1) * int64_t(sizeof(int32_t)));
  layout.next_tile = layout.wave_first + aligned((waves + 1) * int64_t(sizeof(int32_t)));
  layout.bytes = layout.next_tile + aligned(waves * int64_t(sizeof(int32_t)));
  return layout;
}

ForwardProblem problem_of(const ForwardArgs& args) {
  const WorkspaceLayout layout = lay_out(args.shape, args.partial_slots);
  char* base = static_cast<char*>(args.workspace);
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
  problem.partial = reinterpret_cast<__nv_bfloat16*>(base);
  problem.partial_lse2 = reinterpret_cast<float*>(base + layout.partial_lse2);
  problem.plan.tiles_before = reinterpret_cast<int32_t*>(base + layout.tiles_before);
  problem.plan.wave_first = reinterpret_cast<int32_t*>(base + layout.wave_first);
  problem.plan.next_tile = reinterpret_cast<int32_t*>(base + layout.next_tile);
  return problem;
}

cudaError_t attend_wave(const ForwardProblem& problem, int family, int wave, int sm_count, cudaStream_t stream) {
  if (family != 90) return attend_wave_sm80(problem, wave, sm_count, stream);
  return problem.shape.head_dim == 128 ? attend_wave_sm90_d128(problem, wave, sm_count, stream)
                                       : attend_wave_sm90_d64(problem, wave, sm_count, stream);
}

}  // namespace

int64_t forward_workspace_bytes(const Shape& shape, int64_t partial_slots) {
  if (!shape_valid(shape) || partial_slots < slots_per_head_capacity(shape)) return 0;
  return lay_out(shape, partial_slots).bytes;
}

cudaError_t forward(const ForwardArgs& args, cudaStream_t stream) {
  if (!shape_valid(args.shape) || !view_valid(args.q) || !view_valid(args.k_blocks) || !view_valid(args.v_blocks) ||
      !view_valid(args.out) || !lists_valid(args.lists) || !partition_valid(args.partition) || args.lse == nullptr ||
      args.workspace == nullptr || reinterpret_cast<uintptr_t>(args.workspace) % kWorkspaceAlign != 0 ||
      args.partial_slots < slots_per_head_capacity(args.shape) || !(args.scale > 0)) {
    return cudaErrorInvalidValue;
  }
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
