// Main kernel of the backward on sm_90a: dk and dv of one 128-key tile stay in registers while the list of rows that
// attend it goes by in tiles of kRows gathered rows.
//
// Persistent CTAs of four warpgroups take key tiles from a counter. Warpgroup 0 gathers q and dout rows with cp.async
// (TMA has no row gather on this architecture); its first lane also loads K and V by TMA and fetches work. Warpgroup 1
// adds finished dq rows to the sums in global memory. Warpgroups 2 and 3 own 64 keys each and compute
//   S^T = K Q^T, dP^T = V dO^T, P = exp2(S c - lse2), dS = P (dP - delta), dV += P^T dO, dK += dS^T Q
// with keys on the M side, so that P^T is a register operand; dS^T goes through shared memory, where dK and dQ = dS K
// read it. dQ is staged in shared memory so that one warp adds a whole row at once, the fastest of the measured ways.
//
// All tiles are the 128-byte-swizzled panels of hopper.cuh.
#pragma once
#include <type_traits>

#include "attention/kernels/backward.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/ring.cuh"

namespace vmoba::kernels::backward_sm90 {

constexpr int kSlots = 2;
constexpr int kDqRowSlots = 4;  // tiles between a gather and the add of its dq

template <int kColumns_>
struct Tile {
  static constexpr int kColumns = kColumns_;                  // D
  static constexpr int kRows = kColumns == 128 ? 64 : 128;    // rows of a tile: 64-row tiles of D = 64 feed too little
  static constexpr int kRowTileBytes = kRows * kColumns * 2;  // q or dout
  static constexpr int kKeyTileBytes = kBackwardKeys * kColumns * 2;
  static constexpr int kScoreBytes = kBackwardKeys * kRows * 2;  // dS^T
  static constexpr int kRowPanelBytes = kRows * hopper::kPanelRowBytes;
  static constexpr int kKeyPanelBytes = kBackwardKeys * hopper::kPanelRowBytes;
  // Eight words beyond a row: the float2 stores of four rows of accumulators then hit all 32 banks once.
  static constexpr int kDqPitch = kColumns * 4 + 32;
};

template <class C>
struct alignas(1024) SharedStorage {
  uint8_t k[C::kKeyTileBytes];
  uint8_t v[C::kKeyTileBytes];
  uint8_t q[kSlots][C::kRowTileBytes];
  uint8_t dout[kSlots][C::kRowTileBytes];
  uint8_t scores[kSlots][C::kScoreBytes];
  alignas(16) uint8_t dq[C::kRows * C::kDqPitch];
  alignas(16) float lse2[kSlots][C::kRows];
  alignas(16) float delta[kSlots][C::kRows];
  alignas(16) int32_t dq_rows[kDqRowSlots][C::kRows];  // of the tiles whose dq is not added yet
  int32_t parts_done[2];                               // of a split tile, before this part; per math warpgroup
  KeyTile item[kSlots];
  uint64_t q_full[kSlots], q_empty[kSlots];
  uint64_t dout_full[kSlots], dout_empty[kSlots];
  uint64_t keys_full, keys_empty;
  uint64_t dq_full, dq_empty;
  uint64_t dq_rows_full[kDqRowSlots];
  uint64_t scores_full[2][kSlots];  // per math warpgroup
  uint64_t item_full[kSlots], item_empty[kSlots];
};

constexpr int kThreads = 512;
constexpr int kGatherWarps = 4;
constexpr int kAddWarps = 4;
constexpr int kMmaWarps = 8;
constexpr int kScoreBarrier = 1;  // named barriers kScoreBarrier + warpgroup: its own scores are written
// 128 * (40 + 24) + 256 * 224 = 512 * 128, all there is: more would wait for ever.
constexpr int kGatherRegisters = 40;
constexpr int kAddRegisters = 24;
constexpr int kMmaRegisters = 224;

// Registers are short, so one counter serves all rings that advance together: that of the row tiles q, dout, scores, dq
// and its rows, that of the items keys too.
using Position = RingPosition<kSlots>;
using DqRowPosition = RingPosition<kDqRowSlots>;
using SinglePosition = RingPosition<1>;  // dq and keys

// Keeps a value in its register: where registers are short the compiler would rather read the thread's number again
// and again, with the latency of a special register in front of every use.
__device__ __forceinline__ void keep(int& value) {
  asm volatile("" : "+r"(value));
}
__device__ __forceinline__ void keep(const char*& pointer) {
  asm volatile("" : "+l"(pointer));
}

__device__ __forceinline__ void cp_async_4(uint32_t destination, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(destination), "l"(source) : "memory");
}

__device__ __forceinline__ void add_four(float* destination, float4 v) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(destination), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w));
}

__device__ __forceinline__ void add_fixed(int64_t* destination, float value, float factor) {
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;\n" ::"l"(destination), "l"(__float2ll_rn(value * factor))
               : "memory");
}

// Key tile number `count` of this CTA: every warp waits for it once, reads it, and lets it go.
template <class S>
__device__ __forceinline__ const KeyTile& wait_item(S& shared, uint32_t count) {
  const Position at{count};
  hopper::mbarrier_wait(barrier(shared.item_full[at.slot()]), at.phase());
  return shared.item[at.slot()];
}

template <class S>
__device__ __forceinline__ void release_item(S& shared, uint32_t count) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(barrier(shared.item_empty[Position{count}.slot()]));
}

template <class C>
__device__ __forceinline__ int row_tiles(const KeyTile& item) {
  return max(1, (item.rows + C::kRows - 1) / C::kRows);
}

// How four warps share the rows of a tile: eight lanes for each 128-byte line of a row, a group of lanes for eight rows
// one after the other.
template <class C>
struct Share {
  static constexpr int kPanels = C::kColumns / 64;
  static constexpr int kOwnRows = C::kRows / 4;
  static constexpr int kGroupRows = 8;
  static constexpr int kGroupLanes = 8 * kPanels;
  static_assert(kGroupRows * 32 / kGroupLanes == kOwnRows);
};

// ---- gather --------------------------------------------------------------------------------------------------------

// What one warp does for its share of every tile's rows; thread 0 also loads keys and fetches work. Every lane loads
// the tokens of its rows with two wide loads, so that no shuffle's latency stands before a copy.
template <class C>
class Gather {
 public:
  using S = SharedStorage<C>;
  __device__ __forceinline__ Gather(S& shared, const BackwardProblem& problem, const CUtensorMap& k_map,
                                    const CUtensorMap& v_map)
      : shared_(shared),
        problem_(problem),
        k_map_(k_map),
        v_map_(v_map),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        target_(lane_ / 8 % kPanels * C::kRowPanelBytes + group_row() * hopper::kPanelRowBytes + lane_ % 8 * 16) {
    keep(target_);
  }

  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0) publish_item(0);
    for (uint32_t count = 0;; ++count) {
      const KeyTile item = wait_item(shared_, count);
      if (item.keys == 0) break;
      produce(item, count);
    }
  }

 private:
  static constexpr int kPanels = Share<C>::kPanels, kOwnRows = Share<C>::kOwnRows;
  static constexpr int kGroupRows = Share<C>::kGroupRows, kGroupLanes = Share<C>::kGroupLanes;

  __device__ __forceinline__ void publish_item(uint32_t count) {
    const Position at{count};
    hopper::mbarrier_wait(barrier(shared_.item_empty[at.slot()]), at.phase() ^ 1);
    const int next = atomicAdd(problem_.next_item, 1);
    KeyTile item;
    if (next < *problem_.item_count) item = problem_.items[next];
    shared_.item[at.slot()] = item;
    hopper::mbarrier_arrive(barrier(shared_.item_full[at.slot()]));
  }

  __device__ __forceinline__ int group_row() const { return warp_ * kOwnRows + lane_ / kGroupLanes * kGroupRows; }

  // The pad slots behind a list name valid rows, which then get statistics that make their probabilities zero.
  __device__ __forceinline__ void load_tokens(const int32_t* rows, int row_count, int first) {
    if (row_count == 0) return;
    const int4* source = reinterpret_cast<const int4*>(rows + first + group_row());
    const int4 low = __ldg(source), high = __ldg(source + 1);
    tokens_[0] = low.x, tokens_[1] = low.y, tokens_[2] = low.z, tokens_[3] = low.w;
    tokens_[4] = high.x, tokens_[5] = high.y, tokens_[6] = high.z, tokens_[7] = high.w;
    const int row = first + warp_ * kOwnRows + lane_ % kOwnRows;
    stats_entry_ = row < row_count ? __ldg(rows + row) : problem_.tokens;
  }

  __device__ __forceinline__ void produce(const KeyTile& item, uint32_t count) {
    const int32_t* rows = problem_.lists.row + item.first_slot;
    const int head_index = item.sample * problem_.shape.heads + item.head;
    const int lane_offset = lane_ / 8 % kPanels * hopper::kPanelRowBytes + lane_ % 8 * 16;
    const char* q = reinterpret_cast<const char*>(row_pointer(problem_.q, item.sample, item.head, 0)) + lane_offset;
    keep(q);
    const char* dout =
        reinterpret_cast<const char*>(row_pointer(problem_.dout, item.sample, item.head, 0)) + lane_offset;
    keep(dout);
    const RowStats* stats = problem_.stats + int64_t(head_index) * (problem_.tokens + 1);
    stats_entry_ = problem_.tokens;
#pragma unroll
    for (int i = 0; i < kGroupRows; ++i) tokens_[i] = 0;
    load_tokens(rows, item.rows, 0);
    const int end = row_tiles<C>(item) * C::kRows;
    for (int first = 0; first < end; first += C::kRows) {
      const int slot = Position{tile_}.slot();
      const uint32_t empty_phase = Position{tile_}.phase() ^ 1;

      hopper::mbarrier_wait(barrier(shared_.dout_empty[slot]), empty_phase);
      gather(hopper::smem_address(shared_.dout[slot]), dout, problem_.dout_row_bytes);
      hopper::cp_async_arrive(barrier(shared_.dout_full[slot]));

      hopper::mbarrier_wait(barrier(shared_.q_empty[slot]), empty_phase);
      gather_stats(stats, slot);
      gather(hopper::smem_address(shared_.q[slot]), q, problem_.q_row_bytes);
      hopper::cp_async_arrive(barrier(shared_.q_full[slot]));

      // Their slots are free: the adds of four tiles before are done, or q's buffer could not be empty.
      if (lane_ % 8 == 0 && lane_ / 8 % kPanels == 0) remember_rows(head_index * problem_.tokens);
      __syncwarp();
      if (lane_ == 0) hopper::mbarrier_arrive(barrier(shared_.dq_rows_full[DqRowPosition{tile_}.slot()]));
      if (first + C::kRows < end) load_tokens(rows, item.rows, first + C::kRows);
      ++tile_;
      if (first == 0) {
        if (threadIdx.x == 0) load_keys(count);
        release_item(shared_, count);
        if (threadIdx.x == 0) publish_item(count + 1);
        __syncwarp();
      }
    }
  }

  __device__ __forceinline__ void remember_rows(int first_row) {
    int4* target = reinterpret_cast<int4*>(&shared_.dq_rows[DqRowPosition{tile_}.slot()][group_row()]);
    target[0] =
        make_int4(first_row + tokens_[0], first_row + tokens_[1], first_row + tokens_[2], first_row + tokens_[3]);
    target[1] =
        make_int4(first_row + tokens_[4], first_row + tokens_[5], first_row + tokens_[6], first_row + tokens_[7]);
  }

  __device__ __forceinline__ void load_keys(uint32_t count) {
    const KeyTile& item = shared_.item[Position{count}.slot()];
    hopper::mbarrier_wait(barrier(shared_.keys_empty), SinglePosition{count}.phase() ^ 1);
    const uint32_t full = barrier(shared_.keys_full);
    hopper::mbarrier_arrive_expect(full, 2 * C::kKeyTileBytes);
#pragma unroll
    for (int panel = 0; panel < C::kColumns / 64; ++panel) {
      hopper::tma_load_4d(hopper::smem_address(shared_.k) + panel * C::kKeyPanelBytes, &k_map_, full, panel * 64,
                          item.key_start, item.head, item.sample);
      hopper::tma_load_4d(hopper::smem_address(shared_.v) + panel * C::kKeyPanelBytes, &v_map_, full, panel * 64,
                          item.key_start, item.head, item.sample);
    }
  }

  // Each eight lanes fill one line of the tile, so that neither side of the copy has conflicts.
  __device__ __forceinline__ void gather(uint32_t tile, const char* lane_source, uint32_t row_bytes) const {
    const uint32_t lane_target = tile + target_;
#pragma unroll
    for (int i = 0; i < kGroupRows; ++i) {
      hopper::cp_async_16((lane_target ^ (i << 4)) + i * hopper::kPanelRowBytes,
                          lane_source + uint64_t(uint32_t(tokens_[i])) * row_bytes);
    }
  }

  __device__ __forceinline__ void gather_stats(const RowStats* stats, int slot) const {
    const int row = warp_ * kOwnRows + lane_ % kOwnRows;
    const RowStats* entry = stats + stats_entry_;
    if (kOwnRows == 32 || lane_ < kOwnRows) cp_async_4(hopper::smem_address(&shared_.lse2[slot][row]), &entry->lse2);
    if (kOwnRows == 32 || lane_ >= kOwnRows) cp_async_4(hopper::smem_address(&shared_.delta[slot][row]), &entry->delta);
  }

  S& shared_;
  const BackwardProblem& problem_;
  const CUtensorMap& k_map_;
  const CUtensorMap& v_map_;
  const int warp_, lane_;
  uint32_t tile_ = 0;       // row tiles so far, over all items
  int target_;              // byte of a tile where this lane's first copy goes
  int tokens_[kGroupRows];  // of the rows this lane copies
  int stats_entry_;         // of row lane % kOwnRows of the warp
};

// ---- adds ----------------------------------------------------------------------------------------------------------

// Four warps add the finished dq rows of every tile to the sums.
template <class C, bool kDeterministic>
class Adder {
 public:
  using S = SharedStorage<C>;
  __device__ __forceinline__ Adder(S& shared, const BackwardProblem& problem)
      : shared_(shared), problem_(problem), warp_(threadIdx.x % kWarpgroupThreads / 32), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    uint32_t tile = 0;
    for (uint32_t count = 0;; ++count) {
      const KeyTile& item = wait_item(shared_, count);
      if (item.keys == 0) break;
      const uint32_t end = tile + row_tiles<C>(item);
      release_item(shared_, count);
#pragma unroll 1
      for (; tile != end; ++tile) add_dq(tile);
    }
  }

 private:
  __device__ __forceinline__ void add_dq(uint32_t tile) {
    hopper::mbarrier_wait(barrier(shared_.dq_rows_full[DqRowPosition{tile}.slot()]), DqRowPosition{tile}.phase());
    if constexpr (kDeterministic)
      add_fixed_rows(tile);
    else
      add_rows(tile);
    __syncwarp();
    if (lane_ == 0) hopper::mbarrier_arrive(barrier(shared_.dq_empty));
  }

  __device__ __forceinline__ void wait_dq(uint32_t tile) {
    hopper::mbarrier_wait(barrier(shared_.dq_full), SinglePosition{tile}.phase());
  }

  // A lane group adds half a row at a time: whole 128-byte lines. Pads add their exact zeros to a valid row: branches
  // around them would cost every tile more.
  __device__ __forceinline__ void add_rows(uint32_t tile) {
    const int group_row = warp_ * Share<C>::kOwnRows + lane_ / Share<C>::kGroupLanes * Share<C>::kGroupRows;
    const int column = lane_ % Share<C>::kGroupLanes * 4;
    const uint8_t* staged = shared_.dq + group_row * C::kDqPitch + column * 4;
    const int32_t* rows = &shared_.dq_rows[DqRowPosition{tile}.slot()][group_row];
    wait_dq(tile);
#pragma unroll
    for (int i = 0; i < Share<C>::kGroupRows; i += 2) {
      const int2 row = *reinterpret_cast<const int2*>(rows + i);
      float4 v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[j] = *reinterpret_cast<const float4*>(staged + (i + j / 2) * C::kDqPitch + j % 2 * C::kColumns * 2);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t place = int64_t(j < 2 ? row.x : row.y) * C::kColumns + column + j % 2 * C::kColumns / 2;
        add_four(static_cast<float*>(problem_.dq_sum) + place, v[j]);
      }
    }
  }

  // There is no add of several integers: the lanes of a warp take neighbours, so that an add is whole lines. Each lane
  // looks up the factor of one row, before the tile's dq is there.
  __device__ __forceinline__ void add_fixed_rows(uint32_t tile) {
    constexpr int kOwnRows = Share<C>::kOwnRows;
    const int first = warp_ * kOwnRows;
    const int own_row = shared_.dq_rows[DqRowPosition{tile}.slot()][first + lane_ % kOwnRows];
    const float own_factor = __ldg(problem_.dq_factor + own_row);
    const uint8_t* staged = shared_.dq + first * C::kDqPitch + lane_ * 4;
    wait_dq(tile);
#pragma unroll 4
    for (int i = 0; i < kOwnRows; ++i) {
      const int64_t row = __shfl_sync(0xffffffffu, own_row, i);
      const float factor = __shfl_sync(0xffffffffu, own_factor, i);
      int64_t* sums = static_cast<int64_t*>(problem_.dq_sum) + row * C::kColumns + lane_;
#pragma unroll
      for (int j = 0; j < C::kColumns / 32; ++j) {
        add_fixed(sums + 32 * j, *reinterpret_cast<const float*>(staged + i * C::kDqPitch + 128 * j), factor);
      }
    }
  }

  S& shared_;
  const BackwardProblem& problem_;
  const int warp_, lane_;
};

// ---- math ----------------------------------------------------------------------------------------------------------

template <class C>
class Math {
 public:
  using S = SharedStorage<C>;
  __device__ __forceinline__ Math(S& shared, const BackwardProblem& problem)
      : shared_(shared),
        problem_(problem),
        group_(__shfl_sync(0xffffffffu, int(threadIdx.x) / kWarpgroupThreads - 2, 0)),
        warp_(threadIdx.x % kWarpgroupThreads / 32),
        lane_(threadIdx.x % 32) {
    keep(lane_);
  }

  __device__ __forceinline__ void run() {
    for (uint32_t count = 0;; ++count) {
      if (wait_item(shared_, count).keys == 0) break;
      hopper::mbarrier_wait(barrier(shared_.keys_full), SinglePosition{count}.phase());
      differentiate(count);
    }
  }

 private:
  static constexpr int kScores = C::kRows / 2;  // accumulators of a 64 x kRows tile
  static constexpr int kColumns = C::kColumns;
  static constexpr int kGradients = kColumns / 2;  // of 64 x kColumns

  __device__ __forceinline__ void arrive(uint64_t& object) {
    __syncwarp();
    if (lane_ == 0) hopper::mbarrier_arrive(barrier(object));
  }

  // acc = this warpgroup's 64 rows of `keys` times the rows of `tile`, transposed.
  __device__ __forceinline__ void multiply_keys(float (&acc)[kScores], uint32_t keys, uint32_t tile) {
    hopper::wgmma_fence_operand(acc);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kColumns / 16; ++step) {
      const int panel = step / 4, within = step % 4;
      hopper::wgmma_ss<C::kRows>(
          hopper::descriptor_k_major(keys + panel * C::kKeyPanelBytes + group_ * 64 * hopper::kPanelRowBytes) +
              within * 2,
          hopper::descriptor_k_major(tile + panel * C::kRowPanelBytes) + within * 2, acc, step > 0);
    }
    hopper::wgmma_commit();
  }

  // dv += P^T dout: P (bf16 pairs) is the register operand.
  __device__ __forceinline__ void accumulate_dv(float (&acc)[kGradients], const uint32_t (&p)[kScores / 2],
                                                uint32_t dout) {
    hopper::wgmma_fence_operand(acc);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < C::kRows / 16; ++step) {
      const uint32_t a[4] = {p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3]};
      hopper::wgmma_rs<kColumns, true>(a, hopper::descriptor_mn_major(dout, C::kRowPanelBytes) + step * 128, acc, true);
    }
    hopper::wgmma_commit();
  }

  // dk += dS^T q, dS^T from shared memory, where dq wants it anyway: its registers would not fit.
  __device__ __forceinline__ void accumulate_dk(float (&acc)[kGradients], uint32_t scores, uint32_t q) {
    hopper::wgmma_fence_operand(acc);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < C::kRows / 16; ++step) {
      const int panel = step / 4, within = step % 4;
      hopper::wgmma_ss<kColumns, false, true>(
          hopper::descriptor_k_major(scores + panel * C::kKeyPanelBytes + group_ * 64 * hopper::kPanelRowBytes) +
              within * 2,
          hopper::descriptor_mn_major(q, C::kRowPanelBytes) + step * 128, acc, true);
    }
    hopper::wgmma_commit();
  }

  // dq: 64 rows x 64 columns for each warpgroup. D = 128: all rows, half the columns; D = 64: half the rows.
  static constexpr bool kSplitColumns = kColumns == 128;
  __device__ __forceinline__ void multiply_scores(float (&acc)[32], uint32_t scores) {
    const uint32_t a = scores + (kSplitColumns ? 0 : group_ * C::kKeyPanelBytes);
    const uint32_t b = hopper::smem_address(shared_.k) + (kSplitColumns ? group_ * C::kKeyPanelBytes : 0);
    hopper::wgmma_fence_operand(acc);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kBackwardKeys / 16; ++step) {
      hopper::wgmma_ss<64, true, true>(hopper::descriptor_mn_major(a, C::kKeyPanelBytes) + step * 128,
                                       hopper::descriptor_mn_major(b, C::kKeyPanelBytes) + step * 128, acc, step > 0);
    }
    hopper::wgmma_commit();
  }

  // A thread's rows of the tile, two of every eight: what the statistics of a tile are for it.
  static constexpr int kOwnRows = C::kRows / 4;
  __device__ __forceinline__ void load_statistics(float (&values)[kOwnRows], const float* of_tile) const {
#pragma unroll
    for (int j = 0; j < kOwnRows / 2; ++j) {
      const float2 pair = *reinterpret_cast<const float2*>(of_tile + 8 * j + 2 * (lane_ % 4));
      values[2 * j] = pair.x, values[2 * j + 1] = pair.y;
    }
  }

  // s = exp2(s * scale - lse2), zero for keys behind the block's end; rows are columns of the transposed tile.
  __device__ __forceinline__ void probabilities(float (&s)[kScores], const float (&lse2)[kOwnRows], int keys) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      s[i] = hopper::exp2_approx(fmaf(s[i], problem_.score_scale, -lse2[i / 4 * 2 + i % 2]));
    }
    if (keys == kBackwardKeys) return;
    // The rows of K and V behind the end are a neighbour's: finite, but not ours.
    const bool low = first_key() < keys, high = first_key() + 8 < keys;
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] = (i / 2 % 2 == 0 ? low : high) ? s[i] : 0.0f;
  }

  // dS^T = P (dP - delta) to shared memory, one row of 64 columns a key and panel. P comes back from its bf16 pairs:
  // the registers of the fp32 values are free then.
  __device__ __forceinline__ void store_score_gradients(const uint32_t (&p)[kScores / 2], const float (&dp)[kScores],
                                                        const float (&delta)[kOwnRows], uint32_t scores) {
    // The chunk's two parts do not overlap, so the swizzle of the second can follow later.
    const uint32_t row =
        scores + (group_ * 64 + warp_ * 16 + lane_ % 16) * hopper::kPanelRowBytes + ((lane_ / 16 ^ lane_ % 8) << 4);
#pragma unroll
    for (int step = 0; step < C::kRows / 16; ++step) {
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * step + i;
        packed[i] = hopper::pack_bf16(__uint_as_float(p[at] << 16) * (dp[2 * at] - delta[at / 2 * 2]),
                                      __uint_as_float(p[at] & 0xffff0000u) * (dp[2 * at + 1] - delta[at / 2 * 2 + 1]));
      }
      hopper::stmatrix_x4((row ^ (step % 4 * 32)) + (step / 4) * C::kKeyPanelBytes, packed[0], packed[1], packed[2],
                          packed[3]);
    }
  }

  __device__ __forceinline__ void stage_dq(const float (&dq)[32], uint32_t tile) {
    hopper::mbarrier_wait(barrier(shared_.dq_empty), SinglePosition{tile}.phase() ^ 1);
    const int row = (kSplitColumns ? 0 : group_ * 64) + warp_ * 16 + lane_ / 4;
    const int column = (kSplitColumns ? group_ * 64 : 0) + lane_ % 4 * 2;
    uint8_t* target = shared_.dq + row * C::kDqPitch + column * 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      *reinterpret_cast<float2*>(target + j * 32) = make_float2(dq[4 * j], dq[4 * j + 1]);
      *reinterpret_cast<float2*>(target + j * 32 + 8 * C::kDqPitch) = make_float2(dq[4 * j + 2], dq[4 * j + 3]);
    }
    arrive(shared_.dq_full);
  }

  __device__ __forceinline__ void wait_other_scores(uint32_t tile) {
    hopper::mbarrier_wait(barrier(shared_.scores_full[group_ ^ 1][Position{tile}.slot()]), Position{tile}.phase());
  }

  // The order keeps the tensor cores fed: dP before the exponentials, dV before dS is computed, S of the next tile
  // before dq is staged. dQ is that of the tile before: it wants both warpgroups' scores, and this way they need not
  // meet in every tile but may be most of a tile apart, so that one's arithmetic hides behind the other's products.
  // No wgmma is in flight at the loop's end: ptxas would serialise them all.
  __device__ __forceinline__ void differentiate(uint32_t count) {
    const int keys = shared_.item[Position{count}.slot()].keys;
    float dk[kGradients], dv[kGradients], s[kScores];
#pragma unroll
    for (int i = 0; i < kGradients; ++i) dk[i] = dv[i] = 0;
    hopper::mbarrier_wait(barrier(shared_.q_full[Position{tile_}.slot()]), Position{tile_}.phase());
    multiply_keys(s, hopper::smem_address(shared_.k), hopper::smem_address(shared_.q[Position{tile_}.slot()]));
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(s);
    bool first = true;
    for (const uint32_t end = tile_ + row_tiles<C>(shared_.item[Position{count}.slot()]); tile_ != end; ++tile_) {
      const int slot = Position{tile_}.slot();
      const uint32_t q = hopper::smem_address(shared_.q[slot]), dout = hopper::smem_address(shared_.dout[slot]);
      const uint32_t scores = hopper::smem_address(shared_.scores[slot]);
      float dp[kScores], lse2[kOwnRows];
      load_statistics(lse2, shared_.lse2[slot]);
      hopper::mbarrier_wait(barrier(shared_.dout_full[slot]), Position{tile_}.phase());
      multiply_keys(dp, hopper::smem_address(shared_.v), dout);
      probabilities(s, lse2, keys);
      uint32_t packed_p[kScores / 2];
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) packed_p[i] = hopper::pack_bf16(s[2 * i], s[2 * i + 1]);
      accumulate_dv(dv, packed_p, dout);
      // The other warpgroup's part of the tile before is there, and it no longer reads this buffer.
      if (!first) wait_other_scores(tile_ - 1);
      float delta[kOwnRows];
      load_statistics(delta, shared_.delta[slot]);
      hopper::wgmma_wait<1>();  // dP
      hopper::wgmma_fence_operand(dp);
      store_score_gradients(packed_p, dp, delta, scores);
      hopper::fence_async_proxy();
      float dq[32];
      // Of no use, and not staged, when this is the first.
      multiply_scores(dq, hopper::smem_address(shared_.scores[slot ^ 1]));
      hopper::named_barrier_sync(kScoreBarrier + group_, kWarpgroupThreads);
      accumulate_dk(dk, scores, q);
      hopper::wgmma_wait<2>();  // dV
      arrive(shared_.dout_empty[slot]);
      // Behind the last tile this multiplies whatever the other buffer holds; nobody reads the result.
      if (tile_ + 1 != end) hopper::mbarrier_wait(barrier(shared_.q_full[slot ^ 1]), Position{tile_ + 1}.phase());
      multiply_keys(s, hopper::smem_address(shared_.k), hopper::smem_address(shared_.q[slot ^ 1]));
      hopper::wgmma_wait<2>();  // dQ
      hopper::wgmma_fence_operand(dq);
      arrive(shared_.scores_full[group_][slot]);
      if (!first) stage_dq(dq, tile_ - 1);
      hopper::wgmma_wait<1>();  // dK
      arrive(shared_.q_empty[slot]);
      hopper::wgmma_wait<0>();
      hopper::wgmma_fence_operand(s);
      first = false;
    }
    const uint32_t last = tile_ - 1;
    float dq[32];
    wait_other_scores(last);
    multiply_scores(dq, hopper::smem_address(shared_.scores[Position{last}.slot()]));
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(dq);
    stage_dq(dq, last);
    hopper::wgmma_fence_operand(dk);
    hopper::wgmma_fence_operand(dv);
    // Read only now: no registers for it above.
    const KeyTile item = shared_.item[Position{count}.slot()];
    release_item(shared_, count);
    arrive(shared_.keys_empty);
    if (item.part == 0 || add_parts(item.part - 1, dk, dv)) store_gradients(item, dk, dv);
  }

  __device__ __forceinline__ int first_key() const {
    return group_ * 64 + warp_ * 16 + lane_ / 4;
  }

  // This thread's values of one part of a split tile.
  __device__ __forceinline__ float* sums_of_part(int part) const {
    return problem_.split_sums + (int64_t(part) * 2 + group_) * 2 * kGradients * kWarpgroupThreads +
           threadIdx.x % kWarpgroupThreads;
  }

  // Leaves this part's sums for the others of its tile; true for the last one, with the sums of all parts.
  __device__ __forceinline__ bool add_parts(int part, float (&dk)[kGradients], float (&dv)[kGradients]) {
    float* mine = sums_of_part(part);
#pragma unroll
    for (int i = 0; i < kGradients; ++i) {
      __stcg(mine + i * kWarpgroupThreads, dk[i]);
      __stcg(mine + (kGradients + i) * kWarpgroupThreads, dv[i]);
    }
    __threadfence();
    hopper::named_barrier_sync(kScoreBarrier + group_, kWarpgroupThreads);
    const int tile = part / kSplitParts;
    if (threadIdx.x % kWarpgroupThreads == 0) {
      shared_.parts_done[group_] = atomicAdd(problem_.split_done + tile * 2 + group_, 1);
      __threadfence();
    }
    hopper::named_barrier_sync(kScoreBarrier + group_, kWarpgroupThreads);
    if (shared_.parts_done[group_] != kSplitParts - 1) return false;
#pragma unroll
    for (int i = 0; i < kGradients; ++i) dk[i] = dv[i] = 0;
#pragma unroll 1
    for (int p = 0; p < kSplitParts; ++p) {
      const float* theirs = sums_of_part(tile * kSplitParts + p);
#pragma unroll
      for (int i = 0; i < kGradients; ++i) {
        dk[i] += __ldcg(theirs + i * kWarpgroupThreads);
        dv[i] += __ldcg(theirs + (kGradients + i) * kWarpgroupThreads);
      }
    }
    return true;
  }

  __device__ __forceinline__ void store_gradients(const KeyTile& item, const float (&dk)[kGradients],
                                                  const float (&dv)[kGradients]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first_key() + half * 8;
      const bool valid = key < item.keys;
      const int token = valid ? original_token(problem_, item.key_start + key) : 0;
      store_row(problem_.dk, item, token, valid, dk, half, problem_.scale);
      store_row(problem_.dv, item, token, valid, dv, half, 1.0f);
    }
  }

  // A quad holds a row, two columns of every eight a lane; transposing four words over the quad gives 16-byte stores.
  __device__ __forceinline__ void store_row(const TensorView& view, const KeyTile& item, int token, bool valid,
                                            const float (&acc)[kGradients], int half, float factor) {
    __nv_bfloat16* row = const_cast<__nv_bfloat16*>(row_pointer(view, item.sample, item.head, token));
    const bool odd = lane_ & 1, upper = lane_ & 2;
#pragma unroll
    for (int j = 0; j < kColumns / 8; j += 4) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (j + i) + 2 * half;
        w[i] = hopper::pack_bf16(acc[at] * factor, acc[at + 1] * factor);
      }
      const uint32_t from0 = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
      const uint32_t from1 = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
      const uint32_t a0 = odd ? from0 : w[0], a1 = odd ? w[1] : from0;
      const uint32_t b0 = odd ? from1 : w[2], b1 = odd ? w[3] : from1;
      const uint32_t other0 = __shfl_xor_sync(0xffffffffu, upper ? a0 : b0, 2);
      const uint32_t other1 = __shfl_xor_sync(0xffffffffu, upper ? a1 : b1, 2);
      const uint4 chunk = upper ? make_uint4(other0, other1, b0, b1) : make_uint4(a0, a1, other0, other1);
      if (valid) *reinterpret_cast<uint4*>(row + (j + lane_ % 4) * 8) = chunk;
    }
  }

  S& shared_;
  const BackwardProblem& problem_;
  const int group_, warp_;
  int lane_;
  uint32_t tile_ = 0;  // row tiles so far, over all items
};

// ---- kernel --------------------------------------------------------------------------------------------------------

template <class C>
__device__ __forceinline__ void initialise_barriers(SharedStorage<C>& shared) {
  for (int i = 0; i < kSlots; ++i) {
    hopper::mbarrier_init(barrier(shared.q_full[i]), kWarpgroupThreads);
    hopper::mbarrier_init(barrier(shared.q_empty[i]), kMmaWarps);
    hopper::mbarrier_init(barrier(shared.dout_full[i]), kWarpgroupThreads);
    hopper::mbarrier_init(barrier(shared.dout_empty[i]), kMmaWarps);
    hopper::mbarrier_init(barrier(shared.item_full[i]), 1);
    hopper::mbarrier_init(barrier(shared.item_empty[i]), kGatherWarps + kAddWarps + kMmaWarps);
  }
  hopper::mbarrier_init(barrier(shared.keys_full), 1);
  hopper::mbarrier_init(barrier(shared.keys_empty), kMmaWarps);
  hopper::mbarrier_init(barrier(shared.dq_full), kMmaWarps);
  hopper::mbarrier_init(barrier(shared.dq_empty), kAddWarps);
  for (int i = 0; i < kDqRowSlots; ++i) hopper::mbarrier_init(barrier(shared.dq_rows_full[i]), kGatherWarps);
  for (int group = 0; group < 2; ++group) {
    for (int i = 0; i < kSlots; ++i) hopper::mbarrier_init(barrier(shared.scores_full[group][i]), kMmaWarps / 2);
  }
  hopper::mbarrier_init_fence();
}

template <int kColumns, bool kDeterministic>
__global__ void __launch_bounds__(kThreads, 1)
    main_kernel(const __grid_constant__ BackwardProblem problem, const __grid_constant__ CUtensorMap k_map,
                const __grid_constant__ CUtensorMap v_map) {
#ifdef VMOBA_HOPPER_CODE
  using C = Tile<kColumns>;
  extern __shared__ __align__(1024) uint8_t raw_shared[];
  SharedStorage<C>& shared = *reinterpret_cast<SharedStorage<C>*>(raw_shared);
  if (threadIdx.x == 0) initialise_barriers(shared);
  __syncthreads();
  if (threadIdx.x < kWarpgroupThreads) {
    hopper::register_decrease<kGatherRegisters>();
    Gather<C>(shared, problem, k_map, v_map).run();
  } else if (threadIdx.x < 2 * kWarpgroupThreads) {
    hopper::register_decrease<kAddRegisters>();
    Adder<C, kDeterministic>(shared, problem).run();
  } else {
    hopper::register_increase<kMmaRegisters>();
    Math<C>(shared, problem).run();
  }
#endif
}

template <int kColumns, bool kDeterministic>
cudaError_t launch(const BackwardProblem& problem, int sm_count, cudaStream_t stream) {
  using C = Tile<kColumns>;
  const Shape& s = problem.shape;
  CUtensorMap maps[2];
  const TensorView* views[2] = {&problem.k_blocks, &problem.v_blocks};
  for (int i = 0; i < 2; ++i) {
    const cudaError_t error =
        hopper::encode_row_map(&maps[i], views[i]->data, kColumns, s.tokens(), s.heads, s.batch, views[i]->token_stride,
                               views[i]->head_stride, views[i]->batch_stride, kBackwardKeys);
    if (error != cudaSuccess) return error;
  }
  const auto kernel = main_kernel<kColumns, kDeterministic>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(SharedStorage<C>)));
  if (error != cudaSuccess) return error;
  kernel<<<sm_count, kThreads, sizeof(SharedStorage<C>), stream>>>(problem, maps[0], maps[1]);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels::backward_sm90
