// Backward by query tiles on sm_90a for pairs of pieces of keys (D = 128): dk and dv of up to 128 keys of a block stay
// in registers while the pieces of rows that attend the block go by, and dq is added up in global memory.
//   S^T = K Q^T, dP^T = V dO^T, P = exp2(S c - lse2), dS = P (dP - delta), dV += P^T dO, dK += dS^T Q, dQ = dS K
// Warpgroup 0 feeds by TMA. Warpgroups 1 and 2 own 64 keys each, with keys on the M side, so that P^T is a register
// operand; dS^T goes through shared memory, where dK reads its own keys' and dQ all 128. Of dQ each has half the
// columns. It is that of the piece before: it wants both warpgroups' scores, and this way they need not meet in every
// step, so that one's arithmetic hides behind the other's products.
// Groups of eight rows are the same for every pair, so dq is summed in the order of the accumulators' registers: each
// add is a whole 512-byte line of a warp, and one kernel at the end brings the sums into rows. A step has one piece of
// rows, or, where pieces are packed, 64 rows of as many pieces as that takes.
#include "attention/kernels/tile_backward.cuh"

namespace vmoba::kernels::backward_tiles {
namespace {

using C = Config<128>;

constexpr int kPairThreads = 384;
constexpr int kStages = 3;
constexpr int kMathWarps = 8;
constexpr int kProducerRegisters = 40;  // 128 * 40 + 256 * 232 = 384 * 168
constexpr int kMathRegisters = 232;
constexpr int kScoreBarrier = 1;  // named barriers kScoreBarrier + warpgroup: its own scores are written
constexpr int kKeyPanelBytes = 2 * C::kPanelBytes;
constexpr int kStepGroups = kPieceRows / kGroupRows;
constexpr int kGroupFloats = kGroupRows * C::kColumns;

// A pair of pieces of keys and the rows that attend it.
struct Item {
  int head, piece, begin, keys, part;  // no keys: no more items
  int rows, steps;
  int first, pieces;     // of rows
  const uint16_t* list;  // null: every piece from `first` on
};

struct Storage {
  alignas(1024) char k[2 * C::kPieceBytes];  // panels of 128 keys
  alignas(1024) char v[2 * C::kPieceBytes];
  alignas(1024) char q[kStages][C::kPieceBytes];
  alignas(1024) char dout[kStages][C::kPieceBytes];
  alignas(1024) char scores[2][2 * C::kPanelBytes];  // dS^T, a row of 64 columns a key
  alignas(16) float lse2[kStages][kPieceRows];
  alignas(16) float delta[kStages][kPieceRows];
  int group[kStages][kStepGroups];                  // of rows; -1: none
  float bias_gradient[2][4], added[2][kPieceRows];  // of means
  alignas(4) uint8_t attended[kStages][kPairRows];  // of means: a bit for each group whose tile attends the block
  Item item;                                        // at hand
  uint32_t never_written;                           // see keep_before_wait
  uint64_t keys_full, keys_empty, rows_full[kStages], rows_empty[kStages];
  uint64_t scores_full[2][2];  // per warpgroup and buffer
};

__device__ __forceinline__ void add_four(float* destination, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(destination), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}

template <bool kMeans>
__device__ __forceinline__ int item_count(const Params& params) {
  const TileShape& s = params.args.shape;
  return s.batch * s.heads * (kMeans ? mean_pairs(s) * params.work.mean_parts : s.key_pairs);
}

// Means are keys that all rows may see, here those of one part.
template <bool kMeans>
__device__ __forceinline__ Item item_at(const Params& params, int index) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  const int means = mean_pairs(s), heads = s.batch * s.heads;
  const Turn turn = kMeans ? Turn{index / means, index % means} : turn_of(s, s.key_pairs, index);
  const int pair = turn.number, part = turn.head / heads;
  Item item{turn.head % heads, 2 * pair, pair * kPairRows, 0, part, 0, 0, 0, s.pieces(), nullptr};
  const auto row = [&](int piece) { return __ldg(args.partition.piece_begin + piece); };
  if (kMeans) {
    const auto begin_of = [&](int part) { return int(int64_t(s.video_pieces) * part / params.work.mean_parts); };
    item.keys = min(kPairRows, s.blocks - item.begin);
    item.first = begin_of(item.part);
    item.pieces = begin_of(item.part + 1) - item.first;
  } else {
    item.piece = __ldg(args.partition.key_pair + pair);
    item.begin = row(item.piece);
    item.keys = row(__ldg(args.partition.key_pair + pair + 1)) - item.begin;
  }
  item.rows = row(item.first + item.pieces) - row(item.first);
  if (!kMeans && item.piece < s.video_pieces) {
    const int block = __ldg(args.partition.piece_block + item.piece);
    const int64_t list = int64_t(item.head) * s.blocks + block;
    item.list = args.lists.rows + list * s.pieces();
    item.pieces = __ldg(args.lists.row_count + list);
    item.rows = __ldg(args.lists.row_tokens + int64_t(item.head) * s.key_blocks() + block);
  }
  if (s.packed) item.rows = in_groups(item.rows);
  item.steps = s.packed ? (item.rows + kPieceRows - 1) / kPieceRows : item.pieces;
  return item;
}

// ---- loads: one warp
// -------------------------------------------------------------------------------------------------

template <bool kMeans>
class Feed {
 public:
  __device__ __forceinline__ Feed(const Params& params, Storage& shared)
      : params_(params), shape_(params.args.shape), shared_(shared), lane_(int(threadIdx.x) % 32) {}

  // Items one after the other. Keys are asked for when the buffers of rows are full: those are sooner free.
  __device__ __forceinline__ void run() {
    const int items = item_count<kMeans>(params_);
    int index = __shfl_sync(0xffffffffu, claim(), 0);
    for (; index < items; ++done_) {
      const int claimed = claim();  // its turn is a good while away
      item_ = item_at<kMeans>(params_, index);
      looked_up_ = 0, taken_ = 0;
      look_up();
      for (int step = 0; step < item_.steps; ++step) {
        if (step == kStages) ask_for_keys();
        load_step(step);
      }
      if (item_.steps <= kStages) ask_for_keys();
      index = __shfl_sync(0xffffffffu, claimed, 0);
    }
    item_.keys = 0;
    ask_for_keys();
  }

 private:
  // In lane 0.
  __device__ __forceinline__ int claim() const {
    return lane_ == 0 ? int(atomicAdd(params_.work.next + (kMeans ? 0 : 1), 1)) : 0;
  }

  __device__ __forceinline__ void ask_for_keys() {
    if (done_ > 0) hp::mbarrier_wait(address_of(&shared_.keys_empty), (done_ - 1) & 1);
    if (lane_ == 0) {
      shared_.item = item_;
      if (item_.keys == 0) {
        hp::mbarrier_arrive(address_of(&shared_.keys_full));
      } else {
        hp::mbarrier_arrive_expect(address_of(&shared_.keys_full), 4 * C::kPieceBytes);
        load_keys(kMeans ? &params_.mean_k_map : &params_.k_map, shared_.k);
        load_keys(kMeans ? &params_.mean_v_map : &params_.v_map, shared_.v);
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_keys(const CUtensorMap* map, const char* target) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      load_box<kKeyPanelBytes>(map, target + half * C::kPanelBytes, shared_.keys_full, item_.begin + half * kPieceRows);
  }
  template <int kPanelBytes>
  __device__ __forceinline__ void load_box(const CUtensorMap* map, const char* target, uint64_t& full, int row) const {
#pragma unroll
    for (int panel = 0; panel < C::kPanels; ++panel) {
      hp::tma_load_4d(address_of(target) + panel * kPanelBytes, map, address_of(&full), panel * hp::kPanelColumns, row,
                      item_.head % shape_.heads, item_.head / shape_.heads);
    }
  }

  // Each lane one piece of the next 32, so that no look-up stands before a load.
  __device__ __forceinline__ void look_up() {
    const int at = looked_up_ + lane_;
    looked_up_ += 32;
    ahead_ = {};
    if (at >= item_.pieces) return;
    ahead_.number = item_.list == nullptr ? item_.first + at : __ldg(item_.list + at);
    const Piece own = piece_at(params_.args.partition, ahead_.number);
    ahead_.begin = own.begin, ahead_.rows = shape_.packed ? in_groups(own.rows) : own.rows;
    if (kMeans) ahead_.tile = __ldg(params_.args.partition.piece_tile + ahead_.number);
  }
  // The next piece of the item, in all lanes.
  __device__ __forceinline__ void next_piece() {
    if (taken_ % 32 == 0) {
      at_hand_ = ahead_;
      look_up();
    }
    const int from = taken_++ % 32;
    piece_.number = __shfl_sync(0xffffffffu, at_hand_.number, from);
    piece_.begin = __shfl_sync(0xffffffffu, at_hand_.begin, from);
    piece_.rows = __shfl_sync(0xffffffffu, at_hand_.rows, from);
    if (kMeans) piece_.tile = __shfl_sync(0xffffffffu, at_hand_.tile, from);
  }

  __device__ __forceinline__ void load_step(int step) {
    const uint32_t stage = used_ % kStages;
    if (used_ >= kStages) hp::mbarrier_wait(address_of(&shared_.rows_empty[stage]), (used_ / kStages - 1) & 1);
    ++used_;
    if (step == 0) piece_.rows = 0;
    if (shape_.packed)
      load_parts(stage, min(kPieceRows, item_.rows - step * kPieceRows));
    else
      load_piece(stage);
  }

  __device__ __forceinline__ void load_statistics(uint32_t stage, int offset, int group, int rows) const {
    const int64_t from = (int64_t(item_.head) * shape_.row_groups() + group) * kGroupRows;
    const uint32_t full = address_of(&shared_.rows_full[stage]);
    hp::bulk_load(address_of(shared_.lse2[stage] + offset), params_.work.lse2 + from, rows * 4, full);
    hp::bulk_load(address_of(shared_.delta[stage] + offset), params_.work.delta + from, rows * 4, full);
  }

  __device__ __forceinline__ void load_piece(uint32_t stage) {
    next_piece();
    const int group = piece_.number * kStepGroups;
    if (lane_ < kStepGroups) shared_.group[stage][lane_] = group + lane_;
    if (kMeans) reinterpret_cast<uint32_t*>(shared_.attended[stage])[lane_] = attended_by(0xff);
    __syncwarp();
    if (lane_ == 0) {
      uint64_t& full = shared_.rows_full[stage];
      hp::mbarrier_arrive_expect(address_of(&full), 2 * C::kPieceBytes + 2 * kPieceRows * 4);
      load_box<C::kPanelBytes>(&params_.q_map, shared_.q[stage], full, piece_.begin);
      load_box<C::kPanelBytes>(&params_.dout_map, shared_.dout[stage], full, piece_.begin);
      load_statistics(stage, 0, group, kPieceRows);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_rows(uint32_t stage, int offset, int begin, int rows) const {
    uint64_t& full = shared_.rows_full[stage];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int box = kPieceRows >> i;
      if (!(rows & box)) continue;
      const int target = offset * hp::kPanelRowBytes;
      load_box<C::kPanelBytes>(i == 0 ? &params_.q_map : &params_.q_parts[i - 1], shared_.q[stage] + target, full,
                               begin);
      load_box<C::kPanelBytes>(i == 0 ? &params_.dout_map : &params_.dout_parts[i - 1], shared_.dout[stage] + target,
                               full, begin);
      begin += box, offset += box;
    }
  }

  // 64 rows of which `valid` are the item's next. Those behind the last are any others, with a log-sum-exp that makes
  // nothing of them.
  __device__ __forceinline__ void load_parts(uint32_t stage, int valid) {
    uint64_t& full = shared_.rows_full[stage];
    if (lane_ == 0) hp::mbarrier_expect(address_of(&full), 2 * C::kPieceBytes + 2 * valid * 4);
    uint32_t attended = 0;
    for (int offset = 0; offset < valid;) {
      if (piece_.rows == 0) next_piece();
      const int rows = min(valid - offset, piece_.rows), groups = rows / kGroupRows, at = lane_ - offset / kGroupRows;
      if (lane_ < kStepGroups && at >= 0 && at < groups) shared_.group[stage][lane_] = piece_.begin / kGroupRows + at;
      if (kMeans) attended |= attended_by(((1u << groups) - 1) << (offset / kGroupRows));
      if (!kMeans && lane_ == 0) {
        load_statistics(stage, offset, piece_.begin / kGroupRows, rows);
        load_rows(stage, offset, piece_.begin, rows);
      }
      piece_.begin += rows, piece_.rows -= rows;
      offset += rows;
    }
    // Those of means follow each other.
    if (kMeans && lane_ == 0) {
      load_statistics(stage, 0, (piece_.begin - valid) / kGroupRows, valid);
      load_rows(stage, 0, piece_.begin - valid, valid);
    }
    if (valid < kPieceRows) {
      if (lane_ == 0) load_rows(stage, valid, 0, kPieceRows - valid);
      for (int i = valid + lane_; i < kPieceRows; i += 32)
        shared_.lse2[stage][i] = INFINITY, shared_.delta[stage][i] = 0;
      hp::fence_async_proxy();  // the next statistics here come by bulk copies
      if (lane_ >= valid / kGroupRows && lane_ < kStepGroups) shared_.group[stage][lane_] = -1;
    }
    if (kMeans) reinterpret_cast<uint32_t*>(shared_.attended[stage])[lane_] = attended;
    __syncwarp();
    if (lane_ == 0) hp::mbarrier_arrive(address_of(&full));
  }

  // Of this lane's four means, which the piece's tile attends: `groups` in their bytes.
  __device__ __forceinline__ uint32_t attended_by(uint32_t groups) const {
    const uint8_t* mask = params_.args.lists.mask + (int64_t(item_.head) * shape_.tiles + piece_.tile) * shape_.blocks;
    uint32_t attended = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (__ldg(mask + min(item_.begin + 4 * lane_ + i, shape_.blocks - 1)) != 0) attended |= groups << (8 * i);
    }
    return attended;
  }

  struct RowPiece {
    int number, begin, rows, tile;
  };

  const Params& params_;
  const TileShape& shape_;
  Storage& shared_;
  const int lane_;
  Item item_;
  uint32_t done_ = 0, used_ = 0;  // items; steps of all items together
  int looked_up_ = 0, taken_ = 0;
  RowPiece at_hand_, ahead_;  // this lane's of 32 pieces, and of the 32 after those
  RowPiece piece_;            // what is left of the piece whose turn it is
};

// ---- products: two warpgroups
// ------------------------------------------------------------------------------------------

template <bool kMeans>
class Math {
 public:
  __device__ __forceinline__ Math(const Params& params, Storage& shared, int group)
      : params_(params), shared_(shared), group_(group), lane_(int(threadIdx.x) % 32) {
    const int row = int(threadIdx.x) % kThreads / 32 * 16 + lane_ % 16;
    scores_offset_ = group * C::kPanelBytes + hp::swizzled_offset(row, lane_ / 16);
    asm volatile("" : "+r"(scores_offset_));  // one register, not the parts of a sum
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (uint32_t done = 0;; ++done) {
      hp::mbarrier_wait(address_of(&shared_.keys_full), done & 1);
      const Item item = shared_.item;
      if (item.keys == 0) break;
      const int keys = min(max(item.keys - group_ * kPieceRows, 0), kPieceRows);
      if (keys == 0) {
        add_other_scores(item);
        arrive(shared_.keys_empty);
        continue;
      }
      float dk[C::kGradients], dv[C::kGradients];
#pragma unroll
      for (int i = 0; i < C::kGradients; ++i) dk[i] = dv[i] = 0;
      bias_gradient_ = 0;
      differentiate(item, keys, dk, dv);
      arrive(shared_.keys_empty);
      store(item, keys, dk, dv);
    }
  }

 private:
  __device__ __forceinline__ void store(const Item& item, int keys, float (&dk)[C::kGradients],
                                        float (&dv)[C::kGradients]) {
    if (kMeans) {
      const TileShape& s = params_.args.shape;
      const int64_t part_head = int64_t(item.part) * s.batch * s.heads + item.head;
      store_mean_gradients<C>(params_, part_head, item.begin + group_ * kPieceRows, keys, dk, dv);
      const float total = warpgroup_sum(bias_gradient_, shared_.bias_gradient[group_], kScoreBarrier + group_);
      if (threadIdx.x % kThreads == 0)
        params_.work.mean_dbias[part_head * s.mean_pieces() + item.piece + group_] = total;
      return;
    }
    store_key_gradients<C>(params_, item.head, item.piece + group_, item.begin + group_ * kPieceRows, keys, dk, dv);
  }
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

  // What keys add to their scores: nothing, the logarithm of what a mean stands for, or the end of all for a key of
  // another block.
  __device__ __forceinline__ void look_up_keys(const Item& item, int keys) {
    if (!kMeans) {
#pragma unroll
      for (int half = 0; half < 2; ++half) added_[half] = own_row() + half * 8 < keys ? 0.f : -INFINITY;
      return;
    }
    const TileShape& s = params_.args.shape;
    const float* bias =
        params_.args.means.bias + int64_t(item.head) * s.blocks + item.begin + group_ * kPieceRows + own_row();
    // Shared memory, because the loop has no register for it.
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = own_row() + half * 8;
      if (lane_ % 4 == 0) shared_.added[group_][key] = key < keys ? __ldg(bias + half * 8) * kLog2E : -INFINITY;
    }
    __syncwarp();
  }
  __device__ __forceinline__ float added(int half) const {
    return kMeans ? shared_.added[group_][own_row() + half * 8] : added_[half];
  }
  // P = exp2(s * scale - lse2) as bf16 pairs, zero for keys of another block.
  __device__ __forceinline__ void probabilities(uint32_t (&p)[4][4], const float (&s)[32], int stage) {
    const float scale_log2 = params_.args.scale * kLog2E;
    const float of_key[2] = {added(0), added(1)};
    uint32_t attended[2] = {0, 0};  // means of blocks that a group's tile attends take no part
    if (kMeans) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        attended[half] = shared_.attended[stage][group_ * kPieceRows + own_row() + half * 8];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float added[2] = {kMeans && (attended[0] >> j & 1) ? -INFINITY : of_key[0],
                              kMeans && (attended[1] >> j & 1) ? -INFINITY : of_key[1]};
      const float2 lse2 = *reinterpret_cast<const float2*>(&shared_.lse2[stage][8 * j + 2 * (lane_ % 4)]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = hp::exp2_approx(fmaf(s[4 * j + 2 * half], scale_log2, added[half] - lse2.x));
        const float high = hp::exp2_approx(fmaf(s[4 * j + 2 * half + 1], scale_log2, added[half] - lse2.y));
        p[j / 2][j % 2 * 2 + half] = hp::pack_bf16(low, high);
      }
    }
  }

  // dS^T = P (dP - delta) to shared memory.
  __device__ __forceinline__ void store_scores(const uint32_t (&p)[4][4], const float (&dp)[32], int stage, int slot) {
    // A row's chunks 2 k + c are at the swizzled place of chunk c, two bits of the address flipped.
    const uint32_t target = address_of(shared_.scores[slot]) + scores_offset_;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t ds[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = 2 * k + i / 2, at = 4 * j + 2 * (i % 2);
        const float2 delta = *reinterpret_cast<const float2*>(&shared_.delta[stage][8 * j + 2 * (lane_ % 4)]);
        const float low = __uint_as_float(p[k][i] << 16) * (dp[at] - delta.x);
        const float high = __uint_as_float(p[k][i] & 0xffff0000u) * (dp[at + 1] - delta.y);
        if (kMeans) bias_gradient_ += low + high;
        ds[i] = hp::pack_bf16(low, high);
      }
      hp::stmatrix_x4(target ^ uint32_t(k << 5), ds[0], ds[1], ds[2], ds[3]);
      // Added up at once: later, the terms take registers.
      if (kMeans) hp::keep_before_wait(bias_gradient_, address_of(&shared_.never_written));
    }
  }

  // This warp's two groups of rows, this warpgroup's half of the columns.
  __device__ __forceinline__ void add_dq(const float (&dq)[32], int head, const int (&groups)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (groups[half] < 0) continue;
      float* sums = params_.work.dq + (int64_t(head) * params_.args.shape.row_groups() + groups[half]) * kGroupFloats;
      sums += group_ * (kGroupFloats / 2) + lane_ * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * i + 2 * half;
        add_four(sums + i * 128, dq[at], dq[at + 1], dq[at + 4], dq[at + 5]);
      }
    }
  }

  // Of a step, all items counted together.
  __device__ __forceinline__ void wait_other_scores(uint32_t step) {
    hp::mbarrier_wait(address_of(&shared_.scores_full[group_ ^ 1][step % 2]), step / 2 & 1);
  }

  __device__ __forceinline__ void wait_rows(uint32_t step) {
    hp::mbarrier_wait(address_of(&shared_.rows_full[step % kStages]), step / kStages & 1);
  }

  // The order keeps the tensor cores fed: dP before the exponentials, dV before dS is computed, S of the next piece
  // before dq is added. No wgmma is in flight at the loop's end: ptxas would serialise them all.
  __device__ __forceinline__ void differentiate(const Item& item, int keys, float (&dk)[C::kGradients],
                                                float (&dv)[C::kGradients]) {
    float s[32];
    look_up_keys(item, keys);
    wait_rows(step_);
    multiply_keys(s, shared_.k, shared_.q[step_ % kStages]);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(s);
    int before[2] = {-1, -1};  // this warp's groups of rows of the step before
    const uint32_t start = step_, end = start + item.steps;
#pragma unroll 1
    for (; step_ != end; ++step_) {
      const uint32_t stage = step_ % kStages, slot = step_ % 2, next = (step_ + 1) % kStages;
      float dp[32], dq[32];
      multiply_keys(dp, shared_.v, shared_.dout[stage]);
      uint32_t p[4][4];
      probabilities(p, s, stage);
      hp::wgmma_fence();
      accumulate<C>(dv, p, address_of(shared_.dout[stage]));
      hp::wgmma_commit();
      // The other warpgroup's part of the step before is there, and it no longer reads this step's buffer.
      if (step_ != start) wait_other_scores(step_ - 1);
      hp::wgmma_wait<1>();  // dP
      hp::wgmma_fence_operand(dp);
      store_scores(p, dp, stage, slot);
      hp::fence_async_proxy();
      multiply_scores(dq, slot ^ 1);  // of no use, and not added, in the first step
      hp::named_barrier_sync(kScoreBarrier + group_, kThreads);
      accumulate_dk(dk, slot, shared_.q[stage]);
      hp::wgmma_wait<2>();  // dV
      hp::wgmma_fence_operand(dv);
      const int2 groups = *reinterpret_cast<const int2*>(shared_.group[stage] + int(threadIdx.x) % kThreads / 32 * 2);
      // Behind the last piece this multiplies whatever the other buffer holds; nobody reads the result.
      if (step_ + 1 != end) wait_rows(step_ + 1);
      multiply_keys(s, shared_.k, shared_.q[next]);
      hp::wgmma_wait<2>();  // dQ
      hp::wgmma_fence_operand(dq);
      arrive(shared_.scores_full[group_][slot]);
      if (step_ != start) add_dq(dq, item.head, before);
      before[0] = groups.x, before[1] = groups.y;
      hp::wgmma_wait<1>();  // dK
      hp::wgmma_fence_operand(dk);
      arrive(shared_.rows_empty[stage]);
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(s);
    }
    float dq[32];
    wait_other_scores(end - 1);
    multiply_scores(dq, (end - 1) % 2);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(dq);
    add_dq(dq, item.head, before);
  }

  // A warpgroup without keys has its columns of dq alone to do. Its own scores are zero, from its first two steps on:
  // the other warpgroup may read the item's before until it has its part of the first.
  __device__ __forceinline__ void add_other_scores(const Item& item) {
    const uint32_t start = step_, end = start + item.steps;
#pragma unroll 1
    for (; step_ != end; ++step_) {
      const uint32_t stage = step_ % kStages, slot = step_ % 2;
      wait_rows(step_);
      const int2 own = *reinterpret_cast<const int2*>(shared_.group[stage] + int(threadIdx.x) % kThreads / 32 * 2);
      const int groups[2] = {own.x, own.y};
      arrive(shared_.rows_empty[stage]);
      if (step_ - start < 2) clear_scores(slot);
      arrive(shared_.scores_full[group_][slot]);
      wait_other_scores(step_);
      float dq[32];
      multiply_scores(dq, slot);
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(dq);
      add_dq(dq, item.head, groups);
    }
  }
  __device__ __forceinline__ void clear_scores(uint32_t slot) {
    uint4* own = reinterpret_cast<uint4*>(shared_.scores[slot] + group_ * C::kPanelBytes);
    for (int i = int(threadIdx.x) % kThreads; i < C::kPanelBytes / 16; i += kThreads) own[i] = make_uint4(0, 0, 0, 0);
    hp::fence_async_proxy();
    hp::named_barrier_sync(kScoreBarrier + group_, kThreads);
  }

  const Params& params_;
  Storage& shared_;
  const int group_, lane_;
  uint32_t scores_offset_;  // of what this lane stores
  uint32_t step_ = 0;       // all items counted together
  float added_[2], bias_gradient_;
};

template <bool kMeans>
__global__ void __launch_bounds__(kPairThreads, 1) pairs_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
  if (threadIdx.x == 0) {
    hp::mbarrier_init_each(1, shared.keys_full);
    hp::mbarrier_init_each(kMathWarps, shared.keys_empty);
    hp::mbarrier_init_each(1, shared.rows_full);
    hp::mbarrier_init_each(kMathWarps, shared.rows_empty);
    hp::mbarrier_init_each(kMathWarps / 2, shared.scores_full);
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hp::register_decrease<kProducerRegisters>();
    if (warp == 0) Feed<kMeans>(params, shared).run();
  } else {
    hp::register_increase<kMathRegisters>();
    Math<kMeans>(params, shared, warp / 4 - 1).run();
  }
#endif
}

// The sums of dq, in the accumulators' order, to the original order.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Params params) {
  const TileBackwardArgs& args = params.args;
  const TileShape& s = args.shape;
  const int piece = blockIdx.x, head = blockIdx.y;
  const Piece own = piece_at(args.partition, piece);
  float acc[C::kGradients] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int group = (own_row() + half * 8) / kGroupRows;
    if (group * kGroupRows >= own.rows) continue;
    const int64_t number = int64_t(head) * s.row_groups() + first_group(s, piece, own) + group;
    const float4* sums = reinterpret_cast<const float4*>(params.work.dq + number * kGroupFloats);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 v = __ldcs(sums + i * 32 + threadIdx.x % 32);
      const int at = 8 * i + 2 * half;
      acc[at] = v.x, acc[at + 1] = v.y, acc[at + 4] = v.z, acc[at + 5] = v.w;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = own_row() + half * 8;
    const bool valid = row < own.rows;
    const int token = valid ? tile_token(s, args.partition, own.begin + row) : 0;
    store_row<C::kColumns>(tile_row(args.dq, s, head, token), valid, acc, half, args.scale);
  }
}

template <bool kMeans>
cudaError_t launch(const Params& params, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  const int64_t items = int64_t(s.batch) * s.heads * (kMeans ? mean_pairs(s) * params.work.mean_parts : s.key_pairs);
  return launch_persistent<Storage>(pairs_kernel<kMeans>, items, kPairThreads, params, stream);
}

}  // namespace

cudaError_t launch_pairs(const Params& params, cudaStream_t stream) {
  const TileShape& s = params.args.shape;
  const cudaError_t error = launch<false>(params, stream);
  if (error != cudaSuccess) return error;
  finish_kernel<<<dim3(unsigned(s.pieces()), unsigned(s.batch * s.heads)), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

cudaError_t launch_mean_pairs(const Params& params, cudaStream_t stream) {
  return launch<true>(params, stream);
}

}  // namespace vmoba::kernels::backward_tiles
