// Stage 2, select: which (query, block) pairs are attended, as bit masks in permuted order.
//
// Large pools take two reads of the gates (select_pool.cuh), query_head pools one (select_query_head.cuh). Everything
// is decided on the device, asynchronously on the caller's stream; the caller owns the workspace, which keeps nothing
// between calls. The result is a function of the gates alone: sums are integers (large pools) or fp64 in fixed order
// (query_head), and ties go by index.
#include <algorithm>
#include <cmath>

#include "attention/kernels/arguments.cuh"
#include "attention/kernels/kernels.h"
#include "attention/kernels/launch.cuh"
#include "attention/kernels/select_common.cuh"
#include "attention/kernels/select_pool.cuh"
#include "attention/kernels/select_query_head.cuh"
#include "attention/kernels/workspace.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kFillThreads = 256;

// ---- everything, or the own blocks alone ---------------------------------------------------------------------------

// Grid (lists, words).
__global__ void fill_kernel(const Pools s, const int32_t* block_start, bool everything, uint32_t* mask) {
  start_after_previous();
  const int word = blockIdx.y * kFillThreads + threadIdx.x;
  if (word >= s.mask_words) return;
  const int64_t list = blockIdx.x;
  const int c = int(list % s.block_count);
  const bool whole = everything || c == s.blocks;
  const int start = whole ? 0 : block_start[c], end = whole ? s.tokens : block_start[c + 1];
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) {
    const int p = word * 32 + i;
    const bool text = p >= s.video_tokens && p < s.tokens;
    if ((p >= start && p < end) || text) bits |= 1u << i;
  }
  mask[list * s.mask_words + word] = bits;
}

// ---- range, when stage 1 did not hand one over ---------------------------------------------------------------------

// Ordered keys, greatest wins: [pool][0] of the negated gates, [pool][1] of the gates; 0 before the first.
__global__ void __launch_bounds__(kHistogramThreads) range_kernel(const PoolArgs a, uint32_t* keys) {
  start_after_previous();
  float least = __int_as_float(0x7f800000), greatest = -least;
  const auto add = [&](float g, bool) {
    least = fminf(least, g);
    greatest = fmaxf(greatest, g);
  };
  for_each_gate<kHistogramThreads>(
      a, blockIdx.y,
      [&](const float(&g)[kUnroll]) {
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) add(g[j], false);
      },
      add);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    least = fminf(least, __shfl_xor_sync(~0u, least, step));
    greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, step));
  }
  if (threadIdx.x % 32 == 0) {
    atomicMax(keys + 2 * blockIdx.y, key_of(-least));
    atomicMax(keys + 2 * blockIdx.y + 1, key_of(greatest));
  }
}

__global__ void decode_range_kernel(uint32_t* keys, int pools) {
  start_after_previous();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pools) return;
  float* range = reinterpret_cast<float*>(keys + 2 * i);
  const float least = -gate_of(keys[2 * i]), greatest = gate_of(keys[2 * i + 1]);
  range[0] = least, range[1] = greatest;
}

// ---- host ----------------------------------------------------------------------------------------------------------

Pools pools_of(const Shape& s, Pool kind) {
  Pools p{kind, s.heads, s.blocks, s.video_tokens, s.tokens(), s.mask_words(), s.block_count(), 0, 0, 0};
  switch (kind) {
    case Pool::kBlock:
      p.count = s.batch * s.blocks, p.rows = s.heads;
      break;
    case Pool::kHeadGlobal:
      p.count = s.batch * s.heads, p.rows = s.blocks;
      break;
    case Pool::kOverall:
      p.count = s.batch, p.rows = s.heads * s.blocks;
      break;
    case Pool::kQueryHead:
      p.count = s.batch * s.heads * s.video_tokens, p.rows = s.blocks;
      break;
  }
  while (p.bits < 62 && (u64(1) << p.bits) < p.entries()) ++p.bits;
  return p;
}

// Tables of the large pools. All but the last two are cleared by one memset of the workspace's first `cleared` bytes.
struct Tables {
  PoolState* state;
  uint32_t* ranges;
  int* any_ties;
  char* histogram;
  int64_t cleared;
  u64* candidates;
  uint32_t* ties;
};

// Entries of one candidate list. The undecided bins hold about 0.1 % of a smooth pool; 1/32 leaves room for outliers
// before refining starts.
uint32_t candidate_capacity(const Pools& p) {
  return uint32_t(std::max<u64>(4096, p.entries() / 32));
}

int64_t carve(const Pools& p, void* workspace, Tables* tables) {
  Workspace pieces(workspace);
  tables->state = pieces.take<PoolState>(p.count);
  tables->ranges = pieces.take<uint32_t>(p.count * int64_t(2));
  tables->any_ties = pieces.take<int>(1);
  tables->histogram = pieces.take<char>(p.count * int64_t(kHistogramBytes));
  tables->cleared = pieces.bytes();
  tables->candidates = pieces.take<u64>(p.count * int64_t(candidate_capacity(p)));
  tables->ties = pieces.take<uint32_t>(p.count * int64_t(p.rows) * ((p.video_tokens + kMarkTokens - 1) / kMarkTokens));
  return pieces.bytes();
}

bool choice_valid(const SelectParams& params) {
  if (int(params.pool) < 0 || int(params.pool) > 3) return false;
  if (params.mode == SelectMode::kThreshold) return params.tau >= 0;  // refuses NaN too
  const bool part_valid = params.topk_part >= 0 && params.topk_part < 1;
  if (params.topk_part != 0 && (params.pool == Pool::kQueryHead || !part_valid)) return false;
  return params.mode == SelectMode::kTopk && params.topk >= 1 && params.pool != Pool::kBlock;
}

bool arguments_valid(const SelectArgs& a) {
  if (!shape_valid(a.shape) || !choice_valid(a.params) || !partition_valid(a.partition, a.shape)) return false;
  if (a.gate == nullptr || a.lists.mask == nullptr || a.partition.block_of == nullptr) return false;
  if (a.params.pool == Pool::kQueryHead) return true;
  const Pools p = pools_of(a.shape, a.params.pool);
  // Indices are 32 bits, pools a grid's y.
  return workspace_valid(a.workspace) && p.entries() < (u64(1) << 32) && p.count <= 65535;
}

// Others that top-k takes from one pool.
u64 topk_target(const Shape& s, const SelectParams& params) {
  const u64 rows = params.pool == Pool::kQueryHead    ? 1
                   : params.pool == Pool::kHeadGlobal ? u64(s.video_tokens)
                                                      : u64(s.heads) * s.video_tokens;
  if (params.topk >= s.blocks) return u64(s.blocks - 1) * rows;
  return u64(params.topk - 1) * rows + u64(std::llround(params.topk_part * double(rows)));
}

template <int kPerLane>
cudaError_t launch_descent(const QueryHeadArgs& a, int heads, const Launcher& launch) {
  const int bytes = a.pools.blocks * kDescentPitch * 4 + a.pools.block_count * 4;
  const auto kernel = descent_kernel<kPerLane>;
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return e;
  return launch(kernel, dim3(a.pools.mask_words, heads), kDescentThreads, bytes, a);
}

cudaError_t select_query_head(const SelectArgs& args, const Pools& pools, const Launcher& launch) {
  const bool topk = args.params.mode == SelectMode::kTopk;
  const QueryHeadArgs a{pools,
                        args.gate,
                        args.partition.block_of,
                        args.partition.block_start,
                        topk,
                        args.params.tau,
                        topk ? int(topk_target(args.shape, args.params)) : 0,
                        args.lists.mask};
  const int heads = args.shape.batch * args.shape.heads, c = pools.blocks;
  if (c <= kMaxSorted) {
    const dim3 grid((pools.tokens + kSortThreads - 1) / kSortThreads, heads);
    if (c <= 8) return launch(sort_kernel<8>, grid, kSortThreads, 0, a);
    if (c <= 16) return launch(sort_kernel<16>, grid, kSortThreads, 0, a);
    if (c <= 32) return launch(sort_kernel<32>, grid, kSortThreads, 0, a);
    if (c <= 64) return launch(sort_kernel<64>, grid, kSortThreads, 0, a);
    return launch(sort_kernel<128>, grid, kSortThreads, 0, a);
  }
  if (c <= 256) return launch_descent<8>(a, heads, launch);
  if (c <= 384) return launch_descent<12>(a, heads, launch);
  if (c <= 768) return launch_descent<24>(a, heads, launch);
  if (c <= 1536) return launch_descent<48>(a, heads, launch);
  return cudaErrorNotSupported;
}

// `ctas` CTAs shared out among the pools.
dim3 pool_grid(const Pools& p, int ctas) {
  return dim3(std::max(1, ctas / p.count), p.count);
}

template <bool kTopk>
cudaError_t select_pools(const PoolArgs& a, int sms, const Launcher& launch) {
  const Pools& p = a.pools;
  cudaError_t e = launch(histogram_kernel<kTopk>, pool_grid(p, sms * kHistogramCtas), kHistogramThreads, 0, a);
  for (int level = 0; level < kRefineLevels && !e; ++level) {
    e = launch(refine_kernel<kTopk>, pool_grid(p, sms), kRefineThreads, 0, a, level);
  }
  const int lists = p.count * p.rows / p.blocks * p.block_count;
  const int steps = lists * ((p.mask_words + kMarkWords - 1) / kMarkWords);
  const int warps = sms * kMarkCtas * (kMarkThreads / 32);
  const int steps_per_warp = (steps + warps - 1) / warps;
  const int mark_ctas = (steps + steps_per_warp * (kMarkThreads / 32) - 1) / (steps_per_warp * (kMarkThreads / 32));
  if (!e) e = launch(mark_kernel<kTopk>, mark_ctas, kMarkThreads, 0, a, steps, steps_per_warp);
  if (!e) e = launch(cut_kernel<kTopk>, p.count, kCutThreads, 0, a);
  if (!e) e = launch(tie_kernel, sms, kMarkThreads, 0, a);
  return e;
}

cudaError_t select_large(const SelectArgs& args, const Pools& pools, int device, const Launcher& launch) {
  Tables tables;
  carve(pools, args.workspace, &tables);
  if (cudaError_t e = cudaMemsetAsync(args.workspace, 0, tables.cleared, launch.stream)) return e;
  int sms = 0;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;

  PoolArgs a{};
  a.pools = pools;
  a.gate = args.gate;
  a.block_start = args.partition.block_start;
  a.topk = args.params.mode == SelectMode::kTopk;
  a.tau = args.params.tau;
  a.topk_target = a.topk ? topk_target(args.shape, args.params) : 0;
  a.state = tables.state;
  a.histogram = tables.histogram;
  a.candidates = tables.candidates;
  a.capacity = candidate_capacity(pools);
  a.ties = tables.ties;
  a.any_ties = tables.any_ties;
  a.mask = args.lists.mask;
  if (args.range && pools.kind != Pool::kBlock) {
    a.range = args.range;
    a.ranges = pools.kind == Pool::kOverall ? pools.heads : 1;
  } else {
    const dim3 grid = pool_grid(pools, sms * kHistogramCtas);
    if (cudaError_t e = launch(range_kernel, grid, kHistogramThreads, 0, a, tables.ranges)) return e;
    if (cudaError_t e = launch(decode_range_kernel, (pools.count + 127) / 128, 128, 0, tables.ranges, pools.count))
      return e;
    a.range = reinterpret_cast<const float*>(tables.ranges);
    a.ranges = 1;
  }
  return a.topk ? select_pools<true>(a, sms, launch) : select_pools<false>(a, sms, launch);
}

}  // namespace

int64_t select_workspace_bytes(const Shape& shape, const SelectParams& params) {
  if (!shape_valid(shape) || !choice_valid(params) || params.pool == Pool::kQueryHead) return 0;
  Tables unused;
  return carve(pools_of(shape, params.pool), nullptr, &unused);
}

cudaError_t select(const SelectArgs& args, cudaStream_t stream) {
  if (!arguments_valid(args)) return cudaErrorInvalidValue;
  const Pools pools = pools_of(args.shape, args.params.pool);
  const bool topk = args.params.mode == SelectMode::kTopk;
  const bool everything = args.shape.blocks == 1 || (!topk && args.params.tau >= 1);
  int device = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  const Launcher launch{stream, kernel_family(device) == 90};
  if (everything || (topk && args.params.topk == 1 && args.params.topk_part == 0)) {
    const dim3 grid(unsigned(args.shape.lists()), (pools.mask_words + kFillThreads - 1) / kFillThreads);
    return launch(fill_kernel, grid, kFillThreads, 0, pools, args.partition.block_start, everything, args.lists.mask);
  }
  if (args.params.pool == Pool::kQueryHead) return select_query_head(args, pools, launch);
  return select_large(args, pools, device, launch);
}

}  // namespace vmoba::kernels
