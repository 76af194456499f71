// Main kernel of the backward with mma.sync and cp.async, for sm_80 and its successors without kernels of their own.
//
// Persistent blocks of eight warps take key tiles from a counter. A warp owns 16 keys: their dk and dv stay in
// registers, with V as a register operand, while the list of rows that attend the tile goes by in two stages of kRows
// gathered rows. Keys are on the M side of S^T = K Q^T and dP^T = V dO^T, so that P^T and dS^T are register operands of
// dv and dk; dS^T also goes through shared memory for dQ = dS K, which is added to the sums in global memory one word
// at a time (this architecture has no wider reduction). Within the 99 KB of shared memory every such GPU has.
#include "attention/kernels/backward.cuh"
#include "attention/kernels/products_sm80.cuh"

namespace vmoba::kernels {
namespace {

using namespace ampere;

constexpr int kThreads = 256;
constexpr int kRows = 32;  // of a tile
constexpr int kStages = 2;
// Bytes between two keys of dS^T: the 16 beyond a row make eight rows hit all banks once.
constexpr int kScorePitch = kRows * 2 + 16;

template <int D>
struct SharedTiles {
  alignas(1024) char key[kBackwardKeys * D * 2];
  char query[kStages][kRows * D * 2];
  char dout[kStages][kRows * D * 2];
  char scores[kBackwardKeys * kScorePitch];
  RowStats stats[kStages][kRows];
  int32_t row[kStages][kRows];  // token of each row, -1 for a pad
  KeyTile item;
};

// One warp's 16 keys.
template <int D>
struct WarpKeys {
  uint32_t value[D / 16][4];
  float dk[D / 8][4], dv[D / 8][4];
};

using Scores = float[kRows / 8][4];  // 16 keys x kRows

template <int D>
__device__ __forceinline__ void load_keys(const BackwardProblem& problem, const KeyTile& item, uint32_t tile) {
  constexpr int kChunks = D / 8;
  for (int i = threadIdx.x; i < kBackwardKeys * kChunks; i += kThreads) {
    const int key = i / kChunks, chunk = i % kChunks;
    const __nv_bfloat16* source =
        row_pointer(problem.k_blocks, item.sample, item.head, item.key_start + min(key, item.keys - 1));
    hopper::cp_async_16(tile + tile_offset<kBackwardKeys>(key, chunk), source + chunk * 8);
  }
}

// Zeros behind the block's end.
template <int D>
__device__ __forceinline__ void load_values(const BackwardProblem& problem, const KeyTile& item,
                                            uint32_t (&value)[D / 16][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = threadIdx.x / 32 * 16 + lane / 4 + half * 8;
    const bool valid = key < item.keys;
    const uint32_t* source = reinterpret_cast<const uint32_t*>(
        row_pointer(problem.v_blocks, item.sample, item.head, item.key_start + (valid ? key : 0)));
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      value[k][half] = valid ? source[k * 8 + lane % 4] : 0;
      value[k][half + 2] = valid ? source[k * 8 + lane % 4 + 4] : 0;
    }
  }
}

// The rows [first, first + kRows) of the list. Pads copy the list's last row; their statistics make P zero.
template <int D>
__device__ __forceinline__ void load_rows(const BackwardProblem& problem, const KeyTile& item, int first, int stage,
                                          SharedTiles<D>& shared) {
  constexpr int kChunks = D / 8;
  const int32_t* rows = problem.lists.row + item.first_slot;
  const uint32_t query = hopper::smem_address(shared.query[stage]), dout = hopper::smem_address(shared.dout[stage]);
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int token = rows[min(first + row, item.rows - 1)];
    const uint32_t offset = tile_offset<kRows>(row, chunk);
    hopper::cp_async_16(query + offset, row_pointer(problem.q, item.sample, item.head, token) + chunk * 8);
    hopper::cp_async_16(dout + offset, row_pointer(problem.dout, item.sample, item.head, token) + chunk * 8);
  }
  hopper::cp_async_commit();
  if (threadIdx.x >= kRows) return;
  const bool valid = first + int(threadIdx.x) < item.rows;
  const int token = valid ? rows[first + threadIdx.x] : problem.tokens;
  const int64_t head_index = int64_t(item.sample) * problem.shape.heads + item.head;
  shared.stats[stage][threadIdx.x] = problem.stats[head_index * (problem.tokens + 1) + token];
  shared.row[stage][threadIdx.x] = valid ? token : -1;
}

// s: scores in, P out (zero for keys behind the block's end); dp: dP in, dS = P (dP - delta) out.
__device__ __forceinline__ void differentiate_softmax(Scores& s, Scores& dp, const RowStats* stats, float score_scale,
                                                      int keys) {
  const int lane = threadIdx.x % 32, key = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowStats row = stats[n * 8 + lane % 4 * 2 + i % 2];
      const float p = hopper::exp2_approx(fmaf(s[n][i], score_scale, -row.lse2));
      s[n][i] = key + i / 2 * 8 < keys ? p : 0.0f;
      dp[n][i] = s[n][i] * (dp[n][i] - row.delta);
    }
  }
}

__device__ __forceinline__ void store_scores(char* scores, const uint32_t (&packed)[kRows / 8][2]) {
  const int lane = threadIdx.x % 32;
  char* target = scores + (threadIdx.x / 32 * 16 + lane / 4) * kScorePitch + lane % 4 * 4;
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n) {
    *reinterpret_cast<uint32_t*>(target + n * 16) = packed[n][0];
    *reinterpret_cast<uint32_t*>(target + n * 16 + 8 * kScorePitch) = packed[n][1];
  }
}

__device__ __forceinline__ void add_dq(const BackwardProblem& problem, int64_t row, int64_t place, float value) {
  if (problem.deterministic) {
    const int64_t fixed = __float2ll_rn(value * problem.dq_factor[row]);
    atomicAdd(static_cast<unsigned long long*>(problem.dq_sum) + place, static_cast<unsigned long long>(fixed));
  } else {
    atomicAdd(static_cast<float*>(problem.dq_sum) + place, value);
  }
}

// dQ = dS K of the whole tile: a warp takes 16 rows and a quarter of the columns.
template <int D>
__device__ __forceinline__ void accumulate_dq(const BackwardProblem& problem, const KeyTile& item, int stage,
                                              SharedTiles<D>& shared) {
  constexpr int kOwnColumns = D / 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = warp % 2 * 16, first_column = warp / 2 * kOwnColumns;
  const uint32_t scores = hopper::smem_address(shared.scores), keys = hopper::smem_address(shared.key);
  float dq[kOwnColumns / 8][4] = {};
#pragma unroll
  for (int k = 0; k < kBackwardKeys / 16; ++k) {
    uint32_t a[4];
    ldmatrix_x4_transposed(
        a, scores + (k * 16 + lane / 16 * 8 + lane % 8) * kScorePitch + (first_row + lane / 8 % 2 * 8) * 2);
#pragma unroll
    for (int d = 0; d < kOwnColumns / 16; ++d) {
      uint32_t b[4];
      ldmatrix_x4_transposed(
          b, keys + tile_offset<kBackwardKeys>(k * 16 + lane % 16, first_column / 8 + d * 2 + lane / 16));
      mma_16x8x16(dq[2 * d], a, b[0], b[1]);
      mma_16x8x16(dq[2 * d + 1], a, b[2], b[3]);
    }
  }
  const int64_t head_row = (int64_t(item.sample) * problem.shape.heads + item.head) * problem.tokens;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = shared.row[stage][first_row + lane / 4 + half * 8];
    if (token < 0) continue;
    const int64_t row = head_row + token, place = row * D + first_column + lane % 4 * 2;
#pragma unroll
    for (int d = 0; d < kOwnColumns / 8; ++d) {
      add_dq(problem, row, place + d * 8, dq[d][2 * half]);
      add_dq(problem, row, place + d * 8 + 1, dq[d][2 * half + 1]);
    }
  }
}

template <int D>
__device__ __forceinline__ void accumulate_tile(const BackwardProblem& problem, const KeyTile& item, int stage,
                                                SharedTiles<D>& shared, WarpKeys<D>& keys) {
  const int lane = threadIdx.x % 32;
  const uint32_t key_tile = hopper::smem_address(shared.key);
  const uint32_t query = hopper::smem_address(shared.query[stage]), dout = hopper::smem_address(shared.dout[stage]);
  Scores s, dp;
  multiply_rows<D, kRows, kRows>(s, query, 0, kRows, [&](int k, uint32_t(&a)[4]) {
    ldmatrix_x4(a, key_tile + tile_offset<kBackwardKeys>(threadIdx.x / 32 * 16 + lane % 16, k * 2 + lane / 16));
  });
  multiply_rows<D, kRows, kRows>(dp, dout, 0, kRows, keys.value);
  differentiate_softmax(s, dp, shared.stats[stage], problem.score_scale, item.keys);
  uint32_t packed[kRows / 8][2];
  pack(packed, s);
  accumulate_rows<D, kRows, kRows>(keys.dv, packed, dout, 0, kRows);
  pack(packed, dp);
  store_scores(shared.scores, packed);
  accumulate_rows<D, kRows, kRows>(keys.dk, packed, query, 0, kRows);
}

template <int D>
__device__ __forceinline__ void store_gradient(const BackwardProblem& problem, const KeyTile& item,
                                               const TensorView& view, const float (&gradient)[D / 8][4],
                                               float factor) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = threadIdx.x / 32 * 16 + lane / 4 + half * 8;
    if (key >= item.keys) continue;
    const int token = original_token(problem, item.key_start + key);
    uint32_t* row =
        reinterpret_cast<uint32_t*>(const_cast<__nv_bfloat16*>(row_pointer(view, item.sample, item.head, token)));
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      row[d * 4 + lane % 4] = hopper::pack_bf16(gradient[d][2 * half] * factor, gradient[d][2 * half + 1] * factor);
    }
  }
}

template <int D>
__device__ __forceinline__ void differentiate(const BackwardProblem& problem, const KeyTile& item,
                                              SharedTiles<D>& shared) {
  WarpKeys<D> keys = {};
  load_keys<D>(problem, item, hopper::smem_address(shared.key));
  load_values<D>(problem, item, keys.value);
  if (item.rows > 0) load_rows(problem, item, 0, 0, shared);
  for (int first = 0, stage = 0; first < item.rows; first += kRows, stage ^= 1) {
    hopper::cp_async_wait<0>();
    __syncthreads();  // the tile has landed, and every warp is done with the one before it
    if (first + kRows < item.rows) load_rows(problem, item, first + kRows, stage ^ 1, shared);
    accumulate_tile(problem, item, stage, shared, keys);
    __syncthreads();
    accumulate_dq(problem, item, stage, shared);
  }
  hopper::cp_async_wait<0>();
  store_gradient<D>(problem, item, problem.dk, keys.dk, problem.scale);
  store_gradient<D>(problem, item, problem.dv, keys.dv, 1.0f);
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1) main_kernel(const __grid_constant__ BackwardProblem problem) {
  extern __shared__ __align__(1024) char shared_bytes[];
  SharedTiles<D>& shared = *reinterpret_cast<SharedTiles<D>*>(shared_bytes);
  while (true) {
    if (threadIdx.x == 0) {
      const int next = atomicAdd(problem.next_item, 1);
      shared.item = next < *problem.item_count ? problem.items[next] : KeyTile{};
    }
    __syncthreads();
    const KeyTile item = shared.item;
    if (item.keys == 0) return;
    differentiate(problem, item, shared);
    __syncthreads();  // the next item replaces this one's keys
  }
}

template <int D>
cudaError_t launch(const BackwardProblem& problem, int sm_count, cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(SharedTiles<D>);
  static_assert(kSharedBytes <= 99 * 1024);
  const cudaError_t error =
      cudaFuncSetAttribute(main_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  main_kernel<D><<<sm_count, kThreads, kSharedBytes, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace

cudaError_t backward_main_sm80(const BackwardProblem& problem, int sm_count, cudaStream_t stream) {
  return problem.shape.head_dim == 128 ? launch<128>(problem, sm_count, stream) : launch<64>(problem, sm_count, stream);
}

}  // namespace vmoba::kernels
