// Selection over large pools (block, head_global, overall) in two reads of the gates, without sorting them:
//
//   histogram_kernel  counts the others in kBins bins of equal width between min and max; the pool's last CTA bounds
//                     the running sum by the bins' edges and gets the few bins in which it must reach the target;
//   refine_kernel     (3 levels, normally leaves at once) narrows that interval by radix digits of the key with exact
//                     sums while it holds more entries than a candidate list takes: outliers, ties by the million;
//   mark_kernel       writes the mask bits of all entries but the undecided ones, which it appends to the pool's
//                     candidate list, and sums the exact weight of what it took;
//   cut_kernel        one CTA per pool finds the exact cut among the candidates and sets their bits;
//   tie_kernel        (normally leaves at once) when a single key has more entries than a candidate list takes, sets
//                     the bits of the first ones in index order.
//
// The order in which candidates are appended varies from run to run, the result does not: the cut depends on sums of
// integers and on (key, index) alone.
#pragma once
#include "attention/kernels/launch.cuh"
#include "attention/kernels/select_common.cuh"

namespace vmoba::kernels {

constexpr int kBins = 4096;                                // histogram_kernel
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;  // refine_kernel, cut_kernel: keys in 11 + 11 + 10 bits
constexpr int kRefineLevels = 3;
constexpr int kHistogramBytes = kDigits * 12;  // per pool: 4096 u32, or 2048 (u64, u32)
constexpr int kHistogramThreads = 512, kUnroll = 8;
constexpr int kHistogramCtas = 3;  // per multiprocessor
constexpr int kRefineThreads = 1024;
constexpr int kMarkThreads = 128, kMarkCtas = 7, kMarkWords = 8;  // words of one warp's step
constexpr int kMarkTokens = 32 * kMarkWords;
constexpr int kCutThreads = 1024;
static_assert(kHistogramBytes >= kBins * 4, "one buffer serves both histograms");

struct PoolArgs {
  Pools pools;
  const float* gate;
  const int32_t* block_start;
  const float* range;  // [pools, ranges, 2]: min and max of each part of a pool
  int ranges;
  bool topk;
  double tau;
  u64 topk_target;  // entries to take
  PoolState* state;
  char* histogram;  // kHistogramBytes per pool
  u64* candidates;  // [pools, capacity] key << 32 | index
  uint32_t capacity;
  uint32_t* ties;  // [pools, rows, ceil(S / kMarkTokens)] entries of the single undecided key, then how many to take
  int* any_ties;
  uint32_t* mask;
};

__device__ __forceinline__ int shift_of(int level) {
  return level == 0 ? 21 : level == 1 ? 10 : 0;
}

__device__ inline void pool_range(const PoolArgs& a, int pool, float& min, float& max) {
  const float* range = a.range + int64_t(pool) * a.ranges * 2;
  min = range[0], max = range[1];
  for (int i = 1; i < a.ranges; ++i) {
    min = fminf(min, range[2 * i]);
    max = fmaxf(max, range[2 * i + 1]);
  }
}

// Walks the units (kUnroll positions per thread, of one row) of a pool that belong to this CTA. Units of others alone
// go to whole(g), g[kUnroll]; of the rest each entry goes to single(g, is_own).
template <int kThreads, typename Whole, typename Single>
__device__ __forceinline__ void for_each_gate(const PoolArgs& a, int pool, Whole whole, Single single) {
  const Pools& s = a.pools;
  constexpr int kTokens = kThreads * kUnroll;
  const int units_per_row = (s.video_tokens + kTokens - 1) / kTokens;
  for (int u = blockIdx.x; u < s.rows * units_per_row; u += gridDim.x) {
    const int i = u / units_per_row, first = u % units_per_row * kTokens;
    const Row row = row_of(s, pool, i);
    const int own_start = a.block_start[row.c], own_end = a.block_start[row.c + 1];
    const float* gate = a.gate + (int64_t(row.bn) * s.blocks + row.c) * s.video_tokens + first + threadIdx.x;
    const int left = s.video_tokens - first - threadIdx.x;
    float g[kUnroll];
    if (first + kTokens <= s.video_tokens && (own_start >= first + kTokens || own_end <= first)) {
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) g[j] = __ldg(gate + j * kThreads);
      whole(g);
      continue;
    }
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) g[j] = j * kThreads < left ? __ldg(gate + j * kThreads) : 0.0f;
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int p = first + threadIdx.x + j * kThreads;
      if (j * kThreads < left) single(g[j], p >= own_start && p < own_end);
    }
  }
}

// Sum over the CTA, valid in thread 0. scratch: 32 entries.
__device__ inline u64 block_sum(u64 x, u64* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  u64 sum = 0;
  if (threadIdx.x == 0) {
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += scratch[w];
  }
  __syncthreads();
  return sum;
}

// True in every thread of the CTA that finishes last; it then sees what the others wrote.
__device__ inline bool last_cta(uint32_t* ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

__device__ inline void clear_histogram(const PoolArgs& a, int pool) {
  uint32_t* words = reinterpret_cast<uint32_t*>(a.histogram + int64_t(pool) * kHistogramBytes);
  for (int i = threadIdx.x; i < kHistogramBytes / 4; i += blockDim.x) words[i] = 0;
}

// ---- histogram -----------------------------------------------------------------------------------------------------

// Equal-width bins. Every step rounds monotonically, so a bin is an interval of keys.
struct Bins {
  float min, inverse_width;
  double width;  // in units of weight; 0: edges unknown (range of 0, overflow, or denormal)
  double range;  // in units of weight

  __device__ __forceinline__ int bin(float g) const {
    return min_of(__float2uint_rz((g - min) * inverse_width), unsigned(kBins - 1));
  }
  __device__ static unsigned min_of(unsigned a, unsigned b) { return a < b ? a : b; }
  // Bounds of the weight of an entry of the bin: 2^-20 covers the fp32 rounding of bin(), 1 and 2 that of weights.
  __device__ u64 least_weight(int bin) const {
    const double w = floor(bin * width * (1 - 0x1p-20)) - 1;
    return w > 0 ? u64(w) : 0;
  }
  __device__ u64 greatest_weight(int bin) const {
    return u64(width > 0 ? (bin + 1) * width * (1 + 0x1p-20) : range) + 2;
  }
  // The least key whose bin is at least `bin`, for bin in (0, kBins); the greatest key + 1 if there is none.
  __device__ uint32_t first_key(int target, float max) const {
    uint32_t low = key_of(min), high = key_of(max) + 1;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (bin(gate_of(middle)) >= target) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

__device__ inline Bins bins_of(float min, float max, const Fixed& fixed) {
  const float range = max - min;
  const bool usable = range > 1e-30f && isfinite(range);
  Bins b;
  b.min = min;
  b.inverse_width = usable ? kBins / range : 0.0f;
  b.range = range >= 0 && isfinite(range) ? (double(max) - double(min)) * power_of_two(-fixed.exponent) : 0x1p52;
  b.width = usable ? b.range / kBins : 0.0;
  return b;
}

// Last CTA: from the pool's counts (in shared memory) to the interval [open, sure) that must hold the cut.
__device__ inline void bound_cut(const PoolArgs& a, int pool, const uint32_t* counts, const Bins& bins, float max,
                                 u64 target, u64* scratch) {
  PoolState& state = a.state[pool];
  const auto count = [&](int r) { return counts[kBins - 1 - r]; };
  u64 before;
  int first, last;
  if (a.topk) {
    first = last = first_reaching<kBins>(
        count, [&](int r) { return u64(count(r)); }, 0, target, scratch, before);
  } else {
    const auto most = [&](int r) { return count(r) ? count(r) * bins.greatest_weight(kBins - 1 - r) : 0; };
    const auto least = [&](int r) { return count(r) ? count(r) * bins.least_weight(kBins - 1 - r) : 0; };
    first = first_reaching<kBins>(count, most, 0, target, scratch, before);
    last = first_reaching<kBins>(count, least, 0, target, scratch, before);
  }
  const bool none = first == kBins;  // nothing reaches the target: all others are taken
  u64 undecided = 0;
  for (int r = first + threadIdx.x; r <= min(last, kBins - 1); r += blockDim.x) undecided += count(r);
  undecided = block_sum(undecided, scratch);
  if (threadIdx.x == 0) {
    state.target = target;
    state.undecided = uint32_t(undecided);
    state.sure = none ? 0 : first == 0 ? ~0u : bins.first_key(kBins - first, max);
    if (a.topk) state.sure_weight = before;
    scratch[0] = undecided;
  } else if (threadIdx.x == 32) {
    state.open = none || last >= kBins - 1 ? 0 : bins.first_key(kBins - 1 - last, max);
  }
  __syncthreads();
  if (scratch[0] > a.capacity) clear_histogram(a, pool);
}

// Adds the weights of a thread's entries; a NaN (rare) sends them through the checked conversion.
__device__ __forceinline__ void add_weights(const Fixed& fixed, const float (&g)[kUnroll], u64& total) {
  bool nan = false;
  u64 raw = 0;
#pragma unroll
  for (int j = 0; j < kUnroll; ++j) {
    nan |= isnan(g[j]);
    raw += fixed.raw(g[j]);  // may wrap; the biases taken off again make it exact
  }
  if (!nan) {
    total += raw - kUnroll * fixed.bias();
  } else {
#pragma unroll  // rolled, the indexing would send all of g through local memory
    for (int j = 0; j < kUnroll; ++j) total += fixed.weight(g[j]);
  }
}

// Grid (CTAs per pool, pools).
template <bool kTopk>
__global__ void __launch_bounds__(kHistogramThreads, kHistogramCtas) histogram_kernel(const PoolArgs a) {
  __shared__ uint32_t counts[kBins];
  __shared__ u64 scratch[34];
  start_after_previous();
  const int pool = blockIdx.y;
  float min, max;
  pool_range(a, pool, min, max);
  const Fixed fixed = fixed_of(min, max, a.pools.bits);
  const Bins bins = bins_of(min, max, fixed);
  for (int i = threadIdx.x; i < kBins; i += kHistogramThreads) counts[i] = 0;
  __syncthreads();

  u64 total = 0, own = 0;
  for_each_gate<kHistogramThreads>(
      a, pool,
      [&](const float(&g)[kUnroll]) {
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) atomicAdd(&counts[bins.bin(g[j])], 1u);
        if (!kTopk) add_weights(fixed, g, total);
      },
      [&](float g, bool is_own) {
        const u64 weight = kTopk ? 0 : fixed.weight(g);
        total += weight;
        if (is_own) {
          own += weight;
        } else {
          atomicAdd(&counts[bins.bin(g)], 1u);
        }
      });
  __syncthreads();

  PoolState& state = a.state[pool];
  uint32_t* global = reinterpret_cast<uint32_t*>(a.histogram + int64_t(pool) * kHistogramBytes);
  for (int i = threadIdx.x; i < kBins; i += kHistogramThreads) {
    if (counts[i]) atomicAdd(global + i, counts[i]);
  }
  if (!kTopk) {
    total = block_sum(total, scratch);
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) atomicAdd(&state.total, total), atomicAdd(&state.own, own);
  }
  if (!last_cta(&state.ticket[0])) return;
#pragma unroll
  for (int i = 0; i < kBins / kHistogramThreads; ++i) {
    counts[i * kHistogramThreads + threadIdx.x] = __ldcg(global + i * kHistogramThreads + threadIdx.x);
  }
  if (threadIdx.x == 0) state.fixed = fixed;
  const u64 target =
      kTopk ? a.topk_target : threshold_target(fixed, min, max, a.tau, __ldcg(&state.total), __ldcg(&state.own));
  __syncthreads();
  bound_cut(a, pool, counts, bins, max, target, scratch);
}

// ---- radix digits with exact sums ----------------------------------------------------------------------------------

struct DigitSums {
  uint32_t count[kDigits], low[kDigits], high[kDigits];

  __device__ void clear() {
    for (int i = threadIdx.x; i < kDigits; i += blockDim.x) count[i] = low[i] = high[i] = 0;
  }
  // Two native 32-bit additions; a 64-bit one in shared memory would be a compare-and-swap loop.
  __device__ void add(int digit, u64 weight) {
    atomicAdd(&count[digit], 1u);
    const uint32_t part = uint32_t(weight);
    const uint32_t old = atomicAdd(&low[digit], part);
    const uint32_t rest = uint32_t(weight >> 32) + (old + part < old);
    if (rest) atomicAdd(&high[digit], rest);
  }
  __device__ u64 sum(int digit) const { return u64(high[digit]) << 32 | low[digit]; }
};

// Grid (CTAs per pool, pools). Level 0 to 2.
template <bool kTopk>
__global__ void __launch_bounds__(kRefineThreads) refine_kernel(const PoolArgs a, int level) {
  start_after_previous();
  const int pool = blockIdx.y;
  PoolState& state = a.state[pool];
  if (state.undecided <= a.capacity) return;
  __shared__ DigitSums sums;
  __shared__ u64 scratch[34];
  const uint32_t open = state.open, sure = state.sure;
  const Fixed fixed = state.fixed;
  const int shift = shift_of(level);
  sums.clear();
  __syncthreads();
  u64 above = 0;
  const auto add = [&](float g, bool is_own) {
    const uint32_t key = key_of(g);
    if (is_own || key < open) return;
    const u64 weight = kTopk ? 1 : fixed.weight(g);
    if (key >= sure) {
      above += weight;
    } else {
      sums.add((key >> shift) - (open >> shift), weight);
    }
  };
  for_each_gate<kRefineThreads>(
      a, pool,
      [&](const float(&g)[kUnroll]) {
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) add(g[j], false);
      },
      add);
  above = block_sum(above, scratch);
  u64* global_sum = reinterpret_cast<u64*>(a.histogram + int64_t(pool) * kHistogramBytes);
  uint32_t* global_count = reinterpret_cast<uint32_t*>(global_sum + kDigits);
  if (threadIdx.x == 0) atomicAdd(&state.above, above);
  for (int i = threadIdx.x; i < kDigits; i += kRefineThreads) {
    if (!sums.count[i]) continue;
    atomicAdd(global_count + i, sums.count[i]);
    atomicAdd(global_sum + i, sums.sum(i));
  }
  if (!last_cta(&state.ticket[1 + level])) return;

  u64 before;
  const auto count = [&](int r) { return __ldcg(global_count + kDigits - 1 - r); };
  const auto weight = [&](int r) { return __ldcg(global_sum + kDigits - 1 - r); };
  const int rank = first_reaching<kDigits>(count, weight, __ldcg(&state.above), state.target, scratch, before);
  const uint32_t undecided = rank < kDigits ? count(rank) : 0;
  if (threadIdx.x == 0) {
    const u64 digit_start = (u64(open >> shift) + kDigits - 1 - rank) << shift;
    const u64 digit_end = digit_start + (u64(1) << shift);
    state.open = rank == kDigits ? 0 : uint32_t(digit_start > open ? digit_start : open);
    state.sure = rank == kDigits ? 0 : uint32_t(digit_end < sure ? digit_end : sure);
    state.undecided = undecided;
    if (kTopk) state.sure_weight = state.above + before;
    state.above = 0;
  }
  __syncthreads();
  clear_histogram(a, pool);
}

// ---- mark ----------------------------------------------------------------------------------------------------------

// What a warp keeps of the pool it is in. The interval as floats: one comparison instead of a key per entry.
struct MarkPool {
  int pool = -1;
  bool edge;  // the interval takes in NaN (all others taken, or open to the least key): comparisons alone won't do
  bool all, tied;
  float sure, open;
  Fixed fixed;
  u64 raw;  // of the lane's sure others, biased
  int taken;

  __device__ void enter(const PoolArgs& a, int next) {
    const PoolState& s = a.state[next];
    pool = next;
    all = s.sure == 0;
    edge = s.open == 0;
    tied = s.undecided > a.capacity;
    sure = gate_of(s.sure), open = gate_of(s.open);  // NaN for the key beyond all, which no gate reaches
    fixed = s.fixed;
    raw = 0, taken = 0;
  }
  __device__ void leave(const PoolArgs& a) {
    if (pool < 0 || a.topk || all) return;
    const u64 weight = warp_sum(raw - taken * fixed.bias());
    if (threadIdx.x % 32 == 0 && weight) atomicAdd(&a.state[pool].sure_weight, weight);
  }
  __device__ __forceinline__ void take(float g) {
    raw += fixed.raw(g);
    ++taken;
  }
};

// Appends this warp's undecided entries (bit j of `open`: position first + 32 j of tie-order row i).
__device__ inline void append(const PoolArgs& a, int pool, int i, int first, uint32_t open,
                              const float (&g)[kMarkWords]) {
  const int lane = threadIdx.x % 32;
  const int mine = __popc(open);
  int offset = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, offset, step);
    if (lane >= step) offset += other;
  }
  uint32_t base = 0;
  if (lane == 31) base = atomicAdd(&a.state[pool].candidates, unsigned(offset));
  base = __shfl_sync(~0u, base, 31) + offset - mine;
#pragma unroll
  for (int j = 0; j < kMarkWords; ++j) {
    if (!(open >> j & 1)) continue;
    const u64 index = u64(i) * a.pools.video_tokens + first + 32 * j;
    if (base < a.capacity) a.candidates[u64(pool) * a.capacity + base] = u64(key_of(g[j])) << 32 | index;
    ++base;
  }
}

__device__ __forceinline__ void load_words(const float* gate, int video_tokens, int word, float (&g)[kMarkWords]) {
  const int first = word * 32 + threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kMarkWords; ++j) g[j] = first + 32 * j < video_tokens ? __ldg(gate + first + 32 * j) : 0.0f;
}

// One warp step: kMarkWords words of a list's mask, starting at `word`, from their gates.
template <bool kTopk>
__device__ __forceinline__ void mark_words(const PoolArgs& a, MarkPool& m, const float (&g)[kMarkWords], uint32_t* mask,
                                           int i, int own_start, int own_end, int word) {
  const Pools& s = a.pools;
  const int lane = threadIdx.x % 32;
  const int first = word * 32 + lane, end = word * 32 + kMarkTokens;
  uint32_t open = 0, kept = 0;
  if (end <= s.video_tokens && (own_start >= end || own_end <= word * 32) && !m.edge) {  // others alone, no NaN taken
#pragma unroll
    for (int j = 0; j < kMarkWords; ++j) {
      const bool taken = g[j] >= m.sure;
      if (!kTopk && taken) m.take(g[j]);
      if (g[j] >= m.open && !taken) open |= 1u << j;
      const uint32_t bits = __ballot_sync(~0u, taken);
      if (lane == j) kept = bits;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kMarkWords; ++j) {
      const int p = first + 32 * j;
      const bool video = p < s.video_tokens;
      const bool other = video && (p < own_start || p >= own_end);
      const bool taken = other && (m.all || g[j] >= m.sure);
      if (!kTopk && taken && !m.all) m.take(g[j]);
      if (other && !taken && (m.edge || g[j] >= m.open)) open |= 1u << j;
      const uint32_t bits = __ballot_sync(~0u, taken || (!other && p < s.tokens));
      if (lane == j) kept = bits;
    }
  }
  if (lane < kMarkWords && word + lane < s.mask_words) mask[word + lane] = kept;
  if (m.tied) {
    const int units = (s.video_tokens + kMarkTokens - 1) / kMarkTokens, unit = word / kMarkWords;
    const int count = warp_sum(__popc(open));
    if (lane == 0 && unit < units) a.ties[(int64_t(m.pool) * s.rows + i) * units + unit] = count;
  } else if (__any_sync(~0u, open != 0)) {
    append(a, m.pool, i, first, open, g);
  }
}

// The text list: every row.
__device__ inline void mark_text(const Pools& s, uint32_t* mask, int word) {
  word += threadIdx.x % 32;
  if (threadIdx.x % 32 >= kMarkWords || word >= s.mask_words) return;
  const int left = s.tokens - word * 32;
  mask[word] = left >= 32 ? ~0u : (1u << left) - 1;
}

// Every warp takes a contiguous run of steps, so that it stays in one pool as long as possible.
template <bool kTopk>
__global__ void __launch_bounds__(kMarkThreads, kMarkCtas)
    mark_kernel(const PoolArgs a, int steps, int steps_per_warp) {
  start_after_previous();
  const Pools& s = a.pools;
  const int warp = (blockIdx.x * kMarkThreads + threadIdx.x) / 32;
  int at = warp * steps_per_warp;
  const int end = min(at + steps_per_warp, steps);
  const int steps_per_row = (s.mask_words + kMarkWords - 1) / kMarkWords;
  MarkPool m;
  while (at < end) {
    const int list = at / steps_per_row, bn = list / s.block_count, c = list % s.block_count;
    int step = at % steps_per_row;
    const int row_end = min(steps_per_row, step + end - at);
    at += row_end - step;
    uint32_t* mask = a.mask + int64_t(list) * s.mask_words;
    if (c == s.blocks) {
      for (; step < row_end; ++step) mark_text(s, mask, step * kMarkWords);
      continue;
    }
    int pool, i;
    pool_of(s, bn, c, pool, i);
    if (pool != m.pool) {
      m.leave(a);
      m.enter(a, pool);
    }
    const float* gate = a.gate + (int64_t(bn) * s.blocks + c) * s.video_tokens;
    const int own_start = a.block_start[c], own_end = a.block_start[c + 1];
    float g[kMarkWords], next[kMarkWords];
    load_words(gate, s.video_tokens, step * kMarkWords, g);
    for (; step < row_end; ++step) {
      if (step + 1 < row_end) load_words(gate, s.video_tokens, (step + 1) * kMarkWords, next);
      mark_words<kTopk>(a, m, g, mask, i, own_start, own_end, step * kMarkWords);
#pragma unroll
      for (int j = 0; j < kMarkWords; ++j) g[j] = next[j];
    }
  }
  m.leave(a);
}

// ---- cut -----------------------------------------------------------------------------------------------------------

__device__ inline void set_bit(const PoolArgs& a, int pool, u64 index) {
  const Pools& s = a.pools;
  const Row row = row_of(s, pool, int(index / s.video_tokens));
  const int p = int(index % s.video_tokens);
  atomicOr(a.mask + (int64_t(row.bn) * s.block_count + row.c) * s.mask_words + p / 32, 1u << p % 32);
}

// Number of entries of one key to take, when `base` is the weight of the greater ones: the fewest that reach the
// target, at least one, at most `count`.
__device__ inline uint32_t ties_to_take(u64 base, u64 target, u64 weight, uint32_t count) {
  if (base >= target) return 1;
  if (weight == 0) return count;
  const u64 needed = (target - base + weight - 1) / weight;
  return needed < count ? uint32_t(needed) : count;
}

// Quotas of the mark steps of a pool whose undecided entries share one key, in index order.
__device__ inline void share_ties(const PoolArgs& a, int pool, u64 take, u64* scratch) {
  const Pools& s = a.pools;
  const int64_t steps = int64_t(s.rows) * ((s.video_tokens + kMarkTokens - 1) / kMarkTokens);
  uint32_t* ties = a.ties + pool * steps;
  const int64_t per_thread = (steps + blockDim.x - 1) / blockDim.x;
  const int64_t begin = min(int64_t(threadIdx.x) * per_thread, steps), end = min(begin + per_thread, steps);
  u64 sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += ties[i];
  u64 before = block_prefix(sum, scratch);
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t count = ties[i];
    ties[i] = before >= take ? 0 : uint32_t(min(u64(count), take - before));
    before += count;
  }
  if (threadIdx.x == 0) *a.any_ties = 1;
}

// Calls body(candidate), four loads ahead.
template <typename Body>
__device__ __forceinline__ void for_each_candidate(const u64* candidates, uint32_t n, Body body) {
  constexpr int kAhead = 4;
  for (uint32_t first = threadIdx.x; first < n; first += kAhead * kCutThreads) {
    u64 candidate[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j * kCutThreads < n) candidate[j] = __ldcg(candidates + first + j * kCutThreads);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j * kCutThreads < n) body(candidate[j]);
    }
  }
}

// Narrows [low, high] (inclusive, 32-bit values) to the one value at which the descending running weight reaches the
// target; base grows by the weight of what is greater. value(candidate) < 0: leave it out. Returns the number of
// candidates of that value, 0 when nothing reaches the target.
template <typename Value, typename Weight>
__device__ uint32_t narrow(const u64* candidates, uint32_t n, Value value, Weight weight, DigitSums& sums, u64 target,
                           uint32_t& low, uint32_t& high, u64& base, u64* scratch) {
  uint32_t count = 0;
  for (int level = 0; level < kRefineLevels; ++level) {
    const int shift = shift_of(level);
    if (level < kRefineLevels - 1 && low >> shift == high >> shift) continue;
    sums.clear();
    __syncthreads();
    for_each_candidate(candidates, n, [&](u64 candidate) {
      const int64_t v = value(candidate);
      if (v >= low && v <= high) sums.add((uint32_t(v) >> shift) - (low >> shift), weight(uint32_t(v)));
    });
    __syncthreads();
    u64 before;
    const int rank =
        first_reaching<kDigits>([&](int r) { return sums.count[kDigits - 1 - r]; },
                                [&](int r) { return sums.sum(kDigits - 1 - r); }, base, target, scratch, before);
    if (rank == kDigits) return 0;
    base += before;
    const uint32_t digit = kDigits - 1 - rank;
    count = sums.count[digit];
    __syncthreads();
    const uint32_t start = ((low >> shift) + digit) << shift;
    high = min(high, start + ((1u << shift) - 1));
    low = max(low, start);
  }
  return count;
}

// One CTA per pool.
template <bool kTopk>
__global__ void __launch_bounds__(kCutThreads) cut_kernel(const PoolArgs a) {
  __shared__ DigitSums sums;
  __shared__ u64 scratch[34];
  start_after_previous();
  const int pool = blockIdx.x;
  const PoolState& state = a.state[pool];
  if (state.sure == 0 || state.undecided == 0) return;
  const Fixed fixed = state.fixed;
  const u64 target = state.target;
  u64 base = state.sure_weight;
  const auto weight = [&](uint32_t key) { return kTopk ? 1 : fixed.weight(gate_of(key)); };
  uint32_t low = state.open, high = state.sure - 1;
  if (state.undecided > a.capacity) {
    share_ties(a, pool, ties_to_take(base, target, weight(low), state.undecided), scratch);
    return;
  }

  const uint32_t n = min(state.candidates, a.capacity);
  const u64* candidates = a.candidates + u64(pool) * a.capacity;
  uint32_t key = 0, last_index = ~0u;  // take keys above `key`, and those equal to it up to last_index
  const auto key_at = [](u64 candidate) { return int64_t(candidate >> 32); };
  if (const uint32_t tied = narrow(candidates, n, key_at, weight, sums, target, low, high, base, scratch)) {
    key = low;
    const uint32_t take = ties_to_take(base, target, weight(key), tied);
    if (take < tied) {  // the take-th lowest index: descend on the complement
      uint32_t index_low = 0, index_high = ~0u;
      u64 index_base = 0;
      const auto reversed = [&](u64 candidate) {
        return candidate >> 32 == key ? int64_t(~uint32_t(candidate)) : int64_t(-1);
      };
      const auto one = [](uint32_t) { return u64(1); };
      narrow(candidates, n, reversed, one, sums, take, index_low, index_high, index_base, scratch);
      last_index = ~index_low;
    }
  }
  for_each_candidate(candidates, n, [&](u64 candidate) {
    const uint32_t k = uint32_t(candidate >> 32), index = uint32_t(candidate);
    if (k > key || (k == key && index <= last_index)) set_bit(a, pool, index);
  });
}

// ---- ties by the million -------------------------------------------------------------------------------------------

// A warp per mark step with a quota: takes the first `quota` others of the undecided key.
__global__ void __launch_bounds__(kMarkThreads) tie_kernel(const PoolArgs a) {
  start_after_previous();
  if (*a.any_ties == 0) return;
  const Pools& s = a.pools;
  const int lane = threadIdx.x % 32;
  const int units = (s.video_tokens + kMarkTokens - 1) / kMarkTokens;
  const int64_t steps = int64_t(s.count) * s.rows * units;
  const int64_t warps = int64_t(gridDim.x) * (kMarkThreads / 32);
  for (int64_t at = (blockIdx.x * kMarkThreads + threadIdx.x) / 32; at < steps; at += warps) {
    const int pool = int(at / (int64_t(s.rows) * units));
    const PoolState& state = a.state[pool];
    if (state.undecided <= a.capacity) continue;
    uint32_t quota = a.ties[at];
    const Row row = row_of(s, pool, int(at / units % s.rows));
    const int own_start = a.block_start[row.c], own_length = a.block_start[row.c + 1] - own_start;
    const float* gate = a.gate + (int64_t(row.bn) * s.blocks + row.c) * s.video_tokens;
    uint32_t* mask = a.mask + (int64_t(row.bn) * s.block_count + row.c) * s.mask_words;
    for (int word = int(at % units) * kMarkWords; quota > 0 && word * 32 < s.video_tokens; ++word) {
      const int p = word * 32 + lane;
      const bool other = p < s.video_tokens && unsigned(p - own_start) >= unsigned(own_length);
      const uint32_t tied = __ballot_sync(~0u, other && key_of(gate[min(p, s.video_tokens - 1)]) == state.open);
      const bool take = (tied >> lane & 1) && __popc(tied & ((1u << lane) - 1)) < quota;
      const uint32_t bits = __ballot_sync(~0u, take);
      if (lane == 0) mask[word] |= bits;
      quota -= __popc(bits);
    }
  }
}

}  // namespace vmoba::kernels
