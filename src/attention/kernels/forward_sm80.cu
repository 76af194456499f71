// Partial attention of one wave with mma.sync and cp.async, for sm_80 and its successors without kernels of their own.
//
// Persistent blocks of eight warps, 16 gathered query rows each, against 64 keys at a time in two stages; the ragged
// last key tile of a block comes first and is the only one masked. Shared memory tiles and the partial outputs are the
// swizzled panels of hopper.cuh (forward_sm90.cuh writes the same image). Asynchronous on the launch's stream.
#include "attention/kernels/products_sm80.cuh"
#include "attention/kernels/schedule.cuh"

namespace vmoba::kernels {
namespace {

using namespace ampere;

constexpr int kThreads = 256;
constexpr int kStages = 2;

template <int HeadDim>
struct SharedTiles {
  alignas(1024) char query[kTileRows * HeadDim * 2];
  char key[kStages][kKeyTile * HeadDim * 2];
  char value[kStages][kKeyTile * HeadDim * 2];
  WorkItem item;
};

__device__ __forceinline__ const __nv_bfloat16* head_base(const TensorView& view, int head, int heads) {
  return static_cast<const __nv_bfloat16*>(view.data) + head / heads * view.batch_stride +
         head % heads * view.head_stride;
}

template <int HeadDim>
__device__ __forceinline__ void gather_queries(const ForwardProblem& problem, const WorkItem& item, uint32_t tile) {
  constexpr int kChunks = HeadDim / 8;
  const __nv_bfloat16* base = head_base(problem.q, item.head, problem.shape.heads);
  const int32_t* rows = problem.lists.row + item.head * problem.lists.row_stride + int64_t(item.row_tile) * kTileRows;
  for (int i = threadIdx.x; i < kTileRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    hopper::cp_async_16(tile + tile_offset<kTileRows>(row, chunk),
                        base + rows[row] * problem.q.token_stride + chunk * 8);
  }
}

// Keys past the block's end repeat its last one; the mask drops them.
template <int HeadDim>
__device__ __forceinline__ void load_keys(const TensorView& view, const WorkItem& item, int heads, int first_key,
                                          uint32_t tile) {
  constexpr int kChunks = HeadDim / 8;
  const __nv_bfloat16* base = head_base(view, item.head, heads);
  for (int i = threadIdx.x; i < kKeyTile * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t key = item.key_start + min(first_key + row, item.keys - 1);
    hopper::cp_async_16(tile + tile_offset<kKeyTile>(row, chunk), base + key * view.token_stride + chunk * 8);
  }
}

template <int HeadDim>
__device__ __forceinline__ void write_partial(const ForwardProblem& problem, const WorkItem& item,
                                              const WarpRows<HeadDim>& rows, float scale_log2) {
  const int lane = threadIdx.x % 32;
  char* tile = reinterpret_cast<char*>(problem.partial) + int64_t(item.partial_tile) * kTileRows * HeadDim * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x / 32 * 16 + lane / 4 + r * 8;
    const float sum = row_sum(rows, r);
    const float inverse = 1.f / sum;
#pragma unroll
    for (int d = 0; d < HeadDim / 8; ++d) {
      *reinterpret_cast<uint32_t*>(tile + tile_offset<kTileRows>(row, d) + lane % 4 * 4) =
          hopper::pack_bf16(rows.output[d][2 * r] * inverse, rows.output[d][2 * r + 1] * inverse);
    }
    if (lane % 4 == 0) {
      problem.partial_lse2[int64_t(item.partial_tile) * kTileRows + row] =
          fmaf(rows.maximum[r], scale_log2, log2f(sum));
    }
  }
}

template <int HeadDim>
__device__ __forceinline__ void attend_item(const ForwardProblem& problem, const WorkItem& item,
                                            SharedTiles<HeadDim>& shared) {
  const int lane = threadIdx.x % 32;
  const float scale_log2 = problem.scale * kLog2e;
  const int tiles = (item.keys + kKeyTile - 1) / kKeyTile;
  const auto load_tile = [&](int tile, int stage) {
    load_keys<HeadDim>(problem.k_blocks, item, problem.shape.heads, tile * kKeyTile,
                       hopper::smem_address(shared.key[stage]));
    load_keys<HeadDim>(problem.v_blocks, item, problem.shape.heads, tile * kKeyTile,
                       hopper::smem_address(shared.value[stage]));
    hopper::cp_async_commit();
  };
  WarpRows<HeadDim> rows = {};
  rows.maximum[0] = rows.maximum[1] = -INFINITY;
  const uint32_t query = hopper::smem_address(shared.query);
  gather_queries<HeadDim>(problem, item, query);
  load_tile(tiles - 1, 0);
  for (int i = 0; i < tiles; ++i) {
    const int tile = tiles - 1 - i, stage = i % kStages;
    if (tile > 0) {
      load_tile(tile - 1, stage ^ 1);
      hopper::cp_async_wait<1>();
    } else {
      hopper::cp_async_wait<0>();
    }
    __syncthreads();
    if (i == 0) {
#pragma unroll
      for (int k = 0; k < HeadDim / 16; ++k) {
        ldmatrix_x4(rows.query[k],
                    query + tile_offset<kTileRows>(threadIdx.x / 32 * 16 + lane % 16, k * 2 + lane / 16));
      }
    }
    const int valid = item.keys - tile * kKeyTile;
    multiply_rows<HeadDim, kKeyTile, kKeyTile>(rows.scores, hopper::smem_address(shared.key[stage]), 0, valid,
                                               rows.query);
    mask_scores(rows.scores, valid);
    softmax(rows, scale_log2);
    add_values(rows, hopper::smem_address(shared.value[stage]), valid);
    __syncthreads();
  }
  write_partial(problem, item, rows, scale_log2);
}

template <int HeadDim>
__global__ void __launch_bounds__(kThreads, 1) attend_kernel(const __grid_constant__ ForwardProblem problem, int wave) {
  extern __shared__ __align__(1024) char shared_bytes[];
  SharedTiles<HeadDim>& shared = *reinterpret_cast<SharedTiles<HeadDim>*>(shared_bytes);
  const int first_head = problem.plan.wave_first[wave];
  const int end_head = problem.plan.wave_first[wave + 1];
  const int first_tile = problem.plan.tiles_before[first_head];
  const int tile_count = problem.plan.tiles_before[end_head] - first_tile;
  while (true) {
    if (threadIdx.x < 32) {
      int tile = 0;
      if (threadIdx.x == 0) tile = atomicAdd(problem.plan.next_tile + wave, 1);
      tile = __shfl_sync(kAllLanes, tile, 0);
      WorkItem item;
      if (tile < tile_count) item = locate_item(problem, first_head, end_head, first_tile, tile);
      if (threadIdx.x == 0) shared.item = item;
    }
    __syncthreads();
    const WorkItem item = shared.item;
    if (item.keys == 0) return;
    attend_item(problem, item, shared);
    __syncthreads();
  }
}

template <int HeadDim>
cudaError_t launch(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(SharedTiles<HeadDim>);
  const cudaError_t error =
      cudaFuncSetAttribute(attend_kernel<HeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  attend_kernel<HeadDim><<<sm_count, kThreads, kSharedBytes, stream>>>(problem, wave);
  return cudaGetLastError();
}

}  // namespace

cudaError_t attend_wave_sm80(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream) {
  return problem.shape.head_dim == 128 ? launch<128>(problem, wave, sm_count, stream)
                                       : launch<64>(problem, wave, sm_count, stream);
}

}  // namespace vmoba::kernels
