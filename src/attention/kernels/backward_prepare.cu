// The small kernels around the backward's main kernel: the schedule of key tiles, row statistics, zeroing and
// conversion of the dq sums, and in deterministic mode the bounds that place the sums' fixed point. Memory bound: a
// group of D / 8 lanes reads a row in 16-byte pieces, and consecutive groups take the heads of one token, which are
// neighbours in memory in the usual [B, S, N, D] tensors. Asynchronous on the caller's stream.
#include <cmath>

#include "attention/kernels/backward.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 256;
constexpr float kLog2E = 1.4426950408889634f;

// ---- schedule ------------------------------------------------------------------------------------------------------

struct Block {
  int key_start, keys, tiles, rows;
};

__device__ Block block_of(const BackwardProblem& problem, int head_index, int block) {
  const bool text = block == problem.shape.blocks;
  const int32_t* starts = problem.partition.block_start;
  Block b;
  b.key_start = text ? problem.shape.video_tokens : starts[block];
  b.keys = text ? problem.shape.text_tokens : starts[block + 1] - b.key_start;
  b.tiles = (b.keys + kBackwardKeys - 1) / kBackwardKeys;
  b.rows = problem.lists.length[int64_t(head_index) * problem.block_count + block];
  return b;
}

// Writes a key tile's work items, one or, of a split tile, kSplitParts; its first one is number `place`.
__device__ void write_items(const BackwardProblem& problem, KeyTile item, int64_t place, int split_tile) {
  if (split_tile < 0) {
    problem.items[place] = item;
    return;
  }
  const int rows = item.rows;
  const int part_rows = (rows + kSplitParts * kSlotAlign - 1) / (kSplitParts * kSlotAlign) * kSlotAlign;
  for (int part = 0; part < kSplitParts; ++part) {
    item.rows = max(0, min(part_rows, rows - part * part_rows));
    item.part = 1 + split_tile * kSplitParts + part;
    problem.items[place + part] = item;
    item.first_slot += item.rows;
  }
}

// One CTA per (b, n). Heads stay in order, so that concurrent work shares one head's rows in L2; inside a head the
// blocks with the longest lists come first, which keeps the end of the launch short. A block's place is the number of
// tiles of the blocks that go before it: C^2 comparisons in parallel, less than a sort's passes for C of any size used.
__global__ void __launch_bounds__(kThreads) schedule_kernel(const BackwardProblem problem) {
  const int head_index = blockIdx.x, block_count = problem.block_count;
  int head_tiles = 0;
  for (int c = 0; c < block_count; ++c) head_tiles += block_of(problem, head_index, c).tiles;
  const int split_tiles = problem.split ? min(kSplitTiles, head_tiles) : 0;
  const bool last = head_index == int(gridDim.x) - 1;
  for (int i = threadIdx.x; last && i < kSplitTiles * 2; i += kThreads) problem.split_done[i] = 0;
  if (threadIdx.x == 0) {
    if (head_index == 0) {
      *problem.next_item = 0;
      *problem.item_count = head_tiles * gridDim.x + split_tiles * (kSplitParts - 1);
    }
    if (problem.deterministic) problem.bounds[head_index * 2] = problem.bounds[head_index * 2 + 1] = 0;
  }
  const int64_t* starts = problem.lists.start + int64_t(head_index) * (block_count + 1);
  for (int c = threadIdx.x; c < block_count; c += kThreads) {
    const Block block = block_of(problem, head_index, c);
    int place = 0;
    for (int other = 0; other < block_count; ++other) {
      const Block before = block_of(problem, head_index, other);
      if (before.rows > block.rows || (before.rows == block.rows && other < c)) place += before.tiles;
    }
    KeyTile item;
    item.sample = head_index / problem.shape.heads;
    item.head = head_index % problem.shape.heads;
    item.first_slot = head_index * problem.lists.row_stride + starts[c];
    item.rows = block.rows;
    for (int tile = 0; tile < block.tiles; ++tile) {
      item.key_start = block.key_start + tile * kBackwardKeys;
      item.keys = min(kBackwardKeys, block.keys - tile * kBackwardKeys);
      const int split_tile = last ? place + tile - (head_tiles - split_tiles) : -1;
      const int64_t first = int64_t(head_index) * head_tiles + place + tile;
      write_items(problem, item, first + max(0, split_tile) * (kSplitParts - 1), split_tile);
    }
  }
}

// ---- rows ----------------------------------------------------------------------------------------------------------

struct RowIndex {
  int sample, head, token, head_index;
};

__device__ __forceinline__ RowIndex row_of(const BackwardProblem& problem, int row) {
  RowIndex r;
  r.head = row % problem.shape.heads;
  const int token = row / problem.shape.heads;
  r.token = token % problem.tokens;
  r.sample = token / problem.tokens;
  r.head_index = r.sample * problem.shape.heads + r.head;
  return r;
}

__device__ __forceinline__ void load_eight(const __nv_bfloat16* source, float (&values)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(source);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <int kLanes>
__device__ __forceinline__ float group_sum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The power of two that scales a row's dq to 61 bits. |dS_ij| <= P_ij (|dP_ij| + |delta_i|) and the P_ij of a row sum
// to one, so |sum_j dS_ij k_jd| <= 2 ||dout_i|| max||v|| max|k|; the factor 4 leaves room for rounding. Not a number
// where the bound is not finite: finish_kernel then writes not-a-numbers too instead of hiding them.
__device__ float fixed_point_factor(float dout_norm, float max_k, float max_v_norm) {
  const float bound = 4.0f * dout_norm * max_v_norm * max_k;
  if (!isfinite(bound)) return __int_as_float(0x7fffffff);
  int exponent = 0;
  frexpf(bound, &exponent);
  return ldexpf(1.0f, min(61 - exponent, 126));
}

// delta, base-2 log-sum-exp, and zeros for the dq sums.
template <int kColumns>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const BackwardProblem problem, int rows) {
  constexpr int kLanes = kColumns / 8;
  const int lane = threadIdx.x % kLanes;
  const int row = int(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool valid = row < rows;
  const RowIndex r = row_of(problem, valid ? row : 0);
  const int tokens = problem.tokens;
  float out[8], dout[8];
  load_eight(row_pointer(problem.out, r.sample, r.head, r.token) + lane * 8, out);
  load_eight(row_pointer(problem.dout, r.sample, r.head, r.token) + lane * 8, dout);
  float delta = 0, square = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    delta += out[i] * dout[i];
    square += dout[i] * dout[i];
  }
  delta = group_sum<kLanes>(delta);
  square = group_sum<kLanes>(square);
  if (!valid) return;

  const int64_t place = int64_t(r.head_index) * tokens + r.token;
  const uint4 zero = {0, 0, 0, 0};
  const int pieces = problem.deterministic ? 4 : 2;  // of 16 bytes
  uint4* sums = reinterpret_cast<uint4*>(problem.dq_sum) + place * kLanes * pieces;
  for (int i = 0; i < pieces; ++i) sums[i * kLanes + lane] = zero;
  if (lane != 0) return;
  RowStats* stats = problem.stats + int64_t(r.head_index) * (tokens + 1);
  stats[r.token] = {problem.lse[place] * kLog2E, delta};
  if (r.token == 0) stats[tokens] = {INFINITY, 0.0f};
  if (problem.deterministic) {
    // A row whose scores are not numbers has no bound: an integer sum could not tell.
    const float norm = isfinite(problem.lse[place]) ? sqrtf(square) : INFINITY;
    problem.dq_factor[place] = fixed_point_factor(norm, __uint_as_float(problem.bounds[r.head_index * 2]),
                                                  __uint_as_float(problem.bounds[r.head_index * 2 + 1]));
  }
}

// max |k| and max ||v|| of every (b, n). The bits of numbers >= 0 order like unsigned integers, not-a-numbers last.
template <int kColumns>
__global__ void __launch_bounds__(kThreads) bound_kernel(const BackwardProblem problem, int rows) {
  constexpr int kLanes = kColumns / 8;
  const int lane = threadIdx.x % kLanes;
  const int row = int(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool valid = row < rows;
  const RowIndex r = row_of(problem, valid ? row : 0);
  float k[8], v[8];
  load_eight(row_pointer(problem.k_blocks, r.sample, r.head, r.token) + lane * 8, k);
  load_eight(row_pointer(problem.v_blocks, r.sample, r.head, r.token) + lane * 8, v);
  uint32_t max_k = 0;
  float square = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    max_k = max(max_k, __float_as_uint(fabsf(k[i])));
    square += v[i] * v[i];
  }
  square = group_sum<kLanes>(square);
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) max_k = max(max_k, __shfl_xor_sync(0xffffffffu, max_k, step));
  if (!valid || lane != 0) return;
  // Most rows do not raise the maximum: look before the atomic.
  uint32_t* bounds = problem.bounds + r.head_index * 2;
  const uint32_t norm = __float_as_uint(sqrtf(square));
  if (max_k > bounds[0]) atomicMax(bounds, max_k);
  if (norm > bounds[1]) atomicMax(bounds + 1, norm);
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads) finish_kernel(const BackwardProblem problem, int rows) {
  constexpr int kLanes = kColumns / 8;
  const int lane = threadIdx.x % kLanes;
  const int row = int(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= rows) return;
  const RowIndex r = row_of(problem, row);
  const int64_t place = int64_t(r.head_index) * problem.tokens + r.token;
  const int64_t first = place * kColumns + lane * 8;
  float values[8];
  if (problem.deterministic) {
    const double unit = double(problem.scale) / double(problem.dq_factor[place]);
    const longlong2* sums = reinterpret_cast<const longlong2*>(static_cast<const int64_t*>(problem.dq_sum) + first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const longlong2 pair = sums[i];
      values[2 * i] = float(double(pair.x) * unit);
      values[2 * i + 1] = float(double(pair.y) * unit);
    }
  } else {
    const float4* sums = reinterpret_cast<const float4*>(static_cast<const float*>(problem.dq_sum) + first);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 four = sums[i];
      values[4 * i] = four.x * problem.scale;
      values[4 * i + 1] = four.y * problem.scale;
      values[4 * i + 2] = four.z * problem.scale;
      values[4 * i + 3] = four.w * problem.scale;
    }
  }
  __nv_bfloat162 packed[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) packed[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
  __nv_bfloat16* target = const_cast<__nv_bfloat16*>(row_pointer(problem.dq, r.sample, r.head, r.token)) + lane * 8;
  *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(packed);
}

using RowKernel = void (*)(const BackwardProblem, int);

cudaError_t launch_rows(RowKernel kernel, const BackwardProblem& problem, cudaStream_t stream) {
  const int rows = problem.shape.batch * problem.shape.heads * problem.tokens;
  const int rows_per_cta = kThreads / (problem.shape.head_dim / 8);
  kernel<<<(rows - 1) / rows_per_cta + 1, kThreads, 0, stream>>>(problem, rows);
  return cudaGetLastError();
}

}  // namespace

cudaError_t schedule_backward(const BackwardProblem& problem, cudaStream_t stream) {
  schedule_kernel<<<problem.shape.batch * problem.shape.heads, kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

cudaError_t bound_backward(const BackwardProblem& problem, cudaStream_t stream) {
  return launch_rows(problem.shape.head_dim == 128 ? bound_kernel<128> : bound_kernel<64>, problem, stream);
}

cudaError_t prepare_backward(const BackwardProblem& problem, cudaStream_t stream) {
  return launch_rows(problem.shape.head_dim == 128 ? prepare_kernel<128> : prepare_kernel<64>, problem, stream);
}

cudaError_t finish_backward(const BackwardProblem& problem, cudaStream_t stream) {
  return launch_rows(problem.shape.head_dim == 128 ? finish_kernel<128> : finish_kernel<64>, problem, stream);
}

}  // namespace vmoba::kernels
