// Backward of attention by query tiles: statistics of the rows, then on sm_90a dk and dv of one piece of keys in
// registers while the pieces of rows that attend it go by; dq is tile_backward_rows.cu's.
//   S^T = K Q^T, dP^T = V dO^T, P = exp2(S c + bias - lse2), dS = P (dP - delta), dV += P^T dO, dK += dS^T Q
// with keys on the M side, so that P^T and dS^T are register operands. One warpgroup a block of threads, two on a
// multiprocessor, which hide each other's arithmetic. Means are pieces of keys too (with every video row in their
// list); they go first, so that a key's own gradient can take its mean's share on its way out.
#include <algorithm>

#include "attention/kernels/tile_sm80.cuh"

namespace vmoba::kernels {
namespace backward_tiles {
namespace {

constexpr int kStages = 2;

// Parts of the rows that share the work of the means, a piece each at least: as many as fill the multiprocessors of an
// H100 or H200 evenly, within `kMeanBytes`.
int mean_parts(const TileShape& s) {
  constexpr int64_t kMeanBytes = int64_t(128) << 20;
  constexpr int kMaxParts = 16, kSetUpSteps = 4;
  const int64_t heads = int64_t(s.batch) * s.heads, of_a_part = 2 * heads * s.blocks * s.head_dim * 4;
  const int64_t slots = in_pairs(s) || in_strips(s) ? 132 : 264,
                items = heads * (in_pairs(s) ? mean_pairs(s) : s.mean_pieces());
  int best = 1;
  int64_t least = INT64_MAX;
  for (int parts = 1; parts <= std::min(kMaxParts, s.video_pieces); ++parts) {
    if (parts > 1 && parts * of_a_part > kMeanBytes) break;
    const int64_t waves = (items * parts + slots - 1) / slots;
    const int64_t steps = waves * ((s.video_pieces + parts - 1) / parts + kSetUpSteps);
    if (steps < least) least = steps, best = parts;
  }
  return best;
}

Workspace carve(const TileShape& s, bool means, void* base) {
  const int64_t heads = int64_t(s.batch) * s.heads, rows = heads * s.row_groups() * kGroupRows;
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* at = static_cast<char*>(base) + used;
    used += (bytes + 255) / 256 * 256;
    return at;
  };
  Workspace w;
  w.dout = reinterpret_cast<__nv_bfloat16*>(take(heads * s.tokens() * s.head_dim * 2));
  w.dq = in_pairs(s) ? reinterpret_cast<float*>(take(rows * s.head_dim * 4)) : nullptr;
  w.lse2 = reinterpret_cast<float*>(take(rows * 4));
  w.delta = reinterpret_cast<float*>(take(rows * 4));
  w.next = reinterpret_cast<uint32_t*>(take(3 * sizeof(uint32_t)));
  w.mean_parts = means ? mean_parts(s) : 0;
  const int64_t of_means = w.mean_parts * heads * s.blocks * s.head_dim * 4;
  w.mean_dk = reinterpret_cast<float*>(take(of_means));
  w.mean_dv = reinterpret_cast<float*>(take(of_means));
  w.mean_dbias = reinterpret_cast<float*>(take(w.mean_parts * heads * s.mean_pieces() * 4));
  w.bytes = used;
  return w;
}

template <class C>
struct Storage {
  alignas(1024) char k[C::kPieceBytes];
  alignas(1024) char v[C::kPieceBytes];
  alignas(1024) char q[kStages][C::kPieceBytes];
  alignas(1024) char dout[kStages][C::kPieceBytes];
  alignas(16) float lse2[kStages][kPieceRows];
  alignas(16) float delta[kStages][kPieceRows];
  float bias_gradient[kThreads / 32];
  uint64_t keys_full, rows_full[kStages], step_done;
};

// ---- before: dout into permuted order, statistics of every padded row, sums of dq at zero
// ---------------------------

template <int D>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ Params params) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  constexpr int kLanes = D / 8, kRows = kThreads / kLanes;
  const int piece = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % kLanes;
  const Piece own = piece_at(args.partition, piece);
  const int64_t padded = (int64_t(head) * s.row_groups() + first_group(s, piece, own)) * kGroupRows;
  const int rows = s.packed ? in_groups(own.rows) : kPieceRows;
  if (piece == 0 && head == 0 && threadIdx.x < 3) params.work.next[threadIdx.x] = 0;
  if (params.work.dq != nullptr) {
    float4* sums = reinterpret_cast<float4*>(params.work.dq + padded * D);
#pragma unroll 4
    for (int i = threadIdx.x; i < rows * D / 4; i += kThreads) sums[i] = make_float4(0, 0, 0, 0);
  }
#pragma unroll 2
  for (int row = threadIdx.x / kLanes; row < rows; row += kRows) {
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

// ---- main ----------------------------------------------------------------------------------------------------------

template <class C, bool kMeans>
class Work {
 public:
  using S = Storage<C>;
  static constexpr int kSumBarrier = 1;
  static constexpr int kGradients = C::kGradients;

  __device__ __forceinline__ Work(const Params& params, S& shared)
      : params_(params), args_(params.args), shape_(params.args.shape), shared_(shared) {}

  __device__ __forceinline__ void run() {
    const int means = shape_.mean_pieces();
    const Turn turn =
        kMeans ? Turn{int(blockIdx.x) / means, int(blockIdx.x) % means} : turn_of(shape_, 0, int(blockIdx.x));
    head_ = turn.head;
    piece_ = turn.number;
    find_rows();
    const int begin = kMeans ? piece_ * kPieceRows : piece_at(args_.partition, piece_).begin;
    const int keys = kMeans ? min(kPieceRows, shape_.blocks - begin) : piece_at(args_.partition, piece_).rows;
    if (threadIdx.x == 0) {
      load_keys(begin);
      for (int i = 0; i < kStages; ++i) {
        const int piece = row_piece(i);
        load_rows(i, piece, first_row(piece));
      }
    }
    ahead_.piece = row_piece(kStages);
    ahead_.row = first_row(ahead_.piece);
    ahead_.next_piece = row_piece(kStages + 1);
    differentiate(begin, keys);
  }

 private:
  __device__ __forceinline__ void find_rows() {
    if (kMeans) {
      const auto begin_of = [&](int part) { return int(int64_t(shape_.video_pieces) * part / int(gridDim.y)); };
      first_ = begin_of(int(blockIdx.y));
      count_ = begin_of(int(blockIdx.y) + 1) - first_;
      return;
    }
    if (piece_ >= shape_.video_pieces) {
      count_ = shape_.pieces();
      return;
    }
    const int64_t list = int64_t(head_) * shape_.blocks + __ldg(args_.partition.piece_block + piece_);
    list_ = args_.lists.rows + list * shape_.pieces();
    count_ = __ldg(args_.lists.row_count + list);
  }
  __device__ __forceinline__ int row_piece(int step) const {
    if (step >= count_) return 0;
    return list_ == nullptr ? first_ + step : __ldg(list_ + step);
  }
  __device__ __forceinline__ int first_row(int piece) const { return __ldg(args_.partition.piece_begin + piece); }

  __device__ __forceinline__ void load_keys(int begin) {
    hp::mbarrier_arrive_expect(address_of(&shared_.keys_full), 2 * C::kPieceBytes);
    const CUtensorMap* k_map = kMeans ? &params_.mean_k_map : &params_.k_map;
    const CUtensorMap* v_map = kMeans ? &params_.mean_v_map : &params_.v_map;
    load_piece<C>(k_map, shared_.k, shared_.keys_full, begin, head_, shape_.heads);
    load_piece<C>(v_map, shared_.v, shared_.keys_full, begin, head_, shape_.heads);
  }
  __device__ __forceinline__ void load_rows(int step, int piece, int row) {
    if (step >= count_) return;
    const int stage = step % kStages;
    const int64_t padded = (int64_t(head_) * shape_.pieces() + piece) * kPieceRows;
    uint64_t& full = shared_.rows_full[stage];
    hp::mbarrier_arrive_expect(address_of(&full), 2 * C::kPieceBytes + 2 * kPieceRows * 4);
    load_piece<C>(&params_.q_map, shared_.q[stage], full, row, head_, shape_.heads);
    load_piece<C>(&params_.dout_map, shared_.dout[stage], full, row, head_, shape_.heads);
    hp::bulk_load(address_of(shared_.lse2[stage]), params_.work.lse2 + padded, kPieceRows * 4, address_of(&full));
    hp::bulk_load(address_of(shared_.delta[stage]), params_.work.delta + padded, kPieceRows * 4, address_of(&full));
  }

  // The order keeps the tensor cores fed: dP before the exponentials, dV before dS is computed, S of the next piece
  // beside dK. No wgmma is in flight at the loop's end: ptxas would serialise them all.
  __device__ __forceinline__ void differentiate(int begin, int keys) {
    float dk[kGradients], dv[kGradients], s[32], bias_gradient = 0;
#pragma unroll
    for (int i = 0; i < kGradients; ++i) dk[i] = dv[i] = 0;
    const float scale_log2 = args_.scale * kLog2E;
    const int lane = threadIdx.x % 32;
    look_up_keys(begin, keys);
    hp::mbarrier_wait(address_of(&shared_.keys_full), 0);
    hp::mbarrier_wait(address_of(&shared_.rows_full[0]), 0);
    hp::wgmma_fence();
    multiply_rows<C>(s, address_of(shared_.k), address_of(shared_.q[0]));
    hp::wgmma_commit();
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(s);
#pragma unroll 1
    for (int step = 0; step < count_; ++step) {
      const int stage = step % kStages;
      const uint32_t q = address_of(shared_.q[stage]), dout = address_of(shared_.dout[stage]);
      float dp[32];
      hp::wgmma_fence();
      multiply_rows<C>(dp, address_of(shared_.v), dout);
      hp::wgmma_commit();
      float added[2];
      add_to_scores(added, step);
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
      hp::wgmma_fence();
      accumulate<C>(dv, p, dout);
      hp::wgmma_commit();
      hp::wgmma_wait<1>();  // dP
      hp::wgmma_fence_operand(dp);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 delta = *reinterpret_cast<const float2*>(&shared_.delta[stage][8 * j + 2 * (lane % 4)]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // P comes back from its bf16 pairs: the registers of the fp32 values are free then.
          const uint32_t pair = p[j / 2][j % 2 * 2 + i];
          const int at = 4 * j + 2 * i;
          const float low = __uint_as_float(pair << 16) * (dp[at] - delta.x);
          const float high = __uint_as_float(pair & 0xffff0000u) * (dp[at + 1] - delta.y);
          // The sum over all rows cancels: it wants P unrounded.
          if (kMeans) bias_gradient += s[at] * (dp[at] - delta.x) + s[at + 1] * (dp[at + 1] - delta.y);
          ds[j / 2][j % 2 * 2 + i] = hp::pack_bf16(low, high);
        }
      }
      hp::wgmma_fence();
      accumulate<C>(dk, ds, q);
      hp::wgmma_commit();
      // Behind the last piece this multiplies whatever the other buffer holds; nobody reads the result.
      if (step + 1 < count_) hp::mbarrier_wait(address_of(&shared_.rows_full[stage ^ 1]), (step + 1) / kStages & 1);
      multiply_rows<C>(s, address_of(shared_.k), address_of(shared_.q[stage ^ 1]));
      hp::wgmma_commit();
      hp::wgmma_wait<1>();  // dV, dK
      hp::wgmma_fence_operand(dk);
      hp::wgmma_fence_operand(dv);
      if (lane == 0) hp::mbarrier_arrive(address_of(&shared_.step_done));
      next_rows(step);
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(s);
    }
    if (kMeans)
      store_means(begin, keys, dk, dv, bias_gradient);
    else
      store_key_gradients<C>(params_, head_, piece_, begin, keys, dk, dv);
  }

  // Asks for the rows that take the place of those that all warps have read, and looks up those to come.
  __device__ __forceinline__ void next_rows(int step) {
    if (threadIdx.x == 0) {
      hp::mbarrier_wait(address_of(&shared_.step_done), step & 1);
      load_rows(step + kStages, ahead_.piece, ahead_.row);
    }
    __syncwarp();
    ahead_.piece = ahead_.next_piece;
    ahead_.row = first_row(ahead_.piece);
    ahead_.next_piece = row_piece(step + kStages + 2);
  }

  // What this thread's two keys add to their scores: nothing, the logarithm of what a mean stands for, or the end of
  // all for a key of another piece and the mean of a block that the tile of these rows attends.
  __device__ __forceinline__ void look_up_keys(int begin, int keys) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = own_row() + half * 8;
      known_.added[half] = key < keys ? 0.f : -INFINITY;
      if (kMeans && key < keys)
        known_.added[half] = __ldg(args_.means.bias + int64_t(head_) * shape_.blocks + begin + key) * kLog2E;
    }
    if (!kMeans) return;
    known_.mask = args_.lists.mask + int64_t(head_) * shape_.tiles * shape_.blocks + begin + min(own_row(), keys - 1);
    known_.mask_step = own_row() + 8 < keys ? 8 : 0;
    known_.tile = tile_of(0);
    look_up_mask(0);
  }
  __device__ __forceinline__ int tile_of(int step) const {
    return __ldg(args_.partition.piece_tile + first_ + min(step, count_ - 1));
  }
  // Of a step to come: no look-up stands before its scores.
  __device__ __forceinline__ void look_up_mask(int step) {
    const uint8_t* mask = known_.mask + int64_t(known_.tile) * shape_.blocks;
    known_.attended[0] = __ldg(mask), known_.attended[1] = __ldg(mask + known_.mask_step);
    known_.tile = tile_of(step + 1);
  }
  __device__ __forceinline__ void add_to_scores(float (&added)[2], int step) {
    added[0] = known_.added[0], added[1] = known_.added[1];
    if (!kMeans) return;
    if (known_.attended[0]) added[0] = -INFINITY;
    if (known_.attended[1]) added[1] = -INFINITY;
    look_up_mask(step + 1);
  }

  __device__ __forceinline__ void store_means(int begin, int keys, const float (&dk)[kGradients],
                                              const float (&dv)[kGradients], float bias_gradient) {
    const int64_t part_head = int64_t(blockIdx.y) * shape_.batch * shape_.heads + head_;
    store_mean_gradients<C>(params_, part_head, begin, keys, dk, dv);
    const float total = warpgroup_sum(bias_gradient, shared_.bias_gradient, kSumBarrier);
    if (threadIdx.x == 0) params_.work.mean_dbias[part_head * shape_.mean_pieces() + piece_] = total;
  }

  const Params& params_;
  const TileBackwardArgs& args_;
  const TileShape& shape_;
  S& shared_;
  int head_ = 0, piece_ = 0, first_ = 0, count_ = 0;
  const uint16_t* list_ = nullptr;  // null: every piece from first_ on
  struct {
    float added[2];
    const uint8_t* mask;  // of this thread's first key, tile 0
    int mask_step, tile;  // to its second key; of the step to come
    uint8_t attended[2];  // of the step at hand
  } known_;
  // Rows to be loaded next and after that: no look-up stands before a load.
  struct {
    int piece, row, next_piece;
  } ahead_;
};

template <class C, bool kMeans>
__global__ void __launch_bounds__(kThreads, 2) keys_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<C>& shared = *reinterpret_cast<Storage<C>*>(shared_bytes);
  if (threadIdx.x == 0) {
    hp::mbarrier_init(address_of(&shared.keys_full), 1);
    for (uint64_t& barrier : shared.rows_full) hp::mbarrier_init(address_of(&barrier), 1);
    hp::mbarrier_init(address_of(&shared.step_done), kThreads / 32);
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  Work<C, kMeans>(params, shared).run();
#endif
}

// What the parts of the rows give the means.
__global__ void __launch_bounds__(kThreads) add_parts_kernel(const __grid_constant__ Params params) {
  const TileShape& s = params.args.shape;
  const Workspace& work = params.work;
  const int64_t heads = int64_t(s.batch) * s.heads, values = heads * s.blocks * s.head_dim;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const auto sum_of = [&](const float* parts, int64_t count) {
    float sum = 0;
#pragma unroll 4
    for (int part = 0; part < work.mean_parts; ++part) sum += parts[part * count + index];
    return sum;
  };
  if (index < values) {
    work.mean_dk[index] = sum_of(work.mean_dk, values);
    work.mean_dv[index] = sum_of(work.mean_dv, values);
  }
  const int64_t pieces = heads * s.mean_pieces();
  if (index < pieces && params.args.dbias != nullptr) params.args.dbias[index] = sum_of(work.mean_dbias, pieces);
}

template <int D, bool kMeans>
cudaError_t launch_keys(const Params& params, cudaStream_t stream) {
  using C = Config<D>;
  const TileShape& s = params.args.shape;
  constexpr int kSharedBytes = sizeof(Storage<C>);
  const auto kernel = keys_kernel<C, kMeans>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned(s.batch * s.heads * (kMeans ? s.mean_pieces() : s.pieces())),
                  kMeans ? params.work.mean_parts : 1);
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <int D>
cudaError_t launch_means(const Params& params, int family, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  const cudaError_t error = family == 80   ? launch_keys_sm80(params, /*means=*/true, stream)
                            : in_strips(s) ? launch_mean_strips(params, stream)
                            : in_pairs(s)  ? launch_mean_pairs(params, stream)
                                           : launch_keys<D, /*kMeans=*/true>(params, stream);
  if (error != cudaSuccess) return error;
  const int64_t values = int64_t(s.batch) * s.heads * s.blocks * D;
  add_parts_kernel<<<unsigned((values + kThreads - 1) / kThreads), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

template <int D>
cudaError_t encode_maps(Params& params) {
  const TileShape& s = params.args.shape;
  const auto encode = [&](CUtensorMap* map, const void* data, int64_t rows, int box_rows = kPieceRows) {
    return hp::encode_row_map(map, data, D, rows, s.heads, s.batch, D, rows * D, rows * D * s.heads, box_rows);
  };
  const TileMeans& means = params.args.means;
  cudaError_t error = encode(&params.q_map, params.args.q, s.tokens());
  if (error == cudaSuccess) error = encode(&params.dout_map, params.work.dout, s.tokens());
  if (error == cudaSuccess) error = encode(&params.k_map, params.args.k, s.tokens());
  if (error == cudaSuccess) error = encode(&params.v_map, params.args.v, s.tokens());
  for (int i = 0; i < 3 && s.packed; ++i) {
    const int rows = kPieceRows >> (i + 1);
    if (error == cudaSuccess) error = encode(&params.q_parts[i], params.args.q, s.tokens(), rows);
    if (error == cudaSuccess) error = encode(&params.dout_parts[i], params.work.dout, s.tokens(), rows);
  }
  if (means.keys == nullptr) return error;
  if (error == cudaSuccess) error = encode(&params.mean_k_map, means.keys, s.blocks);
  if (error == cudaSuccess) error = encode(&params.mean_v_map, means.values, s.blocks);
  return error;
}

template <int D>
cudaError_t launch(const TileBackwardArgs& args, int family, cudaStream_t stream) {
  const TileShape& s = args.shape;
  const bool means = args.means.keys != nullptr;
  Params params;
  params.args = args;
  params.inverse_scale = 1 / args.scale;
  params.work = carve(s, means, args.workspace);
  cudaError_t error = family == 80 || in_strips(s) ? cudaSuccess : encode_maps<D>(params);
  if (error != cudaSuccess) return error;
  prepare_kernel<D><<<dim3(unsigned(s.pieces()), unsigned(s.batch * s.heads)), kThreads, 0, stream>>>(params);
  error = cudaGetLastError();
  if (error == cudaSuccess && means) error = launch_means<D>(params, family, stream);
  if (error != cudaSuccess) return error;
  if (family == 80) {
    error = launch_keys_sm80(params, /*means=*/false, stream);
    return error == cudaSuccess ? launch_rows_sm80(params, stream) : error;
  }
  if (in_strips(s)) return launch_strips(params, stream);
  if (in_pairs(s)) return launch_pairs(params, stream);
  error = launch_keys<D, /*kMeans=*/false>(params, stream);
  return error == cudaSuccess ? launch_rows<D>(params, stream) : error;
}

}  // namespace
}  // namespace backward_tiles

int64_t tile_backward_workspace_bytes(const TileShape& shape, bool means) {
  return tile_shape_valid(shape) ? backward_tiles::carve(shape, means, nullptr).bytes : 0;
}

cudaError_t tile_backward(const TileBackwardArgs& args, cudaStream_t stream) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const int family = kernel_family(device, args.family);
  if (family == 0) return cudaErrorNotSupported;
  if (!(family == 80 ? tiles_sm80::shape_taken(args.shape) : tile_shape_valid(args.shape)))
    return cudaErrorInvalidValue;
  return args.shape.head_dim == 64 ? backward_tiles::launch<64>(args, family, stream)
                                   : backward_tiles::launch<128>(args, family, stream);
}

}  // namespace vmoba::kernels
