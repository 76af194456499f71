// Selection in query_head pools: the C gates of one (head, token).
//
// Up to kMaxSorted blocks a thread owns a token, sorts its gates in registers (values only, a bitonic network) and
// walks down to the cut; a second look at the gates, still in L1 or L2, gives the mask bits. More blocks: a warp owns a
// token and descends on the bits of the ordered key, over a tile of 32 tokens in shared memory. Sums in fp64, in fixed
// order.
#pragma once
#include "attention/kernels/launch.cuh"
#include "attention/kernels/select_common.cuh"

namespace vmoba::kernels {

constexpr int kSortThreads = 128;
constexpr int kMaxSorted = 128;
constexpr int kDescentThreads = 256;
constexpr int kDescentPitch = 33;  // floats per block row of the tile: no bank conflict along either side

struct QueryHeadArgs {
  Pools pools;
  const float* gate;
  const int32_t *block_of, *block_start;
  bool topk;
  double tau;
  int take;  // top-k: others to take
  uint32_t* mask;
};

// Target of a threshold pool, as in select_common.cuh with unit 1.
__device__ inline double plain_target(double tau, float min, float max, double total, double own) {
  const double range = double(max) - double(min);
  const double den = range <= 1e-6 ? 1.0 : range;
  return fmax(0.0, tau * (total + kEps * den) - own);
}

__device__ __forceinline__ double plain_weight(float g, float min) {
  return g > min ? double(g) - double(min) : 0.0;
}

// Descending bitonic sort; all indices are compile-time constants, so the values stay in registers.
template <int kCount>
__device__ __forceinline__ void sort_descending(float (&v)[kCount]) {
#pragma unroll
  for (int size = 2; size <= kCount; size *= 2) {
#pragma unroll
    for (int step = size / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int j = i ^ step;
        if (j <= i) continue;
        const float high = fmaxf(v[i], v[j]), low = fminf(v[i], v[j]);
        const bool descending = (i & size) == 0;
        v[i] = descending ? high : low;
        v[j] = descending ? low : high;
      }
    }
  }
}

// The cut: others greater than `key` are taken, and the first `ties` of those equal to it.
struct Cut {
  float key;
  int ties;
};

// v: the others sorted, `count` of them.
template <int kCount>
__device__ __forceinline__ Cut find_cut(const QueryHeadArgs& a, const float (&v)[kCount], int count, double target,
                                        float min) {
  Cut cut{v[0], 0};
  double sum = 0;
  bool done = false;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i % 4 == 0 && __all_sync(~0u, done || i >= count)) break;  // most cuts come early
    if (i < count && !done) {
      cut.ties = v[i] == cut.key ? cut.ties + 1 : 1;
      cut.key = v[i];
      if (a.topk) {
        done = i + 1 >= a.take;
      } else {
        sum += plain_weight(v[i], min);
        done = sum >= target;
      }
    }
  }
  return cut;
}

// Grid (tiles of kSortThreads positions, b x n). A warp's 32 positions are one mask word.
template <int kCount>
__global__ void __launch_bounds__(kSortThreads) sort_kernel(const QueryHeadArgs a) {
  start_after_previous();
  const Pools& s = a.pools;
  const int p = blockIdx.x * kSortThreads + threadIdx.x;
  const int bn = blockIdx.y, lane = threadIdx.x % 32;
  const bool video = p < s.video_tokens;
  const float* gate = a.gate + int64_t(bn) * s.blocks * s.video_tokens + p;
  const int own = video ? a.block_of[p] : -1;
  const float infinity = __int_as_float(0x7f800000);

  float v[kCount];
  float min = infinity, max = -infinity, own_gate = 0;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    float g = -infinity;  // pads and NaN sort last
    if (video && c < s.blocks) {
      g = __ldg(gate + int64_t(c) * s.video_tokens);
      min = fminf(min, g);
      max = fmaxf(max, g);
      if (c == own) own_gate = g;
      if (c == own || isnan(g)) g = -infinity;
    }
    v[c] = g;
  }
  double total = plain_weight(own_gate, min);
  const double own_weight = total;
  if (!a.topk) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) total += plain_weight(v[c], min);
  }
  sort_descending(v);
  const double target = a.topk ? 0.0 : plain_target(a.tau, min, max, total, own_weight);
  Cut cut = find_cut(a, v, s.blocks - 1, target, min);

  const int word = p / 32;
  uint32_t* mask = a.mask + int64_t(bn) * s.block_count * s.mask_words + word;
  uint32_t kept = 0;
  constexpr int kAhead = 8;
  for (int c0 = 0; c0 < s.block_count; c0 += kAhead) {
    float g[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      g[j] = video && c0 + j < s.blocks ? __ldg(gate + int64_t(c0 + j) * s.video_tokens) : infinity;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int c = c0 + j;
      const float value = isnan(g[j]) ? -infinity : g[j];
      const bool always = !video || c >= s.blocks || c == own;  // text rows, the text list, the own block
      const bool tie = !always && value == cut.key && cut.ties > 0;
      cut.ties -= tie;
      const uint32_t bits = __ballot_sync(~0u, p < s.tokens && (always || value > cut.key || tie));
      if (lane == c % 32) kept = bits;
    }
    const int last = c0 + kAhead - 1;
    if (last % 32 == 31 || last >= s.block_count - 1) {
      const int c = last - last % 32 + lane;
      if (lane <= last % 32 && c < s.block_count && word < s.mask_words) mask[int64_t(c) * s.mask_words] = kept;
    }
  }
}

// ---- many blocks ---------------------------------------------------------------------------------------------------

__device__ __forceinline__ double warp_sum_double(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

constexpr int kWeightBits = 21;  // of a rounded-down weight: the sum of kPerLane * 32 <= 1536 of them fits 32 bits

// The gates of one token, block 32 j + lane in element j. Others only: the own block and pads have key 0, weight 0.
template <int kPerLane>
struct Column {
  uint32_t key[kPerLane], rough[kPerLane];  // ordered key, rounded-down weight (top-k: 1)
  float min;

  // Sum of the rough weights of the keys of at least `bound`.
  __device__ __forceinline__ uint32_t rough_reach(uint32_t bound) const {
    uint32_t sum = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum += key[j] >= bound ? rough[j] : 0;
    return __reduce_add_sync(~0u, sum);
  }
  // Exact weight (top-k: number) of the keys of at least `bound`.
  __device__ double reach(bool topk, uint32_t bound) const {
    if (topk) return double(rough_reach(bound));
    double sum = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum += key[j] >= bound ? plain_weight(gate_of(key[j]), min) : 0.0;
    return warp_sum_double(sum);
  }
  // The least key above `bound`, ~0 if there is none.
  __device__ uint32_t next_above(uint32_t bound) const {
    uint32_t next = ~0u;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) next = key[j] > bound && key[j] < next ? key[j] : next;
    return __reduce_min_sync(~0u, next);
  }
  __device__ uint32_t greatest() const {
    uint32_t greatest = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) greatest = key[j] > greatest ? key[j] : greatest;
    return __reduce_max_sync(~0u, greatest);
  }
};

// The greatest key whose reach meets the target, 0 if none does: then all others are taken. units: rough weight of the
// target, rounded up, so that a rough sum that meets it is never too low a key's.
template <int kPerLane>
__device__ uint32_t find_key(const Column<kPerLane>& column, bool topk, double target, double units) {
  if (!(target > 0)) return column.greatest();
  uint32_t key = 0;
  if (units < 4e9) {
    const uint32_t bound = uint32_t(units);
    for (uint32_t bit = 0x80000000u; bit > 0; bit /= 2) {
      if (column.rough_reach(key | bit) >= bound) key |= bit;
    }
  }
  if (topk) return key;
  for (;;) {  // rarely more than once
    const uint32_t next = column.next_above(key);
    if (next == ~0u || column.reach(false, next) < target) return key;
    key = next;
  }
}

// Fills the column of token t of the tile and returns its target.
template <int kPerLane>
__device__ double load_column(const QueryHeadArgs& a, const float* tile, int t, int own, Column<kPerLane>& column,
                              double& units) {
  const int blocks = a.pools.blocks, lane = threadIdx.x % 32;
  float g[kPerLane];
  float max = __int_as_float(0xff800000);
  column.min = -max;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int c = 32 * j + lane;
    g[j] = c < blocks ? tile[c * kDescentPitch + t] : __int_as_float(0x7fffffff);  // NaN: no part in anything
    column.min = fminf(column.min, g[j]);
    max = fmaxf(max, g[j]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    column.min = fminf(column.min, __shfl_xor_sync(~0u, column.min, step));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
  }
  const double range = double(max) - double(column.min);
  const double scale = range > 0 ? ((1 << kWeightBits) - 1) / range : 0;
  const double rough_scale = scale * (1 - 1e-12);  // fp64 rounding must not round a weight up
  double total = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const bool other = 32 * j + lane != own;
    const double weight = plain_weight(g[j], column.min);
    total += weight;
    column.key[j] = other ? key_of(g[j]) : 0;
    column.rough[j] = !other || isnan(g[j]) ? 0 : a.topk ? 1 : uint32_t(weight * rough_scale);
  }
  if (a.topk) {
    units = a.take;
    return a.take;
  }
  const double own_weight = plain_weight(tile[own * kDescentPitch + t], column.min);
  const double target = plain_target(a.tau, column.min, max, warp_sum_double(total), own_weight);
  units = scale > 0 ? ceil(target * scale) : 5e9;
  return target;
}

// Sets this token's bit in the words of the blocks it attends.
template <int kPerLane>
__device__ void mark_column(const QueryHeadArgs& a, const float* tile, int t, int own, uint32_t* words) {
  const int blocks = a.pools.blocks, lane = threadIdx.x % 32;
  Column<kPerLane> column;
  double units;
  const double target = load_column(a, tile, t, own, column, units);
  const uint32_t key = find_key(column, a.topk, target, units);
  int ties = blocks;  // all of them when nothing reaches the target
  if (key > 0) {
    const double weight = a.topk ? 1.0 : plain_weight(gate_of(key), column.min);
    double sum = column.reach(a.topk, key + 1) + weight;
    for (ties = 1; sum < target && ties < blocks; ++ties) sum += weight;
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int c = 32 * j + lane;
    const bool other = c < blocks && c != own;
    const uint32_t tied = __ballot_sync(~0u, other && column.key[j] == key);
    const bool tie = (tied >> lane & 1) && __popc(tied & ((1u << lane) - 1)) < ties;
    ties -= min(ties, __popc(tied));
    if (c == own || (other && column.key[j] > key) || tie) atomicOr(&words[c], 1u << t);
  }
}

// Grid (mask words, b x n); dynamic shared memory: the tile, then one word per block.
template <int kPerLane>
__global__ void __launch_bounds__(kDescentThreads) descent_kernel(const QueryHeadArgs a) {
  start_after_previous();
  extern __shared__ float tile[];
  const Pools& s = a.pools;
  uint32_t* words = reinterpret_cast<uint32_t*>(tile + s.blocks * kDescentPitch);
  const int bn = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int p0 = blockIdx.x * 32;
  const float* gate = a.gate + int64_t(bn) * s.blocks * s.video_tokens + p0;
  for (int c = warp; c < s.block_count; c += kDescentThreads / 32) {
    const bool video = p0 + lane < s.video_tokens;
    if (video && c < s.blocks) tile[c * kDescentPitch + lane] = __ldg(gate + int64_t(c) * s.video_tokens + lane);
    const uint32_t bits = __ballot_sync(~0u, p0 + lane < s.tokens && (!video || c == s.blocks));
    if (lane == 0) words[c] = bits;
  }
  __syncthreads();
  for (int t = warp; t < 32 && p0 + t < s.video_tokens; t += kDescentThreads / 32) {
    mark_column<kPerLane>(a, tile, t, a.block_of[p0 + t], words);
  }
  __syncthreads();
  uint32_t* mask = a.mask + int64_t(bn) * s.block_count * s.mask_words + blockIdx.x;
  for (int c = threadIdx.x; c < s.block_count; c += kDescentThreads) mask[int64_t(c) * s.mask_words] = words[c];
}

}  // namespace vmoba::kernels
