// Stage 1, gate: block means of k, the gate product q . kbar, and the block-order copies of K and V.
//
// Three kernels on the caller's stream, all memory bound:
//   gather_kernel   reads K (and V) once, token rows whole across heads, writes the block-order copies when asked and
//                   one fp32 partial sum per segment of kSegmentTokens tokens of a block;
//   split_kernel    adds the partial sums in a fixed order, writes kbar, and its exact split m1 + m2 + m3 into three
//                   bf16 terms, laid out as the product's B operand;
//   product_kernel  gate = q . kbar by mma.sync m16n8k16, or by wgmma where there are more than 32 blocks on sm_90; the
//                   terms m3, m2, m1 in this order, so that the small sums are not rounded away against the large one.
// Workspace: the partial sums, then the fragments. Nothing is kept between calls. Original token order is read through
// partition.token_of; every output is in permuted order.
#include <cuda_bf16.h>

#include <algorithm>

#include "attention/kernels/arguments.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/kernels.h"
#include "attention/kernels/launch.cuh"
#include "attention/kernels/workspace.cuh"

namespace vmoba::kernels {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kSegmentTokens = 64;  // tokens of one partial sum
constexpr int kGatherUnroll = 8;    // 16-byte loads in flight per thread
constexpr int kTerms = 3;           // bf16 terms of kbar: 3 x 8 bits hold an fp32 mantissa
constexpr int kChunkDims = 32;      // dims of one fragment chunk: two k16 steps, 16 bytes per lane
constexpr int kProductWarps = 4;
constexpr int kWarpTokens = 32;  // two m16 tiles
constexpr int kTileTokens = kProductWarps * kWarpTokens;

constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// Blocks of one product CTA, in n8 tiles: the smallest power of two that holds C, at most 8.
int tiles_of(int blocks) {
  return blocks <= 8 ? 1 : blocks <= 16 ? 2 : blocks <= 32 ? 4 : 8;
}

struct Layout {
  int partials;       // partial-sum rows of one sample
  int tiles, groups;  // n8 tiles per group of blocks, groups
  int chunks;         // ceil(D / kChunkDims)

  // wgmma's operand: 64 blocks x 64 dims panels; fewer blocks leave the product memory bound with mma.sync.
  bool panels(int family) const { return family == 90 && tiles == 8 && chunks % 2 == 0; }
};

Layout layout_of(const Shape& s) {
  Layout l;
  l.partials = s.video_tokens / kSegmentTokens + s.blocks + 1;
  l.tiles = tiles_of(s.blocks);
  l.groups = ceil_div(s.blocks, 8 * l.tiles);
  l.chunks = ceil_div(s.head_dim, kChunkDims);
  return l;
}

struct Tables {
  float* partial;
  bf16* fragments;
};

int64_t carve(const Shape& s, const Layout& l, void* workspace, Tables* tables) {
  Workspace pieces(workspace);
  tables->partial = pieces.take<float>(int64_t(s.batch) * l.partials * s.heads * s.head_dim);
  tables->fragments =
      pieces.take<bf16>(int64_t(s.batch) * s.heads * l.groups * kTerms * l.tiles * 8 * l.chunks * kChunkDims);
  return pieces.bytes();
}

// Row of the partial sum of segment `segment` of block c. Blocks get disjoint runs because
// ceil(len / T) <= floor(end / T) - floor(start / T) + 1.
__device__ int partial_row(int block_start, int c, int segment) {
  return block_start / kSegmentTokens + c + segment;
}

// ---- gather: partial sums of K, copies of K and V ------------------------------------------------------------------

struct GatherParams {
  const bf16 *k, *v;
  int64_t k_batch, k_token, k_head, v_batch, v_token, v_head;
  bf16 *k_blocks, *v_blocks;  // null: no copy
  float* partial;
  const int32_t *token_of, *block_start;  // token_of null: identity
  int heads, head_dim, video_tokens, tokens, blocks, partials, lane_groups;
};

// Copies rows [begin, end) (permuted positions) of one 8-dim column group and, if kSum, adds them up.
template <bool kSum>
__device__ void stream_rows(const bf16* source, int64_t token_stride, bf16* copy, int64_t copy_stride,
                            const GatherParams& a, int begin, int end, float (&sum)[8]) {
  for (int p0 = begin; p0 < end; p0 += kGatherUnroll) {
    uint4 row[kGatherUnroll];
    int64_t token[kGatherUnroll];
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      const int p = min(p0 + i, end - 1);
      token[i] = a.token_of && p < a.video_tokens ? a.token_of[p] : p;
    }
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      row[i] = __ldg(reinterpret_cast<const uint4*>(source + token[i] * token_stride));
    }
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      if (p0 + i >= end) break;
      if (copy) *reinterpret_cast<uint4*>(copy + (p0 + i) * copy_stride) = row[i];
      if (kSum) {
        const uint32_t words[4] = {row[i].x, row[i].y, row[i].z, row[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[2 * j] += __uint_as_float(words[j] << 16);
          sum[2 * j + 1] += __uint_as_float(words[j] & 0xffff0000u);
        }
      }
    }
  }
}

// Grid (segment, block, sample x lane group); block C is the text, copied but never summed. A thread owns 8 dims of
// one head, so that a CTA reads whole token rows and needs no reduction.
__global__ void gather_kernel(const GatherParams a) {
  start_after_previous();
  const int c = blockIdx.y;
  const bool text = c == a.blocks;
  const int start = text ? a.video_tokens : a.block_start[c];
  const int block_end = text ? a.tokens : a.block_start[c + 1];
  const int begin = start + blockIdx.x * kSegmentTokens;
  const int end = min(begin + kSegmentTokens, block_end);
  const int b = blockIdx.z / a.lane_groups;
  const int lane = (blockIdx.z % a.lane_groups) * blockDim.x + threadIdx.x;
  const int lanes_per_head = a.head_dim / 8;
  if (begin >= end || lane >= a.heads * lanes_per_head) return;

  const int n = lane / lanes_per_head;
  const int d = lane % lanes_per_head * 8;
  const int64_t copy_base = (int64_t(b) * a.heads + n) * a.tokens * a.head_dim + d;
  float sum[8] = {};
  const bf16* k = a.k + b * a.k_batch + n * a.k_head + d;
  bf16* k_copy = a.k_blocks ? a.k_blocks + copy_base : nullptr;
  if (!text) {
    stream_rows<true>(k, a.k_token, k_copy, a.head_dim, a, begin, end, sum);
    const int64_t row = int64_t(b) * a.partials + partial_row(start, c, blockIdx.x);
    float4* out = reinterpret_cast<float4*>(a.partial + row * a.heads * a.head_dim + lane * 8);
    out[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    out[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
  } else if (k_copy) {
    stream_rows<false>(k, a.k_token, k_copy, a.head_dim, a, begin, end, sum);
  }
  if (a.v_blocks) {
    const bf16* v = a.v + b * a.v_batch + n * a.v_head + d;
    stream_rows<false>(v, a.v_token, a.v_blocks + copy_base, a.head_dim, a, begin, end, sum);
  }
}

// ---- split: means and their bf16 terms -----------------------------------------------------------------------------

struct SplitParams {
  const float* partial;
  const int32_t* block_start;
  float *kbar, *range;
  bf16* fragments;
  int heads, head_dim, blocks, partials, tiles, groups, chunks;
  bool panels;
};

constexpr int kSplitRows = 8;  // threads that share one sum

// Place of dim `d` of block `c` (of its group) in one term, in elements. Both orders pair with load_rows(): lane % 4 of
// a fragment owns 8 neighbouring dims of a chunk, so the product's k runs over the dims in another order.
__device__ int place_of(const SplitParams& a, int c, int d) {
  const int chunk = d / kChunkDims, quad = d % kChunkDims / 8;
  if (!a.panels) {  // [tile][chunk][lane][8]
    return (((c / 8 * a.chunks) + chunk) * 32 + c % 8 * 4 + quad) * 8 + d % 8;
  }
  const int k = chunk * kChunkDims + d % 8 / 4 * 16 + d % 4 / 2 * 8 + quad * 2 + d % 2;
  const int panel = k / hopper::kPanelColumns, column = k % hopper::kPanelColumns;
  return (panel * a.tiles * 8 * hopper::kPanelRowBytes + int(hopper::swizzled_offset(c, column / 8))) / 2 + column % 8;
}

// Grid (chunk, padded block, b x n), CTA 32 dims x kSplitRows. Pads of blocks and dims get zeros.
__global__ void split_kernel(const SplitParams a) {
  start_after_previous();
  const int d = blockIdx.x * kChunkDims + threadIdx.x;
  const int c = blockIdx.y;
  const int bn = blockIdx.z, b = bn / a.heads, n = bn % a.heads;
  const bool live = c < a.blocks && d < a.head_dim;
  __shared__ double sums[kSplitRows][kChunkDims];

  double sum = 0;
  int length = 1;
  if (live) {
    const int start = a.block_start[c];
    length = a.block_start[c + 1] - start;
    const int segments = (length + kSegmentTokens - 1) / kSegmentTokens;
    const int64_t stride = int64_t(a.heads) * a.head_dim;
    const float* partial =
        a.partial + (int64_t(b) * a.partials + partial_row(start, c, 0)) * stride + n * a.head_dim + d;
#pragma unroll 8
    for (int s = threadIdx.y; s < segments; s += kSplitRows) sum += partial[s * stride];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int i = 1; i < kSplitRows; ++i) sum += sums[i][threadIdx.x];
  const float mean = float(sum / length);
  if (live) a.kbar[(int64_t(bn) * a.blocks + c) * a.head_dim + d] = mean;
  if (a.range && c == 0 && d < 2)
    a.range[bn * 2 + d] = d == 0 ? __int_as_float(0x7f800000) : __int_as_float(0xff800000);

  const int group_blocks = 8 * a.tiles, term_size = group_blocks * a.chunks * kChunkDims;
  bf16* out = a.fragments + (int64_t(bn) * a.groups + c / group_blocks) * kTerms * term_size;
  out += place_of(a, c % group_blocks, d);
  float rest = mean;
  for (int term = 0; term < kTerms; ++term) {
    const bf16 part = __float2bfloat16(rest);
    rest -= __bfloat162float(part);
    out[term * term_size] = part;
  }
}

// ---- product -------------------------------------------------------------------------------------------------------

struct ProductParams {
  const bf16* q;
  int64_t q_batch, q_token, q_head;
  const int32_t* token_of;  // null: identity
  const uint4* fragments;
  float *gate, *range;
  int heads, head_dim, tokens, blocks, groups, tiles, slots;
};

__device__ __forceinline__ void mma_m16n8k16(float* acc, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A lane's 4 token rows: a[i] holds token 4 * (lane / 4) + i of the warp's 32. m16 tile m takes rows 2m (fragment row
// lane / 4) and 2m + 1 (row lane / 4 + 8), so that the accumulators of a lane are 4 neighbouring tokens of a block and
// leave as one 16-byte store. Dims are permuted inside a chunk the same way for A and B: lane % 4 owns 8 of them.
template <int kChunks>
__device__ void load_rows(const ProductParams& a, const bf16* q, int p0, uint4 (&rows)[4][kChunks]) {
  const int quad = threadIdx.x % 4;
  int64_t token[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int p = min(p0 + i, a.tokens - 1);
    token[i] = a.token_of ? a.token_of[p] : p;
  }
  // Lanes past D read the row's start instead: kbar is 0 there.
  const int last = (kChunks - 1) * kChunkDims + quad * 8 < a.head_dim ? (kChunks - 1) * kChunkDims : -quad * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bf16* row = q + token[i] * a.q_token + quad * 8;
#pragma unroll
    for (int ch = 0; ch < kChunks; ++ch) {
      rows[i][ch] = __ldg(reinterpret_cast<const uint4*>(row + (ch < kChunks - 1 ? ch * kChunkDims : last)));
    }
  }
}

template <int kChunks, int kTiles>
__device__ void multiply(const uint4 (&rows)[4][kChunks], const uint4* fragments, float (&acc)[2][4 * kTiles]) {
#pragma unroll
  for (int i = 0; i < 8 * kTiles; ++i) acc[i / (4 * kTiles)][i % (4 * kTiles)] = 0;
#pragma unroll 1
  for (int term = kTerms - 1; term >= 0; --term) {
    const uint4* term_fragments = fragments + term * kTiles * kChunks * 32 + threadIdx.x % 32;
#pragma unroll
    for (int ch = 0; ch < kChunks; ++ch) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 bt = term_fragments[(t * kChunks + ch) * 32];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint4 &lo = rows[2 * m][ch], &hi = rows[2 * m + 1][ch];
          mma_m16n8k16(&acc[m][4 * t], lo.x, hi.x, lo.y, hi.y, bt.x, bt.y);
          mma_m16n8k16(&acc[m][4 * t], lo.z, hi.z, lo.w, hi.w, bt.z, bt.w);
        }
      }
    }
  }
}

// Stores 4 neighbouring positions of one block row, `left` of them existing, and takes them into the range.
__device__ void store_four(float* row, int left, bool aligned, const float4& g, float& least, float& greatest) {
  const float values[4] = {g.x, g.y, g.z, g.w};
  if (left >= 4 && aligned) {
    *reinterpret_cast<float4*>(row) = g;
    least = fminf(least, fminf(fminf(g.x, g.y), fminf(g.z, g.w)));
    greatest = fmaxf(greatest, fmaxf(fmaxf(g.x, g.y), fmaxf(g.z, g.w)));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < left) {
      row[i] = values[i];
      least = fminf(least, values[i]);
      greatest = fmaxf(greatest, values[i]);
    }
  }
}

// Order of floats through integer atomics: non-negative floats order as int, negative ones reversed as unsigned.
__device__ void atomic_min(float* address, float value) {
  value += 0.0f;  // -0 would take the integer branch with the least integer
  if (value >= 0) {
    atomicMin(reinterpret_cast<int*>(address), __float_as_int(value));
  } else {
    atomicMax(reinterpret_cast<unsigned*>(address), __float_as_uint(value));
  }
}

__device__ void atomic_max(float* address, float value) {
  value += 0.0f;
  if (value >= 0) {
    atomicMax(reinterpret_cast<int*>(address), __float_as_int(value));
  } else {
    atomicMin(reinterpret_cast<unsigned*>(address), __float_as_uint(value));
  }
}

// What a CTA of the product works on: neighbouring CTAs are the groups and heads of the same tokens, so q rows meet in
// L2. Grid (slot x head x block group, sample); a CTA strides over token tiles.
struct ProductCta {
  int group, n, slot, b;

  __device__ explicit ProductCta(const ProductParams& a)
      : group(blockIdx.x % a.groups),
        n(blockIdx.x / a.groups % a.heads),
        slot(blockIdx.x / a.groups / a.heads),
        b(blockIdx.y) {}
  __device__ const bf16* q(const ProductParams& a) const { return a.q + b * a.q_batch + n * a.q_head; }
  __device__ void copy_operand(const ProductParams& a, uint4* shared, int count) const {
    const uint4* source = a.fragments + ((int64_t(b) * a.heads + n) * a.groups + group) * count;
    for (int i = threadIdx.x; i < count; i += blockDim.x) shared[i] = __ldg(source + i);
  }
};

// Stores a warp's accumulators and keeps the range: acc[m][4 * tile + 2 * half + j] is block tile * 8 + 2 * quad + j,
// token 2 m + half of the lane's four.
struct Epilogue {
  float* rows;  // of the lane's first block
  int64_t tile_step;
  int tokens, blocks_left;
  bool aligned;  // every row starts at a multiple of 16 bytes
  float least, greatest;

  __device__ Epilogue(const ProductParams& a, const ProductCta& cta, int group_blocks)
      : tile_step(int64_t(7) * a.tokens), tokens(a.tokens), aligned(a.tokens % 4 == 0) {
    const int c = cta.group * group_blocks + threadIdx.x % 4 * 2;
    rows = a.gate + ((int64_t(cta.b) * a.heads + cta.n) * a.blocks + c) * a.tokens;
    blocks_left = a.blocks - c;
    least = __int_as_float(0x7f800000);
    greatest = -least;
  }

  template <int kTiles>
  __device__ __forceinline__ void store(const float (&acc)[2][4 * kTiles], int p) {
    float* row = rows + p;  // stepped, because 2 * kTiles hoisted addresses would not fit the registers
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 g =
            make_float4(acc[0][4 * t + j], acc[0][4 * t + j + 2], acc[1][4 * t + j], acc[1][4 * t + j + 2]);
        if (t * 8 + j < blocks_left) store_four(row, tokens - p, aligned, g, least, greatest);
        row += j == 0 ? tokens : tile_step;
      }
    }
  }

  __device__ void publish(float* range) {
    if (!range) return;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      least = fminf(least, __shfl_xor_sync(~0u, least, step));
      greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, step));
    }
    if (threadIdx.x % 32 == 0 && least <= greatest) {
      atomic_min(range, least);
      atomic_max(range + 1, greatest);
    }
  }
};

// kbar fragments of one group of 8 * kTiles blocks in shared memory, mma.sync.
template <int kChunks, int kTiles>
__global__ void __launch_bounds__(kProductWarps * 32, kTiles == 8 ? 3 : 4) product_kernel(const ProductParams a) {
  start_after_previous();
  __shared__ uint4 fragments[kTerms * kTiles * kChunks * 32];
  const ProductCta cta(a);
  cta.copy_operand(a, fragments, kTerms * kTiles * kChunks * 32);
  __syncthreads();
  Epilogue epilogue(a, cta, kTiles * 8);
  const int warp_first = threadIdx.x / 32 * kWarpTokens, lane_first = warp_first + threadIdx.x % 32 / 4 * 4;
  for (int tile = cta.slot; tile < a.tiles; tile += a.slots) {
    if (tile * kTileTokens + warp_first >= a.tokens) break;
    const int p = tile * kTileTokens + lane_first;
    uint4 rows[4][kChunks];
    float acc[2][4 * kTiles];
    load_rows<kChunks>(a, cta.q(a), p, rows);
    multiply<kChunks, kTiles>(rows, fragments, acc);
    epilogue.store<kTiles>(acc, p);
  }
  epilogue.publish(a.range ? a.range + (int64_t(cta.b) * a.heads + cta.n) * 2 : nullptr);
}

// The same for 64 blocks with wgmma: a warpgroup multiplies 2 x 64 tokens, A from registers as loaded, B from panels in
// shared memory. A warp's rows of the two m64 tiles are its 32 tokens, in the order of load_rows().
template <int kChunks>
__global__ void __launch_bounds__(kProductWarps * 32, 3) product_wgmma_kernel(const ProductParams a) {
#ifdef VMOBA_HOPPER_CODE
  start_after_previous();
  constexpr int kTiles = 8, kTermBytes = kTiles * 8 * kChunks * kChunkDims * 2;
  constexpr int kPanelBytes = kTiles * 8 * hopper::kPanelRowBytes;
  __shared__ alignas(1024) uint4 panels[kTerms * kTermBytes / 16];
  const ProductCta cta(a);
  cta.copy_operand(a, panels, kTerms * kTermBytes / 16);
  hopper::fence_async_proxy();
  __syncthreads();
  Epilogue epilogue(a, cta, kTiles * 8);
  const uint64_t b = hopper::descriptor_k_major(hopper::smem_address(panels));
  const int lane_first = threadIdx.x / 32 * kWarpTokens + threadIdx.x % 32 / 4 * 4;
  uint4 rows[4][kChunks];
  load_rows<kChunks>(a, cta.q(a), cta.slot * kTileTokens + lane_first, rows);
  for (int tile = cta.slot; tile < a.tiles; tile += a.slots) {
    float acc[2][4 * kTiles];
    hopper::wgmma_fence_operand(acc[0]);
    hopper::wgmma_fence_operand(acc[1]);
    hopper::wgmma_fence();
#pragma unroll
    for (int term = kTerms - 1; term >= 0; --term) {
#pragma unroll
      for (int k = 0; k < 2 * kChunks; ++k) {
        const uint64_t step = (term * kTermBytes + k / 4 * kPanelBytes + k % 4 * 32) / 16;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint4 &lo = rows[2 * m][k / 2], &hi = rows[2 * m + 1][k / 2];
          const uint32_t fragment[4] = {k % 2 ? lo.z : lo.x, k % 2 ? hi.z : hi.x, k % 2 ? lo.w : lo.y,
                                        k % 2 ? hi.w : hi.y};
          hopper::wgmma_rs<64>(fragment, b + step, acc[m], term < kTerms - 1 || k > 0);
        }
      }
    }
    hopper::wgmma_commit();
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(acc[0]);
    hopper::wgmma_fence_operand(acc[1]);
    // The next rows travel while this tile is stored; past the last tile they are clamped, and unused.
    load_rows<kChunks>(a, cta.q(a), (tile + a.slots) * kTileTokens + lane_first, rows);
    epilogue.store<kTiles>(acc, tile * kTileTokens + lane_first);
  }
  epilogue.publish(a.range ? a.range + (int64_t(cta.b) * a.heads + cta.n) * 2 : nullptr);
#endif
}

// ---- host ----------------------------------------------------------------------------------------------------------

bool arguments_valid(const GateArgs& a) {
  const Shape& s = a.shape;
  return shape_valid(s) && s.head_dim >= 16 && s.head_dim <= 128 && s.head_dim % 16 == 0 && view_valid(a.q) &&
         view_valid(a.k) && (a.v_blocks == nullptr || view_valid(a.v)) && partition_valid(a.partition, s) &&
         a.kbar != nullptr && a.gate != nullptr && workspace_valid(a.workspace);
}

cudaError_t launch_gather(const GateArgs& args, const Layout& l, float* partial, const Launcher& launch) {
  const Shape& s = args.shape;
  GatherParams a{};
  a.k = static_cast<const bf16*>(args.k.data);
  a.v = static_cast<const bf16*>(args.v.data);
  a.k_batch = args.k.batch_stride, a.k_token = args.k.token_stride, a.k_head = args.k.head_stride;
  a.v_batch = args.v.batch_stride, a.v_token = args.v.token_stride, a.v_head = args.v.head_stride;
  a.k_blocks = static_cast<bf16*>(args.k_blocks);
  a.v_blocks = static_cast<bf16*>(args.v_blocks);
  a.partial = partial;
  a.token_of = args.partition.identity ? nullptr : args.partition.token_of;
  a.block_start = args.partition.block_start;
  a.heads = s.heads, a.head_dim = s.head_dim, a.video_tokens = s.video_tokens, a.tokens = s.tokens();
  a.blocks = s.blocks, a.partials = l.partials;

  const int lanes = s.heads * s.head_dim / 8;
  a.lane_groups = ceil_div(lanes, 256);
  const int threads = ceil_div(ceil_div(lanes, a.lane_groups), 32) * 32;
  const bool text = s.text_tokens > 0 && (args.k_blocks || args.v_blocks);
  const int longest = std::max(args.partition.max_block_tokens, text ? s.text_tokens : 0);
  const dim3 grid(ceil_div(longest, kSegmentTokens), s.blocks + text, s.batch * a.lane_groups);
  return launch(gather_kernel, grid, threads, 0, a);
}

cudaError_t launch_split(const GateArgs& args, const Layout& l, bool panels, const Tables& tables,
                         const Launcher& launch) {
  const Shape& s = args.shape;
  SplitParams a{};
  a.partial = tables.partial;
  a.block_start = args.partition.block_start;
  a.kbar = args.kbar, a.range = args.range, a.fragments = tables.fragments;
  a.heads = s.heads, a.head_dim = s.head_dim, a.blocks = s.blocks, a.partials = l.partials;
  a.tiles = l.tiles, a.groups = l.groups, a.chunks = l.chunks, a.panels = panels;
  const dim3 grid(l.chunks, l.groups * l.tiles * 8, s.batch * s.heads);
  return launch(split_kernel, grid, dim3(kChunkDims, kSplitRows), 0, a);
}

using ProductKernel = void (*)(ProductParams);

template <int kChunks>
ProductKernel product_of(int tiles) {
  switch (tiles) {
    case 1:
      return product_kernel<kChunks, 1>;
    case 2:
      return product_kernel<kChunks, 2>;
    case 4:
      return product_kernel<kChunks, 4>;
    default:
      return product_kernel<kChunks, 8>;
  }
}

ProductKernel product_of(const Layout& l, bool panels) {
  switch (l.chunks) {
    case 1:
      return product_of<1>(l.tiles);
    case 2:
      return panels ? product_wgmma_kernel<2> : product_of<2>(l.tiles);
    case 3:
      return product_of<3>(l.tiles);
    default:
      return panels ? product_wgmma_kernel<4> : product_of<4>(l.tiles);
  }
}

cudaError_t launch_product(const GateArgs& args, const Layout& l, bool panels, const bf16* fragments, int device,
                           const Launcher& launch) {
  const Shape& s = args.shape;
  ProductParams a{};
  a.q = static_cast<const bf16*>(args.q.data);
  a.q_batch = args.q.batch_stride, a.q_token = args.q.token_stride, a.q_head = args.q.head_stride;
  a.token_of = args.partition.identity ? nullptr : args.partition.token_of;
  a.fragments = reinterpret_cast<const uint4*>(fragments);
  a.gate = args.gate, a.range = args.range;
  a.heads = s.heads, a.head_dim = s.head_dim, a.tokens = s.video_tokens, a.blocks = s.blocks, a.groups = l.groups;
  a.tiles = ceil_div(s.video_tokens, kTileTokens);
  int sms = 0;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  // Slots per (head, group): fill the GPU once; where heads and groups alone do that, 4 slots even out the last wave.
  const int resident = sms * (l.tiles == 8 ? 3 : 4), per_slot = s.heads * l.groups * s.batch;
  a.slots = std::min(std::max(resident / per_slot, 4), a.tiles);
  const dim3 grid(a.slots * s.heads * l.groups, s.batch);
  return launch(product_of(l, panels), grid, kProductWarps * 32, 0, a);
}

}  // namespace

int64_t gate_workspace_bytes(const Shape& shape) {
  Tables unused;
  return shape_valid(shape) ? carve(shape, layout_of(shape), nullptr, &unused) : 0;
}

cudaError_t gate(const GateArgs& args, cudaStream_t stream) {
  if (!arguments_valid(args)) return cudaErrorInvalidValue;
  const Layout l = layout_of(args.shape);
  Tables tables;
  carve(args.shape, l, args.workspace, &tables);
  int device = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  const int family = kernel_family(device);
  const bool panels = l.panels(family);
  const Launcher launch{stream, family == 90};
  if (cudaError_t e = launch_gather(args, l, tables.partial, launch)) return e;
  if (cudaError_t e = launch_split(args, l, panels, tables, launch)) return e;
  return launch_product(args, l, panels, tables.fragments, device, launch);
}

}  // namespace vmoba::kernels
