// Backward of attention by query tiles with mma.sync and cp.async, for sm_80 and its successors without kernels of
// their own. As on sm_90a without pairs (tile_backward.cu, tile_backward_rows.cu): scores are computed twice, once with
// dk and dv of a piece of keys in registers and once with dq of a piece of rows, so that nothing is atomic. Half of the
// shared memory that every such GPU has, so that two blocks of threads fit.
#include "attention/kernels/tile_sm80.cuh"

namespace vmoba::kernels::backward_tiles {
namespace {

using namespace tiles_sm80;

constexpr int kRows = 32;  // of a step
constexpr int kStages = 2;
constexpr int kSumBarrier = 1;

// ---- dk and dv: four warps with 16 keys each, while the rows that attend them go by

template <int D>
struct KeysStorage {
  alignas(1024) char key[kPieceRows * D * 2];
  char query[kStages][kRows * D * 2];
  char dout[kStages][kRows * D * 2];
  alignas(16) float lse2[kStages][kRows];
  alignas(16) float delta[kStages][kRows];
  float bias_gradient[kThreads / 32];
};

template <int D, bool kMeans>
class Keys {
 public:
  __device__ __forceinline__ Keys(const Params& params, KeysStorage<D>& shared)
      : params_(params), args_(params.args), shape_(params.args.shape), shared_(shared) {}

  // Pieces of text, which every row attends, come first.
  __device__ __forceinline__ void run() {
    const int pieces = kMeans ? shape_.mean_pieces() : shape_.pieces();
    head_ = int(blockIdx.x) / pieces;
    piece_ = pieces - 1 - int(blockIdx.x) % pieces;
    const Piece own = kMeans ? Piece{piece_ * kPieceRows, min(kPieceRows, shape_.blocks - piece_ * kPieceRows)}
                             : piece_at(args_.partition, piece_);
    begin_ = own.begin, keys_ = own.rows;
    find_rows();
    look_up_keys();
    const int64_t row = int64_t(head_) * (kMeans ? shape_.blocks : shape_.tokens()) + begin_;
    copy_rows<D, kPieceRows>(hopper::smem_address(shared_.key), row_at<D>(kMeans ? args_.means.keys : args_.k, row),
                             keys_);
    load_operand<D>(value_, row_at<D>(kMeans ? args_.means.values : args_.v, row), keys_);
    differentiate();
  }

 private:
  // A piece of rows.
  struct Rows {
    int piece = 0, tile = 0;
    Piece at;
  };

  __device__ __forceinline__ void find_rows() {
    if (kMeans) {
      const auto begin_of = [&](int part) { return int(int64_t(shape_.video_pieces) * part / int(gridDim.y)); };
      first_ = begin_of(int(blockIdx.y));
      count_ = begin_of(int(blockIdx.y) + 1) - first_;
    } else if (piece_ >= shape_.video_pieces) {
      count_ = shape_.pieces();
    } else {
      const int64_t list = int64_t(head_) * shape_.blocks + __ldg(args_.partition.piece_block + piece_);
      list_ = args_.lists.rows + list * shape_.pieces();
      count_ = __ldg(args_.lists.row_count + list);
    }
    at_hand_ = look_up(0);
    ahead_ = look_up(1);
  }
  __device__ __forceinline__ Rows look_up(int index) const {
    Rows rows;
    if (index >= count_) return rows;
    rows.piece = list_ == nullptr ? first_ + index : __ldg(list_ + index);
    rows.at = piece_at(args_.partition, rows.piece);
    if (kMeans) rows.tile = __ldg(args_.partition.piece_tile + rows.piece);
    return rows;
  }

  // What this thread's two keys add to their scores: nothing, the logarithm of what a mean stands for, or the end of
  // all for a key that is not there.
  __device__ __forceinline__ void look_up_keys() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = own_row() + half * 8;
      added_[half] = key < keys_ ? 0.f : -INFINITY;
      if (kMeans && key < keys_)
        added_[half] = __ldg(args_.means.bias + int64_t(head_) * shape_.blocks + begin_ + key) * kLog2E;
    }
  }

  // Copies the next rows of a list, those of one step, and looks up what comes behind them; gives how many.
  __device__ __forceinline__ int load_rows(int stage) {
    const int rows = min(kRows, at_hand_.at.rows - offset_);
    if (rows > 0) {
      const int64_t row = int64_t(head_) * shape_.tokens() + at_hand_.at.begin + offset_;
      copy_rows<D, kRows>(hopper::smem_address(shared_.query[stage]), row_at<D>(args_.q, row), rows);
      copy_rows<D, kRows>(hopper::smem_address(shared_.dout[stage]), row_at<D>(params_.work.dout, row), rows);
      copy_statistics(stage);
      if (kMeans) look_up_mask();
      offset_ += kRows;
      if (offset_ >= at_hand_.at.rows) {
        at_hand_ = ahead_;
        ahead_ = look_up(++index_ + 1);
        offset_ = 0;
      }
    }
    hopper::cp_async_commit();
    return rows;
  }
  __device__ __forceinline__ void copy_statistics(int stage) {
    constexpr int kChunks = kRows / 4;
    const int chunk = int(threadIdx.x) % kChunks * 4;
    const int64_t padded = (int64_t(head_) * shape_.pieces() + at_hand_.piece) * kPieceRows + offset_ + chunk;
    if (threadIdx.x < kChunks)
      hopper::cp_async_16(hopper::smem_address(shared_.lse2[stage] + chunk), params_.work.lse2 + padded);
    else if (threadIdx.x < 2 * kChunks)
      hopper::cp_async_16(hopper::smem_address(shared_.delta[stage] + chunk), params_.work.delta + padded);
  }
  // The mean of a block that the tile of these rows attends takes no part.
  __device__ __forceinline__ void look_up_mask() {
    const uint8_t* mask = args_.lists.mask + (int64_t(head_) * shape_.tiles + at_hand_.tile) * shape_.blocks + begin_;
#pragma unroll
    for (int half = 0; half < 2; ++half) attended_[half] = __ldg(mask + min(own_row() + half * 8, keys_ - 1));
  }

  __device__ __forceinline__ void differentiate() {
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, bias_gradient = 0;
    const bool has_keys = warp_row() < keys_;
    int stage = 0;
#pragma unroll 1
    for (int rows = load_rows(0); rows > 0; stage ^= 1) {
      hopper::cp_async_wait<0>();
      __syncthreads();  // these rows have landed, and every warp is done with those before them
      float added[2] = {added_[0], added_[1]};
      if (kMeans && attended_[0]) added[0] = -INFINITY;
      if (kMeans && attended_[1]) added[1] = -INFINITY;
      const int next = load_rows(stage ^ 1);
      if (has_keys) add_rows(dk, dv, bias_gradient, stage, rows, added);
      rows = next;
    }
    auto& flat_dk = reinterpret_cast<float(&)[D / 2]>(dk);
    auto& flat_dv = reinterpret_cast<float(&)[D / 2]>(dv);
    if constexpr (kMeans) {
      const int64_t part_head = int64_t(blockIdx.y) * shape_.batch * shape_.heads + head_;
      store_mean_gradients<Config<D>>(params_, part_head, begin_, keys_, flat_dk, flat_dv);
      const float total = warpgroup_sum(bias_gradient, shared_.bias_gradient, kSumBarrier);
      if (threadIdx.x == 0) params_.work.mean_dbias[part_head * shape_.mean_pieces() + piece_] = total;
    } else {
      store_key_gradients<Config<D>>(params_, head_, piece_, begin_, keys_, flat_dk, flat_dv);
    }
  }

  // S^T = K Q^T, dP^T = V dO^T, P = exp2(S c + added - lse2), dS = P (dP - delta), dV += P^T dO, dK += dS^T Q; of 16
  // rows at a time, for want of registers.
  __device__ __forceinline__ void add_rows(float (&dk)[D / 8][4], float (&dv)[D / 8][4], float& bias_gradient,
                                           int stage, int rows, const float (&added)[2]) {
    const int lane = threadIdx.x % 32;
    const float scale_log2 = args_.scale * kLog2E;
    const uint32_t key = hopper::smem_address(shared_.key);
#pragma unroll 1
    for (int first = 0; first < rows; first += am::kGroup) {
      const uint32_t query = hopper::smem_address(shared_.query[stage]) + first * hopper::kPanelRowBytes;
      const uint32_t dout = hopper::smem_address(shared_.dout[stage]) + first * hopper::kPanelRowBytes;
      float s[2][4], dp[2][4];
      am::multiply_rows<D, kRows, am::kGroup>(s, query, 0, am::kGroup, [&](int k, uint32_t(&a)[4]) {
        am::ldmatrix_x4(a, key + am::tile_offset<kPieceRows>(warp_row() + lane % 16, k * 2 + lane / 16));
      });
      am::multiply_rows<D, kRows, am::kGroup>(dp, dout, 0, am::kGroup, value_);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int row = first + n * 8 + lane % 4 * 2;
        const float2 lse2 = *reinterpret_cast<const float2*>(shared_.lse2[stage] + row);
        const float2 delta = *reinterpret_cast<const float2*>(shared_.delta[stage] + row);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[n][i] = hopper::exp2_approx(fmaf(s[n][i], scale_log2, added[i / 2] - (i % 2 ? lse2.y : lse2.x)));
          dp[n][i] = s[n][i] * (dp[n][i] - (i % 2 ? delta.y : delta.x));
          if (kMeans) bias_gradient += dp[n][i];
        }
      }
      uint32_t packed[2][2];
      am::pack(packed, s);
      am::accumulate_rows<D, kRows, am::kGroup>(dv, packed, dout, 0, am::kGroup);
      am::pack(packed, dp);
      am::accumulate_rows<D, kRows, am::kGroup>(dk, packed, query, 0, am::kGroup);
    }
  }

  const Params& params_;
  const TileBackwardArgs& args_;
  const TileShape& shape_;
  KeysStorage<D>& shared_;
  int head_ = 0, piece_ = 0, begin_ = 0, keys_ = 0;
  const uint16_t* list_ = nullptr;  // null: every piece from first_ on
  int first_ = 0, count_ = 0, index_ = 0, offset_ = 0;
  Rows at_hand_, ahead_;
  float added_[2];
  uint8_t attended_[2] = {};  // of the rows loaded last
  uint32_t value_[D / 16][4];
};

template <int D, bool kMeans>
__global__ void __launch_bounds__(kThreads, 2) keys_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) char shared_bytes[];
  Keys<D, kMeans>(params, *reinterpret_cast<KeysStorage<D>*>(shared_bytes)).run();
}

// ---- dq: four warps with 16 rows each, while the keys that they attend go by

template <int D>
__global__ void __launch_bounds__(kThreads, 2) rows_kernel(const __grid_constant__ Params params) {
  using Walk = KeyWalk<D, /*kValuesFirst=*/true, TileBackwardArgs>;
  constexpr int kPart = 32;  // keys whose scores are in registers at a time
  extern __shared__ __align__(1024) char shared_bytes[];
  const TileBackwardArgs& args = params.args;
  const int pieces = args.shape.pieces();
  const int head = int(blockIdx.x) / pieces, piece = pieces - 1 - int(blockIdx.x) % pieces;
  const Piece own = piece_at(args.partition, piece);
  const bool has_rows = warp_row() < own.rows;
  const float scale_log2 = args.scale * kLog2E;
  float dq[D / 8][4] = {}, dp[kPieceRows / 8][4], lse2[2], delta[2];
  uint32_t query[D / 16][4], dout[D / 16][4];
  const int64_t row = int64_t(head) * args.shape.tokens() + own.begin;
  load_operand<D>(query, row_at<D>(args.q, row), own.rows);
  load_operand<D>(dout, row_at<D>(params.work.dout, row), own.rows);
  const int64_t padded = (int64_t(head) * pieces + piece) * kPieceRows + own_row();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    lse2[half] = __ldg(params.work.lse2 + padded + half * 8);
    delta[half] = __ldg(params.work.delta + padded + half * 8);
  }
  Walk(args, *reinterpret_cast<typename Walk::Storage*>(shared_bytes), head, piece)
      .run(
          [&](uint32_t values, const StepKeys& step, const float*) {
            if (has_rows) am::multiply_rows<D, kPieceRows, kPieceRows>(dp, values, 0, step.rows, dout);
          },
          [&](uint32_t keys, const StepKeys& step, const float* bias) {
            if (!has_rows) return;
#pragma unroll
            for (int part = 0; part < kPieceRows / kPart; ++part) {
              const int valid = step.rows - part * kPart;
              if (valid <= 0) break;
              float s[kPart / 8][4];
              am::multiply_rows<D, kPieceRows, kPart>(s, keys, part * kPart, valid, query);
              if (step.mean()) add_bias(s, bias + part * kPart);
              am::mask_scores(s, valid);
#pragma unroll
              for (int n = 0; n < kPart / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  const float p = hopper::exp2_approx(fmaf(s[n][i], scale_log2, -lse2[i / 2]));
                  s[n][i] = p * (dp[part * kPart / 8 + n][i] - delta[i / 2]);
                }
              }
              uint32_t packed[kPart / 8][2];
              am::pack(packed, s);
              am::accumulate_rows<D, kPieceRows, kPart>(dq, packed, keys, part * kPart, valid);
            }
          });
  if (!has_rows) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool valid = own_row() + half * 8 < own.rows;
    const int token = valid ? tile_token(args.shape, args.partition, own.begin + own_row() + half * 8) : 0;
    store_row<D>(tile_row(args.dq, args.shape, head, token), valid, reinterpret_cast<const float(&)[D / 2]>(dq), half,
                 args.scale);
  }
}

// Two blocks of threads on a multiprocessor.
template <int kSharedBytes>
cudaError_t launch(void (*kernel)(const Params), dim3 grid, const Params& params, cudaStream_t stream) {
  static_assert(2 * (kSharedBytes + 1024) <= 100 * 1024);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <int D>
cudaError_t launch_keys_of(const Params& params, bool means, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  const auto blocks = unsigned(s.batch * s.heads * (means ? s.mean_pieces() : s.pieces()));
  constexpr int kSharedBytes = sizeof(KeysStorage<D>);
  return means ? launch<kSharedBytes>(keys_kernel<D, true>, dim3(blocks, params.work.mean_parts), params, stream)
               : launch<kSharedBytes>(keys_kernel<D, false>, dim3(blocks), params, stream);
}

template <int D>
cudaError_t launch_rows_of(const Params& params, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  constexpr int kSharedBytes = sizeof(typename KeyWalk<D, true, TileBackwardArgs>::Storage);
  return launch<kSharedBytes>(rows_kernel<D>, dim3(unsigned(s.batch * s.heads * s.pieces())), params, stream);
}

}  // namespace

cudaError_t launch_keys_sm80(const Params& params, bool means, cudaStream_t stream) {
  return params.args.shape.head_dim == 64 ? launch_keys_of<64>(params, means, stream)
                                          : launch_keys_of<128>(params, means, stream);
}

cudaError_t launch_rows_sm80(const Params& params, cudaStream_t stream) {
  return params.args.shape.head_dim == 64 ? launch_rows_of<64>(params, stream) : launch_rows_of<128>(params, stream);
}

}  // namespace vmoba::kernels::backward_tiles
