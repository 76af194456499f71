// Backward by query tiles on sm_90a for pairs of pieces of keys (D = 128): dk and dv of up to 128 keys of a block stay
// in registers while the pieces of rows that attend the block go by, and dq is added up in global memory.
//   S^T = K Q^T, dP^T = V dO^T, P = exp2(S c - lse2), dS = P (dP - delta), dV += P^T dO, dK += dS^T Q, dQ = dS K
// Warpgroup 0 feeds by TMA. Warpgroups 1 and 2 own 64 keys each, with keys on the M side, so that P^T is a register
// operand; dS^T goes through shared memory, where dK reads its own keys' and dQ all 128. Of dQ each has half the
// columns. It is that of the piece before: it wants both warpgroups' scores, and this way they need not meet in every
// step, so that one's arithmetic hides behind the other's products.
// Pieces of rows are the same for every pair, so dq is summed in the order of the accumulators' registers: each add is
// a whole 512-byte line of a warp, and one kernel at the end brings the sums into rows.
#include "attention/kernels/tile_backward.cuh"

namespace vmoba::kernels::backward_tiles {
namespace {

using C = Config<128>;

constexpr int kPairThreads = 384;
constexpr int kStages = 3;
constexpr int kMathWarps = 8;
constexpr int kProducerRegisters = 24;  // 128 * 24 + 256 * 240 = 384 * 168
constexpr int kMathRegisters = 240;
constexpr int kScoreBarrier = 1;  // named barriers kScoreBarrier + warpgroup: its own scores are written
constexpr int kKeyPanelBytes = 2 * C::kPanelBytes;

struct Storage {
  alignas(1024) char k[2 * C::kPieceBytes];  // panels of 128 keys
  alignas(1024) char v[2 * C::kPieceBytes];
  alignas(1024) char q[kStages][C::kPieceBytes];
  alignas(1024) char dout[kStages][C::kPieceBytes];
  alignas(1024) char scores[2][2 * C::kPanelBytes];  // dS^T, a row of 64 columns a key
  alignas(16) float lse2[kStages][kPieceRows];
  alignas(16) float delta[kStages][kPieceRows];
  int piece[kStages];  // of rows
  uint64_t keys_full, rows_full[kStages], rows_empty[kStages];
  uint64_t scores_full[2][2];  // per warpgroup and buffer
};

__device__ __forceinline__ void add_four(float* destination, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(destination), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}

// The pair at hand and the pieces of rows that attend it.
struct Item {
  int head, piece, begin, keys, count;
  const uint16_t* list;  // null: every piece
};

__device__ __forceinline__ Item item_of(const Params& params) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  const int pair = int(blockIdx.x) % s.key_pairs;
  Item item;
  item.head = int(blockIdx.x) / s.key_pairs;
  item.piece = __ldg(args.partition.key_pair + pair);
  item.begin = __ldg(args.partition.piece_begin + item.piece);
  item.keys = __ldg(args.partition.piece_begin + __ldg(args.partition.key_pair + pair + 1)) - item.begin;
  item.list = nullptr;
  item.count = s.pieces();
  if (item.piece < s.video_pieces) {
    const int64_t list = int64_t(item.head) * s.blocks + __ldg(args.partition.piece_block + item.piece);
    item.list = args.lists.rows + list * s.pieces();
    item.count = __ldg(args.lists.row_count + list);
  }
  return item;
}

// ---- loads: one warp
// -------------------------------------------------------------------------------------------------

__device__ __forceinline__ void load_keys(const Params& params, Storage& shared, const Item& item) {
  const int heads = params.args.shape.heads;
  hp::mbarrier_arrive_expect(address_of(&shared.keys_full), 4 * C::kPieceBytes);
#pragma unroll
  for (int panel = 0; panel < C::kPanels; ++panel) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int target = panel * kKeyPanelBytes + half * C::kPanelBytes, row = item.begin + half * kPieceRows;
      hp::tma_load_4d(address_of(shared.k) + target, &params.k_map, address_of(&shared.keys_full),
                      panel * hp::kPanelColumns, row, item.head % heads, item.head / heads);
      hp::tma_load_4d(address_of(shared.v) + target, &params.v_map, address_of(&shared.keys_full),
                      panel * hp::kPanelColumns, row, item.head % heads, item.head / heads);
    }
  }
}

__device__ __forceinline__ void load_rows(const Params& params, Storage& shared, const Item& item, int stage, int piece,
                                          int row) {
  const TileShape& s = params.args.shape;
  const int64_t padded = (int64_t(item.head) * s.pieces() + piece) * kPieceRows;
  uint64_t& full = shared.rows_full[stage];
  shared.piece[stage] = piece;
  hp::mbarrier_arrive_expect(address_of(&full), 2 * C::kPieceBytes + 2 * kPieceRows * 4);
  load_piece<C>(&params.q_map, shared.q[stage], full, row, item.head, s.heads);
  load_piece<C>(&params.dout_map, shared.dout[stage], full, row, item.head, s.heads);
  hp::bulk_load(address_of(shared.lse2[stage]), params.work.lse2 + padded, kPieceRows * 4, address_of(&full));
  hp::bulk_load(address_of(shared.delta[stage]), params.work.delta + padded, kPieceRows * 4, address_of(&full));
}

// A lane looks up one step of the next 32, so that no look-up stands before a load.
__device__ __forceinline__ void feed(const Params& params, Storage& shared) {
  const Item item = item_of(params);
  const int lane = threadIdx.x % 32;
  const auto look_up = [&](int step, int& piece, int& row) {
    piece = 0, row = 0;
    if (step >= item.count) return;
    piece = item.list == nullptr ? step : __ldg(item.list + step);
    row = __ldg(params.args.partition.piece_begin + piece);
  };
  if (lane == 0) load_keys(params, shared, item);
  int piece = 0, row = 0, next_piece, next_row;
  look_up(lane, next_piece, next_row);
  for (int step = 0; step < item.count; ++step) {
    if (step % 32 == 0) {
      piece = next_piece, row = next_row;
      look_up(step + 32 + lane, next_piece, next_row);
    }
    const int stage = step % kStages;
    const int of_step = __shfl_sync(0xffffffffu, piece, step % 32), first = __shfl_sync(0xffffffffu, row, step % 32);
    if (lane == 0) {
      if (step >= kStages) hp::mbarrier_wait(address_of(&shared.rows_empty[stage]), (step / kStages - 1) & 1);
      load_rows(params, shared, item, stage, of_step, first);
    }
    __syncwarp();
  }
}

// ---- products: two warpgroups
// ------------------------------------------------------------------------------------------

class Math {
 public:
  __device__ __forceinline__ Math(const Params& params, Storage& shared, int group)
      : params_(params), shared_(shared), group_(group), lane_(int(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run() {
    const Item item = item_of(params_);
    const int keys = min(max(item.keys - group_ * kPieceRows, 0), kPieceRows);
    float dk[C::kGradients], dv[C::kGradients];
    differentiate(item, keys, dk, dv);
    if (keys == 0) return;
    store_key_gradients<C>(params_, item.head, item.piece + group_, item.begin + group_ * kPieceRows, keys, dk, dv);
  }

 private:
  __device__ __forceinline__ void arrive(uint64_t& barrier) {
    __syncwarp();
    if (lane_ == 0) hp::mbarrier_arrive(address_of(&barrier));
  }

  // acc (64 x 64) = this warpgroup's 64 of `keys` times `rows`, transposed.
  __device__ __forceinline__ void multiply_keys(float (&acc)[32], const char* keys, const char* rows) {
    const uint32_t own = address_of(keys) + group_ * C::kPanelBytes;
    hp::wgmma_fence_operand(acc);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kColumns / 16; ++k) {
      hp::wgmma_ss<64>(hp::descriptor_k_major(own) + k / 4 * (kKeyPanelBytes >> 4) + k % 4 * 2,
                       hp::descriptor_k_major(address_of(rows)) + k / 4 * (C::kPanelBytes >> 4) + k % 4 * 2, acc,
                       k > 0);
    }
    hp::wgmma_commit();
  }
  __device__ __forceinline__ void accumulate_dk(float (&dk)[C::kGradients], int slot, const char* q) {
    const uint32_t own = address_of(shared_.scores[slot]) + group_ * C::kPanelBytes;
    hp::wgmma_fence_operand(dk);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      hp::wgmma_ss<C::kColumns, false, true>(hp::descriptor_k_major(own) + k * 2,
                                             hp::descriptor_mn_major(address_of(q), C::kPanelBytes) + k * 128, dk,
                                             true);
    }
    hp::wgmma_commit();
  }
  // dq: 64 rows x this warpgroup's 64 columns.
  __device__ __forceinline__ void multiply_scores(float (&dq)[32], int slot) {
    const uint32_t keys = address_of(shared_.k) + group_ * kKeyPanelBytes;
    hp::wgmma_fence_operand(dq);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      hp::wgmma_ss<64, true, true>(hp::descriptor_mn_major(address_of(shared_.scores[slot]), C::kPanelBytes) + k * 128,
                                   hp::descriptor_mn_major(keys, kKeyPanelBytes) + k * 128, dq, k > 0);
    }
    hp::wgmma_commit();
  }

  // P = exp2(s * scale - lse2) as bf16 pairs, zero for keys of another block.
  __device__ __forceinline__ void probabilities(uint32_t (&p)[4][4], const float (&s)[32], int stage, int keys) {
    const float scale_log2 = params_.args.scale * kLog2E;
    const float masked[2] = {own_row() < keys ? 0.f : -INFINITY, own_row() + 8 < keys ? 0.f : -INFINITY};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 lse2 = *reinterpret_cast<const float2*>(&shared_.lse2[stage][8 * j + 2 * (lane_ % 4)]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = hp::exp2_approx(fmaf(s[4 * j + 2 * half], scale_log2, masked[half] - lse2.x));
        const float high = hp::exp2_approx(fmaf(s[4 * j + 2 * half + 1], scale_log2, masked[half] - lse2.y));
        p[j / 2][j % 2 * 2 + half] = hp::pack_bf16(low, high);
      }
    }
  }

  // dS^T = P (dP - delta) to shared memory.
  __device__ __forceinline__ void store_scores(const uint32_t (&p)[4][4], const float (&dp)[32], int stage, int slot) {
    const int row = int(threadIdx.x) % kThreads / 32 * 16 + lane_ % 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t ds[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = 2 * k + i / 2, at = 4 * j + 2 * (i % 2);
        const float2 delta = *reinterpret_cast<const float2*>(&shared_.delta[stage][8 * j + 2 * (lane_ % 4)]);
        ds[i] = hp::pack_bf16(__uint_as_float(p[k][i] << 16) * (dp[at] - delta.x),
                              __uint_as_float(p[k][i] & 0xffff0000u) * (dp[at + 1] - delta.y));
      }
      hp::stmatrix_x4(
          address_of(shared_.scores[slot]) + group_ * C::kPanelBytes + hp::swizzled_offset(row, 2 * k + lane_ / 16),
          ds[0], ds[1], ds[2], ds[3]);
    }
  }

  __device__ __forceinline__ void add_dq(const float (&dq)[32], int head, int piece) const {
    float* sums = params_.work.dq + (int64_t(head) * params_.args.shape.pieces() + piece) * kPieceRows * C::kColumns;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      add_four(sums + ((group_ * 8 + i) * kThreads + int(threadIdx.x) % kThreads) * 4, dq[4 * i], dq[4 * i + 1],
               dq[4 * i + 2], dq[4 * i + 3]);
    }
  }

  __device__ __forceinline__ void wait_other_scores(int step) {
    hp::mbarrier_wait(address_of(&shared_.scores_full[group_ ^ 1][step % 2]), step / 2 & 1);
  }

  // The order keeps the tensor cores fed: dP before the exponentials, dV before dS is computed, S of the next piece
  // before dq is added. No wgmma is in flight at the loop's end: ptxas would serialise them all.
  __device__ __forceinline__ void differentiate(const Item& item, int keys, float (&dk)[C::kGradients],
                                                float (&dv)[C::kGradients]) {
    float s[32];
#pragma unroll
    for (int i = 0; i < C::kGradients; ++i) dk[i] = dv[i] = 0;
    hp::mbarrier_wait(address_of(&shared_.keys_full), 0);
    hp::mbarrier_wait(address_of(&shared_.rows_full[0]), 0);
    multiply_keys(s, shared_.k, shared_.q[0]);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(s);
    int before = 0;  // the piece of rows of the step before
#pragma unroll 1
    for (int step = 0; step < item.count; ++step) {
      const int stage = step % kStages, slot = step % 2, next = (step + 1) % kStages;
      float dp[32], dq[32];
      multiply_keys(dp, shared_.v, shared_.dout[stage]);
      uint32_t p[4][4];
      probabilities(p, s, stage, keys);
      hp::wgmma_fence();
      accumulate<C>(dv, p, address_of(shared_.dout[stage]));
      hp::wgmma_commit();
      // The other warpgroup's part of the step before is there, and it no longer reads this step's buffer.
      if (step > 0) wait_other_scores(step - 1);
      hp::wgmma_wait<1>();  // dP
      hp::wgmma_fence_operand(dp);
      store_scores(p, dp, stage, slot);
      hp::fence_async_proxy();
      multiply_scores(dq, slot ^ 1);  // of no use, and not added, in the first step
      hp::named_barrier_sync(kScoreBarrier + group_, kThreads);
      accumulate_dk(dk, slot, shared_.q[stage]);
      hp::wgmma_wait<2>();  // dV
      hp::wgmma_fence_operand(dv);
      const int piece = shared_.piece[stage];
      // Behind the last piece this multiplies whatever the other buffer holds; nobody reads the result.
      if (step + 1 < item.count) hp::mbarrier_wait(address_of(&shared_.rows_full[next]), (step + 1) / kStages & 1);
      multiply_keys(s, shared_.k, shared_.q[next]);
      hp::wgmma_wait<2>();  // dQ
      hp::wgmma_fence_operand(dq);
      arrive(shared_.scores_full[group_][slot]);
      if (step > 0) add_dq(dq, item.head, before);
      before = piece;
      hp::wgmma_wait<1>();  // dK
      hp::wgmma_fence_operand(dk);
      arrive(shared_.rows_empty[stage]);
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(s);
    }
    float dq[32];
    wait_other_scores(item.count - 1);
    multiply_scores(dq, (item.count - 1) % 2);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(dq);
    add_dq(dq, item.head, before);
  }

  const Params& params_;
  Storage& shared_;
  const int group_, lane_;
};

__global__ void __launch_bounds__(kPairThreads, 1) pairs_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
  if (threadIdx.x == 0) {
    hp::mbarrier_init(address_of(&shared.keys_full), 1);
    for (int i = 0; i < kStages; ++i) {
      hp::mbarrier_init(address_of(&shared.rows_full[i]), 1);
      hp::mbarrier_init(address_of(&shared.rows_empty[i]), kMathWarps);
    }
    for (auto& group : shared.scores_full) {
      for (uint64_t& barrier : group) hp::mbarrier_init(address_of(&barrier), kMathWarps / 2);
    }
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hp::register_decrease<kProducerRegisters>();
    if (warp == 0) feed(params, shared);
  } else {
    hp::register_increase<kMathRegisters>();
    Math(params, shared, warp / 4 - 1).run();
  }
#endif
}

// The sums of dq, in the accumulators' order, to the original order.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Params params) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  const int piece = blockIdx.x, head = blockIdx.y;
  const Piece own = piece_at(args.partition, piece);
  const float4* sums =
      reinterpret_cast<const float4*>(params.work.dq + (int64_t(head) * s.pieces() + piece) * kPieceRows * C::kColumns);
  float acc[C::kGradients];
#pragma unroll
  for (int i = 0; i < C::kColumns / 8; ++i) {
    const float4 v = __ldcs(sums + i * kThreads + threadIdx.x);
    acc[4 * i] = v.x, acc[4 * i + 1] = v.y, acc[4 * i + 2] = v.z, acc[4 * i + 3] = v.w;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = own_row() + half * 8;
    const bool valid = row < own.rows;
    const int token = valid ? tile_token(s, args.partition, own.begin + row) : 0;
    store_row<C::kColumns>(tile_row(args.dq, s, head, token), valid, acc, half, args.scale);
  }
}

}  // namespace

cudaError_t launch_pairs(const Params& params, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  const cudaError_t error =
      cudaFuncSetAttribute(pairs_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Storage)));
  if (error != cudaSuccess) return error;
  pairs_kernel<<<unsigned(s.batch * s.heads * s.key_pairs), kPairThreads, sizeof(Storage), stream>>>(params);
  finish_kernel<<<dim3(unsigned(s.pieces()), unsigned(s.batch * s.heads)), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels::backward_tiles
