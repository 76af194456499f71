// Shared by the selection kernels: pools and their tie order, ordered keys of fp32 gates, exact fixed-point sums, and
// the search for the bin in which a descending running sum reaches its target.
//
// Selection, for every pool: among the entries outside the own blocks ("others"), in descending order of gate, ties to
// the lower index, take the shortest prefix whose weight reaches `target`, all of them if none does. Top-k: weight 1,
// target = the number to take. Threshold: weight g - min in units of a power of two,
//   target = ceil(max(0, tau * (sum of weights + eps * den) - sum of own weights)),
// which is section 3 of the specification multiplied by den * (total + eps). All sums are integers, so no order of
// additions changes them.
#pragma once
#include <cstdint>

#include "attention/kernels/kernels.h"

namespace vmoba::kernels {

using u64 = unsigned long long;

constexpr double kEps = 1e-6;

// ---- pools ---------------------------------------------------------------------------------------------------------

// Rows are the (b, n, c) rows of the gate tensor. Row i of a pool is its i-th in tie order (block, then head); an entry
// has the index i * S + p in its pool.
struct Pools {
  Pool kind;
  int heads, blocks, video_tokens, tokens, mask_words, block_count;
  int count;  // pools of all samples
  int rows;   // rows of one pool
  int bits;   // ceil(log2(entries of one pool))

  __host__ __device__ u64 entries() const { return u64(rows) * video_tokens; }
};

struct Row {
  int bn, c;
};

__device__ __forceinline__ Row row_of(const Pools& s, int pool, int i) {
  switch (s.kind) {
    case Pool::kBlock:
      return {pool / s.blocks * s.heads + i, pool % s.blocks};
    case Pool::kHeadGlobal:
      return {pool, i};
    default:
      return {pool * s.heads + i % s.heads, i / s.heads};
  }
}

// The inverse: pool and tie-order row of (b, n, c).
__device__ __forceinline__ void pool_of(const Pools& s, int bn, int c, int& pool, int& i) {
  switch (s.kind) {
    case Pool::kBlock:
      pool = bn / s.heads * s.blocks + c;
      i = bn % s.heads;
      return;
    case Pool::kHeadGlobal:
      pool = bn;
      i = c;
      return;
    default:
      pool = bn / s.heads;
      i = c * s.heads + bn % s.heads;
  }
}

// ---- keys ----------------------------------------------------------------------------------------------------------

// Unsigned order of keys = order of floats; -0 equals +0, NaN is the least (key 0, below -inf).
__device__ __forceinline__ uint32_t key_of(float g) {
  if (isnan(g)) return 0;
  const uint32_t u = __float_as_uint(g + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ __forceinline__ float gate_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// ---- fixed-point weights -------------------------------------------------------------------------------------------

// Weight of g: (g - min) / unit, rounded. unit = 2^exponent with max - min <= 2^52 units and the sum of a whole pool
// below 2^63. magic = 2^52 units: adding it leaves the rounded weight in the mantissa's low bits.
struct Fixed {
  double min, magic;
  int exponent;

  __device__ __forceinline__ u64 raw(float g) const { return __double_as_longlong((double(g) - min) + magic); }
  __device__ __forceinline__ u64 bias() const { return __double_as_longlong(magic); }
  __device__ __forceinline__ u64 weight(float g) const { return isnan(g) ? 0 : raw(g) & ((u64(1) << 52) - 1); }
};

// 2^exponent, for exponents of normal doubles: ldexp and ilogb would cost hundreds of instructions.
__device__ __forceinline__ double power_of_two(int exponent) {
  return __longlong_as_double(int64_t(exponent + 1023) << 52);
}

__device__ inline Fixed fixed_of(float min, float max, int pool_bits) {
  const double range = double(max) - double(min);  // 0, normal, or not finite: fp32 differences never underflow
  const int bits = pool_bits > 12 ? 62 - pool_bits : 50;
  const int log2 = int(__double_as_longlong(range) >> 52 & 0x7ff) - 1023;
  const int exponent = range > 0 && log2 < 1024 ? log2 + 1 - bits : 0;
  return {double(min), power_of_two(52 + exponent), exponent};
}

// total and own: sums of weights over the pool and over its own entries.
__device__ inline u64 threshold_target(const Fixed& f, float min, float max, double tau, u64 total, u64 own) {
  const double range = double(max) - double(min);
  const double den = range <= 1e-6 ? 1.0 : range;
  const double target = ceil(tau * (double(total) + kEps * den * power_of_two(-f.exponent)) - double(own));
  if (!(target > 0)) return 0;
  return target < 9e18 ? u64(target) : ~u64(0) >> 1;
}

// ---- pool state ----------------------------------------------------------------------------------------------------

// The interval of keys that a pool's cut is known to lie in. Others with a key >= sure are taken, those in
// [open, sure) are undecided, those below open are left. Everything taken: sure = open = 0.
struct PoolState {
  Fixed fixed;
  u64 total, own;   // sums of weights, threshold only
  u64 above;        // weight of the sure others, found by refine_kernel for itself
  u64 sure_weight;  // the same, for cut_kernel: found by mark_kernel, or with the histogram (top-k)
  u64 target;
  uint32_t sure, open;
  uint32_t undecided;   // number of others in [open, sure)
  uint32_t candidates;  // entries of the pool's candidate list
  uint32_t ticket[4];   // CTAs done, per level
};

// ---- search in a histogram -----------------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Exclusive prefix sum over the CTA's threads. scratch: 32 entries. Ends with a barrier.
__device__ inline u64 block_prefix(u64 x, u64* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u64 sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const u64 other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  u64 before = 0;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  __syncthreads();
  return before + sum - x;
}

// First rank r in [0, kBins) with count(r) > 0 and base + weight(0) + ... + weight(r) >= target, kBins if there is
// none; `before` gets the weights of the ranks below r (all when none). scratch: 34 entries. Every thread of the CTA
// calls it and gets the same answer.
template <int kBins, typename Count, typename Weight>
__device__ int first_reaching(Count count, Weight weight, u64 base, u64 target, u64* scratch, u64& before) {
  const int per_thread = (kBins + blockDim.x - 1) / blockDim.x;
  const int begin = threadIdx.x * per_thread, end = min(begin + per_thread, kBins);
  u64 own_sum = 0;
  for (int r = begin; r < end; ++r) own_sum += weight(r);
  u64* found = scratch + 32;  // [0]: rank, [1]: weight before it
  if (threadIdx.x == 0) found[0] = kBins, found[1] = 0;
  u64 sum = base + block_prefix(own_sum, scratch);  // its barriers order the line above
  const u64 last_sum = sum + own_sum;               // below the target: not in this thread's ranks
  int rank = kBins;
  u64 rank_before = 0;
  for (int r = begin; r < end && last_sum >= target; ++r) {
    const u64 next = sum + weight(r);
    if (next >= target && count(r) > 0) {
      rank = r;
      rank_before = sum;
      break;
    }
    sum = next;
  }
  if (rank < kBins) atomicMin(found, u64(rank));
  __syncthreads();
  const int first = int(found[0]);
  if (first == kBins ? end == kBins && begin < kBins : rank == first)
    found[1] = first == kBins ? last_sum : rank_before;
  __syncthreads();
  before = found[1] - base;
  __syncthreads();
  return first;
}

}  // namespace vmoba::kernels
