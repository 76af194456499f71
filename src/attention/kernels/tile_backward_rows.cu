// dq of the backward by query tiles on sm_90a: the sums of one piece of rows stay in registers while the pieces of keys
// that its tile attends go by, then the means of the blocks that it does not attend.
//   S = Q K^T, dP = dO V^T, P = exp2(S c + bias - lse2), dS = P (dP - delta), dQ += dS K
// with rows on the M side, so that dS is a register operand. Persistent blocks of threads; two warpgroups go through
// pieces of rows, each at its own pace with a ring of its own; warpgroup 0 feeds by TMA. S and dP of the next piece are
// computed while this one's dS is made. Values and keys come through a ring in the order V0 K0 V1 K1 ...: of a step the
// values are free one step before the keys, which dQ needs, so five buffers are enough for loads that are a whole step
// ahead.
#include "attention/kernels/ring.cuh"
#include "attention/kernels/tile_backward.cuh"

namespace vmoba::kernels::backward_tiles {
namespace {

constexpr int kRowThreads = 384;
constexpr int kGroups = 2;
constexpr int kSlots = 5;
constexpr int kKnownSteps = 4;
constexpr int kProducerRegisters = 24;  // 128 * 24 + 256 * 240 = 384 * 168, the uniform share at launch
constexpr int kMathRegisters = 240;

// What one piece of rows needs.
template <class C>
struct Ring {
  alignas(1024) char q[C::kPieceBytes];
  alignas(1024) char dout[C::kPieceBytes];
  alignas(1024) char buffer[kSlots][C::kPieceBytes];
};
struct Item {
  int head, piece, tile, pieces, total;  // pieces of keys, and with those of means; total 0: no more items
  const uint16_t* list;                  // null: every piece
};
struct Known {
  alignas(16) float bias[kKnownSteps][kPieceRows];  // of means
  int valid[kKnownSteps];                           // keys of a step's piece; -1: means
  Item item;                                        // at hand
  uint64_t rows_full, rows_empty, full[kSlots], empty[kSlots];
};
template <class C>
struct Storage {
  Ring<C> ring[kGroups];
  Known known[kGroups];
};

__device__ __forceinline__ Item item_of(const TileBackwardArgs& args, int head, int piece) {
  const TileShape& s = args.shape;
  if (piece >= s.video_pieces) {
    return {head, piece, -1, s.pieces(), s.pieces(), nullptr};
  }
  const int tile = __ldg(args.partition.piece_tile + piece);
  const int64_t list = int64_t(head) * s.tiles + tile;
  const int pieces = __ldg(args.lists.key_count + list);
  return {head,
          piece,
          tile,
          pieces,
          pieces + (args.means.keys != nullptr ? s.mean_pieces() : 0),
          args.lists.keys + list * s.pieces()};
}

// ---- loads: a warp a piece of rows
// -------------------------------------------------------------------------------------

template <class C>
class Feed {
 public:
  __device__ __forceinline__ Feed(const Params& params, Ring<C>& ring, Known& known)
      : params_(params), ring_(ring), known_(known), lane_(int(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run() {
    const TileShape& s = params_.args.shape;
    const int items = s.batch * s.heads * s.pieces();
    int index = __shfl_sync(0xffffffffu, claim(), 0);
    for (; index < items; ++done_) {
      const int claimed = claim();  // its turn is a good while away
      // A head's text first, as turn_of() has it of all heads, which takes registers that are not there.
      item_ = item_of(params_.args, index / s.pieces(), s.pieces() - 1 - index % s.pieces());
      feed_steps();
      index = __shfl_sync(0xffffffffu, claimed, 0);
    }
    item_.total = 0;
    ask_for_rows();
  }

 private:
  // In lane 0.
  __device__ __forceinline__ int claim() const { return lane_ == 0 ? int(atomicAdd(params_.work.next, 1)) : 0; }

  __device__ __forceinline__ void ask_for_rows() {
    if (done_ > 0) hp::mbarrier_wait(address_of(&known_.rows_empty), (done_ - 1) & 1);
    if (lane_ == 0) {
      known_.item = item_;
      if (item_.total == 0) {
        hp::mbarrier_arrive(address_of(&known_.rows_full));
      } else {
        const int row = piece_at(params_.args.partition, item_.piece).begin;
        hp::mbarrier_arrive_expect(address_of(&known_.rows_full), 2 * C::kPieceBytes);
        load(&params_.q_map, ring_.q, known_.rows_full, row);
        load(&params_.dout_map, ring_.dout, known_.rows_full, row);
      }
    }
    __syncwarp();
  }

  // Rows are asked for when the ring is full: it is sooner free than their buffers.
  __device__ __forceinline__ void feed_steps() {
    look_up_means(0);
    Piece at_hand, ahead = look_up(lane_);  // this lane's of 32 pieces, and of the 32 after those
    for (int step = 0; step < item_.total; ++step) {
      if (step == kSlots / 2) ask_for_rows();
      if (step % 32 == 0 && step < item_.pieces) {
        at_hand = ahead;
        ahead = look_up(step + 32 + lane_);
      }
      const bool mean = step >= item_.pieces;
      int row = __shfl_sync(0xffffffffu, at_hand.begin, step % 32);
      int valid = __shfl_sync(0xffffffffu, at_hand.rows, step % 32);
      if (mean) row = (step - item_.pieces) * kPieceRows, valid = -1;
      wait_empty();
      describe(row, valid);
      load_use(mean ? &params_.mean_v_map : &params_.v_map, row);
      wait_empty();
      load_use(mean ? &params_.mean_k_map : &params_.k_map, row);
    }
    if (item_.total <= kSlots / 2) ask_for_rows();
  }

  __device__ __forceinline__ Piece look_up(int step) const {
    if (step >= item_.pieces) return {};
    return piece_at(params_.args.partition, item_.list == nullptr ? step : __ldg(item_.list + step));
  }
  __device__ __forceinline__ void load(const CUtensorMap* map, const char* target, uint64_t& full, int row) const {
    load_piece<C>(map, target, full, row, item_.head, params_.args.shape.heads);
  }
  __device__ __forceinline__ void wait_empty() const {
    if (use_ >= kSlots) hp::mbarrier_wait(address_of(&known_.empty[use_ % kSlots]), (use_ / kSlots - 1) & 1);
  }
  __device__ __forceinline__ void load_use(const CUtensorMap* map, int row) {
    const uint32_t slot = use_++ % kSlots;
    uint64_t& full = known_.full[slot];
    if (lane_ == 0) {
      hp::mbarrier_arrive_expect(address_of(&full), C::kPieceBytes);
      load(map, ring_.buffer[slot], full, row);
    }
    __syncwarp();
  }

  // Of the means from `first` on; their turn is a good while away.
  __device__ __forceinline__ void look_up_means(int first) {
    const TileBackwardArgs& args = params_.args;
    const int blocks = args.shape.blocks;
    if (args.means.keys == nullptr || item_.tile < 0) return;
#pragma unroll
    for (int i = 0; i < kMeansOfLane; ++i) {
      const int mean = min(first + lane_ + 32 * i, blocks - 1);
      attended_[i] = __ldg(args.lists.mask + (int64_t(item_.head) * args.shape.tiles + item_.tile) * blocks + mean);
      bias_[i] = __ldg(args.means.bias + int64_t(item_.head) * blocks + mean);
    }
  }
  // Means of blocks that the tile attends take no part; the others bring the logarithm of what they stand for.
  __device__ __forceinline__ void describe(int row, int valid) {
    const uint32_t step = described_++ % kKnownSteps;
    if (lane_ == 0) known_.valid[step] = valid;
    if (valid < 0) {
#pragma unroll
      for (int i = 0; i < kMeansOfLane; ++i) {
        const bool enters = row + lane_ + 32 * i < params_.args.shape.blocks && attended_[i] == 0;
        known_.bias[step][lane_ + 32 * i] = enters ? bias_[i] * params_.inverse_scale : -INFINITY;
      }
      look_up_means(row + kPieceRows);
    }
    __syncwarp();
  }

  const Params& params_;
  Ring<C>& ring_;
  Known& known_;
  const int lane_;
  Item item_;
  uint32_t done_ = 0, use_ = 0, described_ = 0;  // items; of the ring and of what is known of steps, all items together
  static constexpr int kMeansOfLane = kPieceRows / 32;
  uint8_t attended_[kMeansOfLane];  // of the step of means to come
  float bias_[kMeansOfLane];
};

// ---- products: a warpgroup a piece of rows
// -----------------------------------------------------------------------------

template <class C>
class Math {
 public:
  __device__ __forceinline__ Math(const Params& params, Ring<C>& ring, Known& known)
      : params_(params), ring_(ring), known_(known) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (uint32_t done = 0;; ++done) {
      hp::mbarrier_wait(address_of(&known_.rows_full), done & 1);
      item_ = known_.item;
      if (item_.total == 0) break;
      float dq[C::kGradients];
#pragma unroll
      for (int i = 0; i < C::kGradients; ++i) dq[i] = 0;
      differentiate_all(dq);
      __syncwarp();
      if (threadIdx.x % 32 == 0) hp::mbarrier_arrive(address_of(&known_.rows_empty));
      store_rows(dq);
    }
  }

 private:
  __device__ __forceinline__ void differentiate_all(float (&dq)[C::kGradients]) {
    const int64_t padded = (int64_t(item_.head) * params_.args.shape.pieces() + item_.piece) * kPieceRows + own_row();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lse2_[half] = __ldg(params_.work.lse2 + padded + half * 8);
      delta_[half] = __ldg(params_.work.delta + padded + half * 8);
    }
    float s[2][32], dp[2][32];
    issue_scores(s[0], dp[0], true);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(s[0]);
    hp::wgmma_fence_operand(dp[0]);
    release(use_);
#pragma unroll 1
    for (int step = 0; step < item_.total; step += 2) {
      differentiate(step, dq, s[0], dp[0], s[1], dp[1]);
      if (step + 1 == item_.total) break;
      differentiate(step + 1, dq, s[1], dp[1], s[0], dp[0]);
    }
  }

  __device__ __forceinline__ void differentiate(int step, float (&dq)[C::kGradients], float (&s)[32], float (&dp)[32],
                                                float (&next_s)[32], float (&next_dp)[32]) {
    const uint32_t use = use_;
    const bool last = step + 1 == item_.total;
    use_ += 2;
    issue_scores(next_s, next_dp, !last);
    add_known(s, known_step_++ % kKnownSteps);
    const float scale_log2 = params_.args.scale * kLog2E;
    uint32_t ds[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int half = i % 2;
      float x[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float p = hp::exp2_approx(fmaf(s[2 * i + j], scale_log2, -lse2_[half]));
        x[j] = p * (dp[2 * i + j] - delta_[half]);
      }
      ds[i / 4][i % 4] = hp::pack_bf16(x[0], x[1]);
    }
    hp::wgmma_fence();
    accumulate<C>(dq, ds, address_of(ring_.buffer[(use + 1) % kSlots]));
    hp::wgmma_commit();
    hp::wgmma_wait<1>();
    hp::wgmma_fence_operand(next_s);
    hp::wgmma_fence_operand(next_dp);
    if (!last) release(use + 2);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(dq);
    release(use + 1);
  }

  __device__ __forceinline__ uint32_t loaded(uint32_t use, bool there) {
    if (there) hp::mbarrier_wait(address_of(&known_.full[use % kSlots]), use / kSlots & 1);
    return address_of(ring_.buffer[use % kSlots]);
  }
  __device__ __forceinline__ void release(uint32_t use) {
    if (threadIdx.x % 32 == 0) hp::mbarrier_arrive(address_of(&known_.empty[use % kSlots]));
  }
  // Of the step whose values are the ring's use `use_`. Nothing was loaded for a step that is not there; what the
  // buffers hold then is multiplied and never read.
  __device__ __forceinline__ void issue_scores(float (&s)[32], float (&dp)[32], bool there) {
    const uint32_t values = loaded(use_, there), keys = loaded(use_ + 1, there);
    hp::wgmma_fence();
    multiply_rows<C>(s, address_of(ring_.q), keys);
    multiply_rows<C>(dp, address_of(ring_.dout), values);
    hp::wgmma_commit();
  }

  // The bias of means; keys behind a piece's end are another's.
  __device__ __forceinline__ void add_known(float (&s)[32], uint32_t known) {
    const int valid = known_.valid[known], column = threadIdx.x % 4 * 2;
    if (valid >= kPieceRows) return;
    if (valid < 0) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 added = *reinterpret_cast<const float2*>(known_.bias[known] + j * 8 + column);
        s[4 * j] += added.x, s[4 * j + 1] += added.y, s[4 * j + 2] += added.x, s[4 * j + 3] += added.y;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + i % 2 + column >= valid) s[i] = -INFINITY;
    }
  }

  __device__ __forceinline__ void store_rows(const float (&dq)[C::kGradients]) const {
    const TileBackwardArgs& args = params_.args;
    const Piece own = piece_at(args.partition, item_.piece);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = own_row() + half * 8;
      const bool valid = row < own.rows;
      const int token = valid ? tile_token(args.shape, args.partition, own.begin + row) : 0;
      store_row<C::kColumns>(tile_row(args.dq, args.shape, item_.head, token), valid, dq, half, args.scale);
    }
  }

  const Params& params_;
  Ring<C>& ring_;
  Known& known_;
  Item item_;
  uint32_t use_ = 0, known_step_ = 0;  // of the ring and of what is known of steps, all items together
  float lse2_[2], delta_[2];
};

template <class C>
__global__ void __launch_bounds__(kRowThreads, 1) rows_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<C>& shared = *reinterpret_cast<Storage<C>*>(shared_bytes);
  if (threadIdx.x == 0) {
    for (Known& known : shared.known) {
      hp::mbarrier_init_each(1, known.rows_full);
      hp::mbarrier_init_each(kThreads / 32, known.rows_empty);
      hp::mbarrier_init_each(1, known.full);
      hp::mbarrier_init_each(kThreads / 32, known.empty);
    }
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hp::register_decrease<kProducerRegisters>();
    if (warp < kGroups) Feed<C>(params, shared.ring[warp], shared.known[warp]).run();
  } else {
    hp::register_increase<kMathRegisters>();
    Math<C>(params, shared.ring[warp / 4 - 1], shared.known[warp / 4 - 1]).run();
  }
#endif
}

template <class C>
cudaError_t launch(const Params& params, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  const int64_t items = int64_t(s.batch) * s.heads * s.pieces();
  return launch_persistent<Storage<C>>(rows_kernel<C>, (items + 1) / 2, kRowThreads, params, stream);
}

}  // namespace

template <int D>
cudaError_t launch_rows(const Params& params, cudaStream_t stream) {
  return launch<Config<D>>(params, stream);
}

template cudaError_t launch_rows<64>(const Params& params, cudaStream_t stream);
template cudaError_t launch_rows<128>(const Params& params, cudaStream_t stream);

}  // namespace vmoba::kernels::backward_tiles
