// Backward of attention by query tiles on sm_90a: dk and dv of one piece of keys stay in registers while the pieces of
// rows that attend it go by.
//
// One warpgroup a block of threads, two of them on a multiprocessor, which hide each other's arithmetic:
//   S^T = K Q^T, dP^T = V dO^T, P = exp2(S c + bias - lse2), dS = P (dP - delta), dV += P^T dO, dK += dS^T Q, dQ = dS K
// with keys on the M side, so that P^T and dS^T are register operands; dS^T goes through shared memory for dQ alone.
// Pieces of rows are the same for every piece of keys, so dq is summed in the order of the accumulators' registers:
// each add is a whole 512-byte line of a warp, and one kernel at the end brings the sums into rows.
// Means are pieces of keys too (with every video row in their list); they go first, so that a key's own gradient can
// take its mean's share on its way out.
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {
namespace {

namespace hp = hopper;

constexpr int kThreads = 128;
constexpr int kStages = 2;
constexpr float kLog2E = 1.4426950408889634f;

// Workspace: dq sums [B, N, pieces, 64 D] fp32; dout in permuted order; per padded row lse2 and delta; means'
// gradients.
struct Workspace {
  float* dq;
  __nv_bfloat16* dout;
  float *lse2, *delta;       // [B, N, pieces, 64]
  float *mean_dk, *mean_dv;  // [B, N, C, D]
  int64_t bytes;
};

Workspace carve(const TileShape& s, bool means, void* base) {
  const int64_t heads = int64_t(s.batch) * s.heads, rows = heads * s.pieces() * kPieceRows;
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* at = static_cast<char*>(base) + used;
    used += (bytes + 255) / 256 * 256;
    return at;
  };
  Workspace w;
  w.dq = reinterpret_cast<float*>(take(rows * s.head_dim * 4));
  w.dout = reinterpret_cast<__nv_bfloat16*>(take(heads * s.tokens() * s.head_dim * 2));
  w.lse2 = reinterpret_cast<float*>(take(rows * 4));
  w.delta = reinterpret_cast<float*>(take(rows * 4));
  const int64_t of_means = means ? heads * s.blocks * s.head_dim * 4 : 0;
  w.mean_dk = reinterpret_cast<float*>(take(of_means));
  w.mean_dv = reinterpret_cast<float*>(take(of_means));
  w.bytes = used;
  return w;
}

struct Params {
  CUtensorMap q_map, dout_map, k_map, v_map;
  TileBackwardArgs args;
  Workspace work;
};

template <int D>
struct Config {
  static constexpr int kColumns = D;
  static constexpr int kPanels = D / hp::kPanelColumns;
  static constexpr int kPanelBytes = kPieceRows * hp::kPanelRowBytes;
  static constexpr int kPieceBytes = kPanels * kPanelBytes;
  static constexpr int kGradients = D / 2;  // registers of a 64 x D accumulator
};

template <class C>
struct Storage {
  alignas(1024) char k[C::kPieceBytes];
  alignas(1024) char v[C::kPieceBytes];
  alignas(1024) char q[kStages][C::kPieceBytes];
  alignas(1024) char dout[kStages][C::kPieceBytes];
  alignas(1024) char scores[C::kPanelBytes];
  alignas(16) float lse2[kStages][kPieceRows];
  alignas(16) float delta[kStages][kPieceRows];
  float bias_gradient[kThreads / 32];
  uint64_t keys_full, rows_full[kStages];
};

__device__ __forceinline__ uint32_t address_of(const void* object) {
  return hp::smem_address(object);
}

__device__ __forceinline__ void add_four(float* destination, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(destination), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}

// ---- before: dout into permuted order, statistics of every padded row -----------------------------------------------

template <int D>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ Params params) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  constexpr int kLanes = D / 8, kRows = kThreads / kLanes;
  const int piece = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % kLanes;
  const Piece own = piece_at(args.partition, piece);
  const int64_t padded = (int64_t(head) * s.pieces() + piece) * kPieceRows;
#pragma unroll 2
  for (int row = threadIdx.x / kLanes; row < kPieceRows; row += kRows) {
    float product = 0, lse2 = INFINITY;
    if (row < own.rows) {
      const int64_t token = tile_token(s, args.partition, own.begin + row);
      const uint4 d = __ldg(reinterpret_cast<const uint4*>(tile_row(args.dout, s, head, token)) + lane);
      const uint4 o = __ldg(reinterpret_cast<const uint4*>(tile_row(args.out, s, head, token)) + lane);
      reinterpret_cast<uint4*>(params.work.dout)[(int64_t(head) * s.tokens() + own.begin + row) * kLanes + lane] = d;
      const uint32_t a[4] = {d.x, d.y, d.z, d.w}, b[4] = {o.x, o.y, o.z, o.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        product = fmaf(__uint_as_float(a[i] << 16), __uint_as_float(b[i] << 16), product);
        product = fmaf(__uint_as_float(a[i] & 0xffff0000u), __uint_as_float(b[i] & 0xffff0000u), product);
      }
      lse2 = args.lse[int64_t(head) * s.tokens() + token] * kLog2E;
    }
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) product += __shfl_xor_sync(0xffffffffu, product, i);
    if (lane == 0) {
      params.work.lse2[padded + row] = lse2;
      params.work.delta[padded + row] = product;
    }
  }
}

// ---- a 64 x D accumulator into rows --------------------------------------------------------------------------------

// A quad holds a row, two columns of every eight a lane; transposing four words over the quad gives 16-byte stores.
template <int D>
__device__ __forceinline__ void store_row(__nv_bfloat16* row, bool valid, const float (&acc)[D / 2], int half,
                                          float factor) {
  const int lane = threadIdx.x % 32;
  const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
  for (int j = 0; j < D / 8; j += 4) {
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * (j + i) + 2 * half;
      w[i] = hp::pack_bf16(acc[at] * factor, acc[at + 1] * factor);
    }
    const uint32_t from0 = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
    const uint32_t from1 = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
    const uint32_t a0 = odd ? from0 : w[0], a1 = odd ? w[1] : from0;
    const uint32_t b0 = odd ? from1 : w[2], b1 = odd ? w[3] : from1;
    const uint32_t other0 = __shfl_xor_sync(0xffffffffu, upper ? a0 : b0, 2);
    const uint32_t other1 = __shfl_xor_sync(0xffffffffu, upper ? a1 : b1, 2);
    const uint4 chunk = upper ? make_uint4(other0, other1, b0, b1) : make_uint4(a0, a1, other0, other1);
    if (valid) *reinterpret_cast<uint4*>(row + (j + lane % 4) * 8) = chunk;
  }
}

__device__ __forceinline__ int own_row() {
  return int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4;
}

// The sums of dq, in the accumulators' order, to the original order.
template <int D>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Params params) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  const int piece = blockIdx.x, head = blockIdx.y;
  const Piece own = piece_at(args.partition, piece);
  const float4* sums =
      reinterpret_cast<const float4*>(params.work.dq + (int64_t(head) * s.pieces() + piece) * kPieceRows * D);
  float acc[D / 2];
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
    const float4 v = __ldcs(sums + i * kThreads + threadIdx.x);
    acc[4 * i] = v.x, acc[4 * i + 1] = v.y, acc[4 * i + 2] = v.z, acc[4 * i + 3] = v.w;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = own_row() + half * 8;
    const bool valid = row < own.rows;
    const int token = valid ? tile_token(s, args.partition, own.begin + row) : 0;
    store_row<D>(tile_row(args.dq, s, head, token), valid, acc, half, args.scale);
  }
}

// ---- main ----------------------------------------------------------------------------------------------------------

template <class C, bool kMeans>
class Work {
 public:
  using S = Storage<C>;
  static constexpr int kColumns = C::kColumns, kGradients = C::kGradients;

  __device__ __forceinline__ Work(const Params& params, S& shared)
      : params_(params), args_(params.args), shape_(params.args.shape), shared_(shared) {}

  __device__ __forceinline__ void run() {
    const int pieces = kMeans ? shape_.mean_pieces() : shape_.pieces();
    head_ = int(blockIdx.x) / pieces;
    piece_ = int(blockIdx.x) % pieces;
    find_rows();
    const int begin = kMeans ? piece_ * kPieceRows : piece_at(args_.partition, piece_).begin;
    const int keys = kMeans ? min(kPieceRows, shape_.blocks - begin) : piece_at(args_.partition, piece_).rows;
    if (threadIdx.x == 0) {
      load_keys(begin);
      for (int i = 0; i < kStages; ++i) load_rows(i);
    }
    differentiate(begin, keys);
  }

 private:
  __device__ __forceinline__ void find_rows() {
    if (kMeans || piece_ >= shape_.video_pieces) {
      list_ = nullptr;
      count_ = kMeans ? shape_.video_pieces : shape_.pieces();
      return;
    }
    const int64_t list = int64_t(head_) * shape_.blocks + __ldg(args_.partition.piece_block + piece_);
    list_ = args_.lists.rows + list * shape_.pieces();
    count_ = __ldg(args_.lists.row_count + list);
  }
  __device__ __forceinline__ int row_piece(int step) const { return list_ == nullptr ? step : __ldg(list_ + step); }

  __device__ __forceinline__ void load_piece(const CUtensorMap* map, const char* target, uint64_t& full, int row) {
#pragma unroll
    for (int panel = 0; panel < C::kPanels; ++panel) {
      hp::tma_load_4d(address_of(target) + panel * C::kPanelBytes, map, address_of(&full), panel * hp::kPanelColumns,
                      row, head_ % shape_.heads, head_ / shape_.heads);
    }
  }
  __device__ __forceinline__ void load_keys(int begin) {
    hp::mbarrier_arrive_expect(address_of(&shared_.keys_full), 2 * C::kPieceBytes);
    load_piece(&params_.k_map, shared_.k, shared_.keys_full, begin);
    load_piece(&params_.v_map, shared_.v, shared_.keys_full, begin);
  }
  __device__ __forceinline__ void load_rows(int step) {
    if (step >= count_) return;
    const int piece = row_piece(step), stage = step % kStages;
    const int row = __ldg(args_.partition.piece_begin + piece);
    const int64_t padded = (int64_t(head_) * shape_.pieces() + piece) * kPieceRows;
    uint64_t& full = shared_.rows_full[stage];
    hp::mbarrier_arrive_expect(address_of(&full), 2 * C::kPieceBytes + 2 * kPieceRows * 4);
    load_piece(&params_.q_map, shared_.q[stage], full, row);
    load_piece(&params_.dout_map, shared_.dout[stage], full, row);
    hp::bulk_load(address_of(shared_.lse2[stage]), params_.work.lse2 + padded, kPieceRows * 4, address_of(&full));
    hp::bulk_load(address_of(shared_.delta[stage]), params_.work.delta + padded, kPieceRows * 4, address_of(&full));
  }

  // acc (64 keys x 64 rows) = keys rows^T over the columns.
  __device__ __forceinline__ void multiply_keys(float (&acc)[32], uint32_t keys, uint32_t rows) {
    hp::wgmma_fence_operand(acc);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      const int panel = k / 4, step = k % 4;
      hp::wgmma_ss<64>(hp::descriptor_k_major(keys) + panel * (C::kPanelBytes >> 4) + step * 2,
                       hp::descriptor_k_major(rows) + panel * (C::kPanelBytes >> 4) + step * 2, acc, k > 0);
    }
    hp::wgmma_commit();
  }
  // acc (64 keys x D) += a (64 keys x 64 rows) rows.
  __device__ __forceinline__ void accumulate(float (&acc)[kGradients], const uint32_t (&a)[4][4], uint32_t rows) {
    hp::wgmma_fence_operand(acc);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      hp::wgmma_rs<kColumns, true>(a[k], hp::descriptor_mn_major(rows, C::kPanelBytes) + k * 128, acc, true);
    }
    hp::wgmma_commit();
  }
  // dq (64 rows x D) = dS keys.
  __device__ __forceinline__ void multiply_scores(float (&dq)[kGradients]) {
    hp::wgmma_fence_operand(dq);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      hp::wgmma_ss<kColumns, true, true>(hp::descriptor_mn_major(address_of(shared_.scores), C::kPanelBytes) + k * 128,
                                         hp::descriptor_mn_major(address_of(shared_.k), C::kPanelBytes) + k * 128, dq,
                                         k > 0);
    }
    hp::wgmma_commit();
  }

  __device__ __forceinline__ void differentiate(int begin, int keys) {
    float dk[kGradients], dv[kGradients], bias_gradient = 0;
#pragma unroll
    for (int i = 0; i < kGradients; ++i) dk[i] = dv[i] = 0;
    const float scale_log2 = args_.scale * kLog2E;
    const int lane = threadIdx.x % 32;
    hp::mbarrier_wait(address_of(&shared_.keys_full), 0);
#pragma unroll 1
    for (int step = 0; step < count_; ++step) {
      const int stage = step % kStages;
      const uint32_t q = address_of(shared_.q[stage]), dout = address_of(shared_.dout[stage]);
      float s[32], dp[32];
      hp::mbarrier_wait(address_of(&shared_.rows_full[stage]), step / kStages & 1);
      multiply_keys(s, address_of(shared_.k), q);
      multiply_keys(dp, address_of(shared_.v), dout);
      float added[2];
      add_to_scores(added, begin, keys, step);
      hp::wgmma_wait<1>();
      hp::wgmma_fence_operand(s);
      uint32_t p[4][4], ds[4][4];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 lse2 = *reinterpret_cast<const float2*>(&shared_.lse2[stage][8 * j + 2 * (lane % 4)]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = s[4 * j + i];
          x = hp::exp2_approx(fmaf(x, scale_log2, added[i / 2] - (i % 2 ? lse2.y : lse2.x)));
        }
        p[j / 2][j % 2 * 2] = hp::pack_bf16(s[4 * j], s[4 * j + 1]);
        p[j / 2][j % 2 * 2 + 1] = hp::pack_bf16(s[4 * j + 2], s[4 * j + 3]);
      }
      accumulate(dv, p, dout);
      hp::wgmma_wait<1>();  // dP
      hp::wgmma_fence_operand(dp);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 delta = *reinterpret_cast<const float2*>(&shared_.delta[stage][8 * j + 2 * (lane % 4)]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = dp[4 * j + i];
          x = s[4 * j + i] * (x - (i % 2 ? delta.y : delta.x));
          if (kMeans) bias_gradient += x;
        }
        ds[j / 2][j % 2 * 2] = hp::pack_bf16(dp[4 * j], dp[4 * j + 1]);
        ds[j / 2][j % 2 * 2 + 1] = hp::pack_bf16(dp[4 * j + 2], dp[4 * j + 3]);
      }
      store_scores(ds);
      hp::fence_async_proxy();
      __syncthreads();
      accumulate(dk, ds, q);
      float dq[kGradients];
      multiply_scores(dq);
      hp::wgmma_wait<1>();  // dV, dK
      hp::wgmma_fence_operand(dk);
      hp::wgmma_fence_operand(dv);
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(dq);
      __syncthreads();  // all have read rows and scores
      const int piece = row_piece(step);
      if (threadIdx.x == 0) load_rows(step + kStages);
      float* sums = params_.work.dq + (int64_t(head_) * shape_.pieces() + piece) * kPieceRows * kColumns;
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i) {
        add_four(sums + (i * kThreads + threadIdx.x) * 4, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
      }
    }
    if (kMeans)
      store_means(begin, keys, dk, dv, bias_gradient);
    else
      store_keys(begin, keys, dk, dv);
  }

  // What this thread's two keys add to their scores: nothing, the logarithm of what a mean stands for, or the end of
  // all for a key of another piece and the mean of a block that the tile of these rows attends.
  __device__ __forceinline__ void add_to_scores(float (&added)[2], int begin, int keys, int step) const {
    const uint8_t* mask = nullptr;
    if (kMeans) {
      const int tile = __ldg(args_.partition.piece_tile + step);
      mask = args_.lists.mask + (int64_t(head_) * shape_.tiles + tile) * shape_.blocks + begin;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = own_row() + half * 8;
      added[half] = key < keys ? 0.f : -INFINITY;
      if (kMeans && key < keys) {
        const float bias = __ldg(args_.means.bias + int64_t(head_) * shape_.blocks + begin + key) * kLog2E;
        added[half] = mask[key] == 0 ? bias : -INFINITY;
      }
    }
  }

  // dS^T, one row of 64 columns a key.
  __device__ __forceinline__ void store_scores(const uint32_t (&ds)[4][4]) {
    const int lane = threadIdx.x % 32, row = int(threadIdx.x) / 32 * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      hp::stmatrix_x4(address_of(shared_.scores) + hp::swizzled_offset(row, 2 * k + lane / 16), ds[k][0], ds[k][1],
                      ds[k][2], ds[k][3]);
    }
  }

  __device__ __forceinline__ void store_keys(int begin, int keys, float (&dk)[kGradients], float (&dv)[kGradients]) {
    const bool video = piece_ < shape_.video_pieces;
    const bool means = args_.means.keys != nullptr && video;
#pragma unroll
    for (int i = 0; i < kGradients; ++i) dk[i] *= args_.scale;
    if (means) add_mean_gradients(dk, dv);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = own_row() + half * 8;
      const bool valid = key < keys;
      const int token = valid ? tile_token(shape_, args_.partition, begin + key) : 0;
      store_row<kColumns>(tile_row(args_.dk, shape_, head_, token), valid, dk, half, 1.f);
      store_row<kColumns>(tile_row(args_.dv, shape_, head_, token), valid, dv, half, 1.f);
    }
  }

  // A key is one of its mean's |m| terms.
  __device__ __forceinline__ void add_mean_gradients(float (&dk)[kGradients], float (&dv)[kGradients]) const {
    const int block = __ldg(args_.partition.piece_block + piece_);
    const int size = __ldg(args_.partition.block_begin + block + 1) - __ldg(args_.partition.block_begin + block);
    const float share = 1.f / float(size);
    const int64_t row = (int64_t(head_) * shape_.blocks + block) * kColumns + int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const float2 of_key = __ldg(reinterpret_cast<const float2*>(params_.work.mean_dk + row + 8 * j));
      const float2 of_value = __ldg(reinterpret_cast<const float2*>(params_.work.mean_dv + row + 8 * j));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        dk[4 * j + 2 * half] = fmaf(of_key.x, share, dk[4 * j + 2 * half]);
        dk[4 * j + 2 * half + 1] = fmaf(of_key.y, share, dk[4 * j + 2 * half + 1]);
        dv[4 * j + 2 * half] = fmaf(of_value.x, share, dv[4 * j + 2 * half]);
        dv[4 * j + 2 * half + 1] = fmaf(of_value.y, share, dv[4 * j + 2 * half + 1]);
      }
    }
  }

  __device__ __forceinline__ void store_means(int begin, int keys, const float (&dk)[kGradients],
                                              const float (&dv)[kGradients], float bias_gradient) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = own_row() + half * 8;
      if (key >= keys) continue;
      const int64_t row = (int64_t(head_) * shape_.blocks + begin + key) * kColumns + int(threadIdx.x) % 4 * 2;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const int at = 4 * j + 2 * half;
        *reinterpret_cast<float2*>(params_.work.mean_dk + row + 8 * j) =
            make_float2(dk[at] * args_.scale, dk[at + 1] * args_.scale);
        *reinterpret_cast<float2*>(params_.work.mean_dv + row + 8 * j) = make_float2(dv[at], dv[at + 1]);
      }
    }
    if (args_.dbias == nullptr) return;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) bias_gradient += __shfl_xor_sync(0xffffffffu, bias_gradient, i);
    if (threadIdx.x % 32 == 0) shared_.bias_gradient[threadIdx.x / 32] = bias_gradient;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float total = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) total += shared_.bias_gradient[i];
    args_.dbias[int64_t(head_) * shape_.mean_pieces() + piece_] = total;
  }

  const Params& params_;
  const TileBackwardArgs& args_;
  const TileShape& shape_;
  S& shared_;
  int head_ = 0, piece_ = 0, count_ = 0;
  const uint16_t* list_ = nullptr;  // null: every piece
};

template <class C, bool kMeans>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<C>& shared = *reinterpret_cast<Storage<C>*>(shared_bytes);
  if (threadIdx.x == 0) {
    hp::mbarrier_init(address_of(&shared.keys_full), 1);
    for (uint64_t& barrier : shared.rows_full) hp::mbarrier_init(address_of(&barrier), 1);
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  Work<C, kMeans>(params, shared).run();
#endif
}

template <int D, bool kMeans>
cudaError_t launch_main(Params& params, cudaStream_t stream) {
  using C = Config<D>;
  const TileShape& s = params.args.shape;
  const auto encode = [&](CUtensorMap* map, const void* data, int64_t rows) {
    return hp::encode_row_map(map, data, D, rows, s.heads, s.batch, D, rows * D, rows * D * s.heads, kPieceRows);
  };
  const int64_t keys = kMeans ? s.blocks : s.tokens();
  cudaError_t error = encode(&params.q_map, params.args.q, s.tokens());
  if (error == cudaSuccess) error = encode(&params.dout_map, params.work.dout, s.tokens());
  if (error == cudaSuccess) error = encode(&params.k_map, kMeans ? params.args.means.keys : params.args.k, keys);
  if (error == cudaSuccess) error = encode(&params.v_map, kMeans ? params.args.means.values : params.args.v, keys);
  constexpr int kSharedBytes = sizeof(Storage<C>);
  const auto kernel = backward_kernel<C, kMeans>;
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int pieces = kMeans ? s.mean_pieces() : s.pieces();
  kernel<<<unsigned(s.batch * s.heads * pieces), kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <int D>
cudaError_t launch(const TileBackwardArgs& args, cudaStream_t stream) {
  const TileShape& s = args.shape;
  const bool means = args.means.keys != nullptr;
  Params params;
  params.args = args;
  params.work = carve(s, means, args.workspace);
  const dim3 grid(unsigned(s.pieces()), unsigned(s.batch * s.heads));
  cudaError_t error = cudaMemsetAsync(params.work.dq, 0,
                                      size_t(s.batch) * s.heads * s.pieces() * kPieceRows * D * sizeof(float), stream);
  if (error != cudaSuccess) return error;
  prepare_kernel<D><<<grid, kThreads, 0, stream>>>(params);
  error = cudaGetLastError();
  if (error == cudaSuccess && means) error = launch_main<D, true>(params, stream);
  if (error == cudaSuccess) error = launch_main<D, false>(params, stream);
  if (error != cudaSuccess) return error;
  finish_kernel<D><<<grid, kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

int64_t tile_backward_workspace_bytes(const TileShape& shape, bool means) {
  return tile_shape_valid(shape) ? carve(shape, means, nullptr).bytes : 0;
}

cudaError_t tile_backward(const TileBackwardArgs& args, cudaStream_t stream) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (kernel_family(device) != 90) return cudaErrorNotSupported;
  if (!tile_shape_valid(args.shape)) return cudaErrorInvalidValue;
  return args.shape.head_dim == 64 ? launch<64>(args, stream) : launch<128>(args, stream);
}

}  // namespace vmoba::kernels
