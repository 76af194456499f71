// Partial attention of one wave on sm_90a: every item is 128 gathered query rows against one block of keys.
//
// Persistent blocks of 384 threads. Warpgroup 0 feeds: warp 0 loads K, warp 1 loads V (TMA from block order), warps 2
// and 3 each gather half of an item's query rows with cp.async and write the half's finished output; warp 2 also hands
// out the items, two ahead, because the atomic and the table look-ups take longer than the key tiles in flight last.
// Warpgroups 1 and 2 own 64 rows each and run one loop over the key tiles of all their items without a break: the QK^T
// of a tile, also of the next item's first tile, is in flight together with the PV of the tile before it, and the two
// warpgroups take turns in issuing so that one's softmax hides behind the other's products.
// The ragged last key tile of a block comes first, where the mask costs nothing in the steady state.
//
// Outputs are normalised bf16 rows and base-2 log-sum-exps per slot, in tile images (see ForwardProblem) that one bulk
// copy writes. The query buffer of an item doubles as its output staging. Asynchronous on the launch's stream.
#pragma once
#include <initializer_list>

#include "attention/kernels/hopper.cuh"
#include "attention/kernels/ring.cuh"
#include "attention/kernels/schedule.cuh"

namespace vmoba::kernels::forward_sm90 {

constexpr int kThreads = 384;
constexpr int kMmaThreads = 256;
constexpr int kMmaWarps = 8;
constexpr int kRowsPerWarpgroup = 64;
constexpr int kProducerRegisters = 56;  // 128 * 56 + 256 * 224 = 384 * 168, the uniform share at launch
constexpr int kMmaRegisters = 224;
constexpr int kQuerySlots = 2;
constexpr int kItemSlots = 4;  // items announced and not yet taken up by everyone
constexpr int kItemReaders = kMmaWarps + 4;
constexpr int kTurnBarrier = 1;  // named barriers kTurnBarrier + warpgroup: whose turn it is to issue products

struct AttendParams {
  CUtensorMap k_map, v_map;
  ForwardProblem problem;
  int wave;
};

template <int HeadDim, int KeyTile>
struct Tile {
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kKeyTile = KeyTile;
  static constexpr int kPanels = HeadDim / hopper::kPanelColumns;
  static constexpr int kKeySlots = HeadDim == 128 ? 2 : 4;
  static constexpr int kRowPanelBytes = kTileRows * hopper::kPanelRowBytes;
  static constexpr int kKeyPanelBytes = KeyTile * hopper::kPanelRowBytes;
  static constexpr int kRowTileBytes = kPanels * kRowPanelBytes;
  static constexpr int kKeyTileBytes = kPanels * kKeyPanelBytes;
  static constexpr int kHalfPanelBytes = kRowPanelBytes / 2;
};

template <class T>
struct SharedStorage {
  alignas(1024) char query[kQuerySlots][T::kRowTileBytes];
  alignas(1024) char key[T::kKeySlots][T::kKeyTileBytes];
  alignas(1024) char value[T::kKeySlots][T::kKeyTileBytes];
  WorkItem item[kItemSlots];
  uint32_t never_written;  // see keep_before_wait
  uint64_t item_full[kItemSlots], item_empty[kItemSlots];
  uint64_t query_full[kQuerySlots][2], output_full[kQuerySlots][2];  // per half
  uint64_t key_full[T::kKeySlots], key_empty[T::kKeySlots];
  uint64_t value_full[T::kKeySlots], value_empty[T::kKeySlots];
};

template <class T>
__device__ __forceinline__ void initialise_barriers(SharedStorage<T>& shared) {
  for (int i = 0; i < kItemSlots; ++i) {
    hopper::mbarrier_init(barrier(shared.item_full[i]), 1);
    hopper::mbarrier_init(barrier(shared.item_empty[i]), kItemReaders);
  }
  for (int i = 0; i < kQuerySlots; ++i) {
    for (int half = 0; half < 2; ++half) {
      hopper::mbarrier_init(barrier(shared.query_full[i][half]), 32);
      hopper::mbarrier_init(barrier(shared.output_full[i][half]), kMmaWarps / 2);
    }
  }
  for (int i = 0; i < T::kKeySlots; ++i) {
    hopper::mbarrier_init(barrier(shared.key_full[i]), 1);
    hopper::mbarrier_init(barrier(shared.key_empty[i]), kMmaWarps);
    hopper::mbarrier_init(barrier(shared.value_full[i]), 1);
    hopper::mbarrier_init(barrier(shared.value_empty[i]), kMmaWarps);
  }
  hopper::mbarrier_init_fence();
}

// Takes the next announced item; all lanes of a reading warp together.
template <class T>
__device__ __forceinline__ WorkItem take_item(SharedStorage<T>& shared, RingPosition<kItemSlots>& ring) {
  hopper::mbarrier_wait(barrier(shared.item_full[ring.slot()]), ring.phase());
  const WorkItem item = shared.item[ring.slot()];
  __syncwarp();
  if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(barrier(shared.item_empty[ring.slot()]));
  ring.advance();
  return item;
}

// Loads a block's key tiles, the ragged last one first, through a ring of slots.
template <class T>
__device__ __forceinline__ void load_key_tiles(const WorkItem& item, int heads, const CUtensorMap* map,
                                               char (&buffers)[T::kKeySlots][T::kKeyTileBytes],
                                               uint64_t (&full)[T::kKeySlots], uint64_t (&empty)[T::kKeySlots],
                                               RingPosition<T::kKeySlots>& ring) {
  const int tiles = (item.keys + T::kKeyTile - 1) / T::kKeyTile;
#pragma unroll 1
  for (int i = tiles - 1; i >= 0; --i) {
    hopper::mbarrier_wait(barrier(empty[ring.slot()]), ring.phase() ^ 1);
    const uint32_t loaded = barrier(full[ring.slot()]);
    const uint32_t destination = hopper::smem_address(buffers[ring.slot()]);
    hopper::mbarrier_arrive_expect(loaded, T::kKeyTileBytes);
    for (int panel = 0; panel < T::kPanels; ++panel) {
      hopper::tma_load_4d(destination + panel * T::kKeyPanelBytes, map, loaded, panel * hopper::kPanelColumns,
                          item.key_start + i * T::kKeyTile, item.head % heads, item.head / heads);
    }
    ring.advance();
  }
}

// Warps 0 and 1.
template <class T>
__device__ __forceinline__ void load_blocks(const AttendParams& params, const CUtensorMap* map,
                                            SharedStorage<T>& shared, char (&buffers)[T::kKeySlots][T::kKeyTileBytes],
                                            uint64_t (&full)[T::kKeySlots], uint64_t (&empty)[T::kKeySlots]) {
  RingPosition<kItemSlots> ring;
  RingPosition<T::kKeySlots> loads;
  while (true) {
    const WorkItem item = take_item(shared, ring);
    if (item.keys == 0) break;
    if (threadIdx.x % 32 == 0) load_key_tiles<T>(item, params.problem.shape.heads, map, buffers, full, empty, loads);
    __syncwarp();
  }
}

// Hands out the wave's items; all lanes of one warp together.
template <class T>
class ItemSource {
 public:
  __device__ __forceinline__ ItemSource(const AttendParams& params, SharedStorage<T>& shared)
      : problem_(params.problem), shared_(shared), counter_(params.problem.plan.next_tile + params.wave) {
    const ForwardPlan& plan = params.problem.plan;
    first_head_ = plan.wave_first[params.wave];
    end_head_ = plan.wave_first[params.wave + 1];
    first_tile_ = plan.tiles_before[first_head_];
    tile_count_ = plan.tiles_before[end_head_] - first_tile_;
  }

  // An item without keys, once, when the wave has no more.
  __device__ __forceinline__ void announce_next() {
    if (exhausted_) return;
    const int lane = threadIdx.x % 32;
    int tile = 0;
    if (lane == 0) tile = atomicAdd(counter_, 1);
    tile = __shfl_sync(0xffffffffu, tile, 0);
    exhausted_ = tile >= tile_count_;
    WorkItem item;
    if (!exhausted_) item = locate_item(problem_, first_head_, end_head_, first_tile_, tile);
    hopper::mbarrier_wait(barrier(shared_.item_empty[announced_.slot()]), announced_.phase() ^ 1);
    if (lane == 0) {
      shared_.item[announced_.slot()] = item;
      hopper::mbarrier_arrive(barrier(shared_.item_full[announced_.slot()]));
    }
    announced_.advance();
  }

 private:
  const ForwardProblem& problem_;
  SharedStorage<T>& shared_;
  int32_t* counter_;
  int first_head_, end_head_, first_tile_, tile_count_;
  bool exhausted_ = false;
  RingPosition<kItemSlots> announced_;
};

// Writes half an output tile, already in its final image, to the partial buffer.
template <class T>
__device__ __forceinline__ void store_half(const ForwardProblem& problem, int partial_tile, uint32_t half_address,
                                           int half) {
  char* tile = reinterpret_cast<char*>(problem.partial) + int64_t(partial_tile) * T::kRowTileBytes;
  for (int panel = 0; panel < T::kPanels; ++panel) {
    hopper::bulk_store(tile + panel * T::kRowPanelBytes + half * T::kHalfPanelBytes,
                       half_address + panel * T::kRowPanelBytes, T::kHalfPanelBytes, hopper::kEvictFirst);
  }
  hopper::bulk_commit();
}

// Warps 2 and 3: rows [64 half, 64 half + 64) of every item.
template <class T>
__device__ __forceinline__ void gather_and_store(const AttendParams& params, SharedStorage<T>& shared, int half) {
  constexpr int kLanesPerRow = T::kHeadDim / 8;
  constexpr int kRowsPerStep = 32 / kLanesPerRow;
  const ForwardProblem& problem = params.problem;
  const int lane = threadIdx.x % 32;
  const int chunk = lane % kLanesPerRow;
  const uint32_t panel_offset = (chunk / 8) * T::kRowPanelBytes + half * T::kHalfPanelBytes;
  RingPosition<kItemSlots> ring;
  RingPosition<kQuerySlots> buffer;
  int stored_tile[kQuerySlots] = {-1, -1};  // whose output each buffer will hold, oldest first

  const auto store_oldest = [&]() {
    if (stored_tile[0] >= 0) {
      hopper::mbarrier_wait(barrier(shared.output_full[buffer.slot()][half]), buffer.phase() ^ 1);
      if (lane == 0) {
        store_half<T>(problem, stored_tile[0],
                      hopper::smem_address(shared.query[buffer.slot()]) + half * T::kHalfPanelBytes, half);
        hopper::bulk_wait_read<0>();
      }
      __syncwarp();
    }
    stored_tile[0] = stored_tile[1];
  };

  ItemSource<T> source_of_items(params, shared);
  int to_announce = half == 0 ? 3 : 0;
  while (true) {
#pragma unroll 1
    for (; to_announce > 0; --to_announce) source_of_items.announce_next();
    to_announce = half == 0 ? 1 : 0;
    const WorkItem item = take_item(shared, ring);
    if (item.keys == 0) break;
    const int32_t* rows = problem.lists.row + item.head * problem.lists.row_stride +
                          int64_t(item.row_tile) * kTileRows + half * kRowsPerWarpgroup;
    const int row_ids[2] = {rows[lane], rows[lane + 32]};
    const __nv_bfloat16* source = static_cast<const __nv_bfloat16*>(problem.q.data) +
                                  item.head / problem.shape.heads * problem.q.batch_stride +
                                  item.head % problem.shape.heads * problem.q.head_stride + chunk * 8;
    store_oldest();
    stored_tile[1] = item.partial_tile;

    const uint32_t destination = hopper::smem_address(shared.query[buffer.slot()]) + panel_offset;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
#pragma unroll 2
      for (int i = 0; i < 32 / kRowsPerStep; ++i) {
        const int row = i * kRowsPerStep + lane / kLanesPerRow;
        const int64_t id = __shfl_sync(0xffffffffu, row_ids[upper], row);
        hopper::cp_async_16(destination + hopper::swizzled_offset(upper * 32 + row, chunk % 8),
                            source + id * problem.q.token_stride);
      }
    }
    // wgmma reads through the async proxy: the writer waits, fences and only then arrives.
    hopper::cp_async_commit();
    hopper::cp_async_wait<0>();
    hopper::fence_async_proxy();
    hopper::mbarrier_arrive(barrier(shared.query_full[buffer.slot()][half]));
    buffer.advance();
  }
#pragma unroll 1
  for (int i = 0; i < kQuerySlots; ++i) {
    store_oldest();
    buffer.advance();
  }
  if (lane == 0) hopper::bulk_wait<0>();
}

// A warpgroup's half of the products and the online softmax.
template <class T>
struct RowState {
  float scores[T::kKeyTile / 2];
  float output[T::kHeadDim / 2];
  uint32_t probabilities[T::kKeyTile / 16][4];
  float maximum[2], sum[2];  // of this thread's two rows; the sum over this thread's columns only
};

template <class T>
__device__ __forceinline__ void issue_scores(RowState<T>& state, uint64_t query, uint64_t key) {
  hopper::wgmma_fence();
  hopper::wgmma_fence_operand(state.scores);
#pragma unroll
  for (int k = 0; k < T::kHeadDim / 16; ++k) {
    const int panel = k / 4, step = k % 4;
    hopper::wgmma_ss<T::kKeyTile>(query + panel * (T::kRowPanelBytes >> 4) + step * 2,
                                  key + panel * (T::kKeyPanelBytes >> 4) + step * 2, state.scores, k > 0);
  }
  hopper::wgmma_commit();
}

template <class T>
__device__ __forceinline__ void issue_output(RowState<T>& state, uint64_t value, bool accumulate) {
  hopper::wgmma_fence();
  hopper::wgmma_fence_operand(state.output);
#pragma unroll
  for (int k = 0; k < T::kKeyTile / 16; ++k) {
    hopper::wgmma_rs<T::kHeadDim, true>(state.probabilities[k], value + k * 128, state.output, k > 0 || accumulate);
  }
  hopper::wgmma_commit();
}

// Scores become exp2 of the scaled distance to the row maximum; `rescale` is what the older output must be multiplied
// by. On an item's first tile the statistics start anew, and keys from valid_keys on belong to another block.
template <class T>
__device__ __forceinline__ void softmax(RowState<T>& state, bool first, int valid_keys, float scale_log2,
                                        float (&rescale)[2]) {
  if (first && valid_keys < T::kKeyTile) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < T::kKeyTile / 2; ++i) {
      if (i / 4 * 8 + i % 2 + column >= valid_keys) state.scores[i] = -INFINITY;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float previous = first ? -INFINITY : state.maximum[r];
    float maximum[2] = {previous, state.scores[r * 2]};
#pragma unroll
    for (int i = 0; i < T::kKeyTile / 8; ++i) {
      maximum[0] = fmaxf(maximum[0], state.scores[i * 4 + r * 2]);
      maximum[1] = fmaxf(maximum[1], state.scores[i * 4 + r * 2 + 1]);
    }
    float row_maximum = fmaxf(maximum[0], maximum[1]);
    row_maximum = fmaxf(row_maximum, __shfl_xor_sync(0xffffffffu, row_maximum, 1));
    row_maximum = fmaxf(row_maximum, __shfl_xor_sync(0xffffffffu, row_maximum, 2));
    state.maximum[r] = row_maximum;
    rescale[r] = hopper::exp2_approx((previous - row_maximum) * scale_log2);

    const float offset = row_maximum * scale_log2;
    float sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < T::kKeyTile / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& score = state.scores[i * 4 + r * 2 + j];
        score = hopper::exp2_approx(fmaf(score, scale_log2, -offset));
        sums[j] += score;
      }
    }
    state.sum[r] = (first ? 0.f : state.sum[r] * rescale[r]) + sums[0] + sums[1];
  }
}

// Maxima settle after a few tiles; a warp whose rows all kept theirs has nothing to do.
template <class T>
__device__ __forceinline__ void rescale_output(RowState<T>& state, const float (&rescale)[2]) {
  if (__all_sync(0xffffffffu, rescale[0] == 1.f && rescale[1] == 1.f)) return;
#pragma unroll
  for (int i = 0; i < T::kHeadDim / 2; ++i) state.output[i] *= rescale[i / 2 % 2];
}

// The accumulator layout of QK^T is the operand layout of PV.
template <class T>
__device__ __forceinline__ void pack_probabilities(RowState<T>& state) {
#pragma unroll
  for (int i = 0; i < T::kKeyTile / 4; ++i) {
    state.probabilities[i / 4][i % 4] = hopper::pack_bf16(state.scores[i * 2], state.scores[i * 2 + 1]);
  }
}

// Normalises the finished rows into the item's query buffer, which its products no longer read, tells the storing warp,
// and writes the rows' log-sum-exps. Those come last: the proxy fence would wait for their way to memory.
template <class T>
__device__ __forceinline__ void finish_rows(RowState<T>& state, const float (&maximum)[2], const float (&sum)[2],
                                            float scale_log2, uint32_t half_address, uint32_t staged, float* lse2) {
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x % kWarpgroupThreads / 32 * 16;
  float total[2], inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] = sum[r];
    total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
    total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
    inverse[r] = __fdividef(1.f, total[r]);
  }
  const int row = warp_row + lane % 16;
#pragma unroll
  for (int i = 0; i < T::kHeadDim / 16; ++i) {
    const int chunk = i * 2 + lane / 16;
    const float* o = state.output + i * 8;
    hopper::stmatrix_x4(half_address + chunk / 8 * T::kRowPanelBytes + hopper::swizzled_offset(row, chunk % 8),
                        hopper::pack_bf16(o[0] * inverse[0], o[1] * inverse[0]),
                        hopper::pack_bf16(o[2] * inverse[1], o[3] * inverse[1]),
                        hopper::pack_bf16(o[4] * inverse[0], o[5] * inverse[0]),
                        hopper::pack_bf16(o[6] * inverse[1], o[7] * inverse[1]));
  }
  hopper::fence_async_proxy();
  __syncwarp();
  if (lane == 0) hopper::mbarrier_arrive(staged);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (lane % 4 == 0) lse2[warp_row + lane / 4 + r * 8] = fmaf(maximum[r], scale_log2, __log2f(total[r]));
  }
}

template <class T>
__device__ __forceinline__ void release(uint64_t& object) {
  if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(barrier(object));
}

// Warpgroups 1 and 2 (`half` 0 and 1).
template <class T>
__device__ __forceinline__ void attend(const AttendParams& params, SharedStorage<T>& shared, int half) {
  const ForwardProblem& problem = params.problem;
  const float scale_log2 = problem.scale * 1.4426950408889634f;
  RingPosition<kItemSlots> items;    // taken
  RingPosition<kQuerySlots> buffer;  // of the item whose scores are being made
  RingPosition<T::kKeySlots> keys;   // key tiles with scores; the values are one behind
  RowState<T> state;
  float rescale[2];

  const auto half_of = [&](int slot) { return hopper::smem_address(shared.query[slot]) + half * T::kHalfPanelBytes; };
  const auto begin_scores = [&]() {
    hopper::mbarrier_wait(barrier(shared.key_full[keys.slot()]), keys.phase());
    issue_scores<T>(state, hopper::descriptor_k_major(half_of(buffer.slot())),
                    hopper::descriptor_k_major(hopper::smem_address(shared.key[keys.slot()])));
  };
  const auto end_scores = [&]() {
    hopper::wgmma_fence_operand(state.scores);
    release<T>(shared.key_empty[keys.slot()]);
    keys.advance();
  };
  const auto begin_output = [&](RingPosition<T::kKeySlots> values, bool accumulate) {
    hopper::mbarrier_wait(barrier(shared.value_full[values.slot()]), values.phase());
    issue_output<T>(state,
                    hopper::descriptor_mn_major(hopper::smem_address(shared.value[values.slot()]), T::kKeyPanelBytes),
                    accumulate);
  };
  const auto end_output = [&](RingPosition<T::kKeySlots> values) {
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.output);
    release<T>(shared.value_empty[values.slot()]);
  };
  const auto finish = [&](const float(&maximum)[2], const float(&sum)[2], int slot, int partial_tile) {
    float* lse2 = problem.partial_lse2 + int64_t(partial_tile) * kTileRows + half * kRowsPerWarpgroup;
    finish_rows(state, maximum, sum, scale_log2, half_of(slot), barrier(shared.output_full[slot][half]), lse2);
  };

  if (half == 1) hopper::named_barrier_arrive(kTurnBarrier, kMmaThreads);
  WorkItem item = take_item(shared, items);
  if (item.keys > 0) {
    int partial_tile = item.partial_tile;
    int tiles = (item.keys + T::kKeyTile - 1) / T::kKeyTile;  // key tiles of the item
    int tile = 1;                                             // how many of them have scores
    hopper::mbarrier_wait(barrier(shared.query_full[buffer.slot()][half]), buffer.phase());
    begin_scores();
    hopper::wgmma_wait<0>();
    end_scores();
    softmax(state, true, item.keys - (tiles - 1) * T::kKeyTile, scale_log2, rescale);
    pack_probabilities(state);

    // Scores of the next key tile beside the output of the one before it. One body for every tile, also where an item
    // ends: separate code for that is fetched anew each time, which costs more than the branches.
    while (true) {
      const bool first = tile == tiles;  // the scores to come are the next item's first
      if (first) {
        item = take_item(shared, items);
        if (item.keys == 0) break;
        tiles = (item.keys + T::kKeyTile - 1) / T::kKeyTile;
        buffer.advance();
        hopper::mbarrier_wait(barrier(shared.query_full[buffer.slot()][half]), buffer.phase());
      }
      const RingPosition<T::kKeySlots> values{keys.count - 1};
      hopper::named_barrier_sync(kTurnBarrier + half, kMmaThreads);
      begin_scores();
      begin_output(values, tile > 1);
      hopper::named_barrier_arrive(kTurnBarrier + (half ^ 1), kMmaThreads);
      hopper::wgmma_wait<1>();
      end_scores();
      const float maximum[2] = {state.maximum[0], state.maximum[1]};
      const float sum[2] = {state.sum[0], state.sum[1]};
      softmax(state, first, item.keys - (tiles - 1) * T::kKeyTile, scale_log2, rescale);
      hopper::wgmma_fence_operand(state.scores);
      hopper::keep_before_wait(state.sum[0] + state.sum[1], hopper::smem_address(&shared.never_written));
      end_output(values);
      pack_probabilities(state);
      if (first) {
        finish(maximum, sum, buffer.slot() ^ 1, partial_tile);
        partial_tile = item.partial_tile;
        tile = 1;
      } else {
        rescale_output(state, rescale);
        ++tile;
      }
    }
    const RingPosition<T::kKeySlots> values{keys.count - 1};
    begin_output(values, tile > 1);
    end_output(values);
    finish(state.maximum, state.sum, buffer.slot(), partial_tile);
  }
  // Takes up the turn that the other warpgroup granted last, so that no barrier is left half arrived.
  if (half == 0) hopper::named_barrier_sync(kTurnBarrier, kMmaThreads);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) attend_kernel(const __grid_constant__ AttendParams params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  SharedStorage<T>& shared = *reinterpret_cast<SharedStorage<T>*>(shared_bytes);
  const ForwardPlan& plan = params.problem.plan;
  if (plan.wave_first[params.wave] == plan.wave_first[params.wave + 1]) return;
  if (threadIdx.x == 0) {
    hopper::prefetch_tensor_map(&params.k_map);
    hopper::prefetch_tensor_map(&params.v_map);
    initialise_barriers(shared);
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hopper::register_decrease<kProducerRegisters>();
    if (warp == 0) load_blocks(params, &params.k_map, shared, shared.key, shared.key_full, shared.key_empty);
    if (warp == 1) load_blocks(params, &params.v_map, shared, shared.value, shared.value_full, shared.value_empty);
    if (warp >= 2) gather_and_store(params, shared, warp - 2);
  } else {
    hopper::register_increase<kMmaRegisters>();
    attend(params, shared, warp / 4 - 1);
  }
#endif
}

// The cheapest of some key tiles for a partition, of which the host knows the largest and the mean block: a step costs
// its keys and a fixed part, worth `step_keys` keys (measured), so that both padding and short steps count.
inline int cheapest_key_tile(const ForwardProblem& problem, std::initializer_list<int> key_tiles, int step_keys) {
  const int mean = (problem.shape.video_tokens + problem.shape.blocks - 1) / problem.shape.blocks;
  int cheapest = 0, least = 0;
  for (const int key_tile : key_tiles) {
    int cost = 0;
    for (const int keys : {problem.partition.max_block_tokens, mean}) {
      cost += (keys + key_tile - 1) / key_tile * (key_tile + step_keys);
    }
    if (cheapest == 0 || cost < least) cheapest = key_tile, least = cost;
  }
  return cheapest;
}

template <int HeadDim, int KeyTile>
cudaError_t launch_attend(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream) {
  using T = Tile<HeadDim, KeyTile>;
  const Shape& shape = problem.shape;
  AttendParams params;
  params.problem = problem;
  params.wave = wave;
  const auto encode = [&](CUtensorMap* map, const TensorView& view) {
    return hopper::encode_row_map(map, view.data, HeadDim, shape.tokens(), shape.heads, shape.batch, view.token_stride,
                                  view.head_stride, view.batch_stride, KeyTile);
  };
  cudaError_t error = encode(&params.k_map, problem.k_blocks);
  if (error == cudaSuccess) error = encode(&params.v_map, problem.v_blocks);
  constexpr int kSharedBytes = sizeof(SharedStorage<T>);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(attend_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  }
  if (error != cudaSuccess) return error;
  attend_kernel<T><<<sm_count, kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels::forward_sm90
