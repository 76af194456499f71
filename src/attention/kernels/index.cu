// Stage 3, index: the slot lists of the bit masks.
//
// rank_kernel counts the rows before each mask word and the length of each list (one CTA per list); row_kernel adds up
// the padded lengths in front of its list and writes the row ids, a warp per 32 mask words: each lane puts the
// positions of its word's bits into shared memory, then the warp writes them out side by side. No workspace, no
// atomics; the order is a function of the mask.
#include "attention/kernels/arguments.cuh"
#include "attention/kernels/kernels.h"
#include "attention/kernels/launch.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpRows = 32 * 32;  // at most, of one warp's words

struct IndexParams {
  SlotLists lists;
  const int32_t* token_of;  // null: identity
  int video_tokens, words, block_count;
  int first_word, end_word;
};

// Slots of a list, in units of kSlotAlign.
__device__ __forceinline__ int units_of(int length) {
  return (length + kSlotAlign - 1) / kSlotAlign;
}

// Inclusive prefix sum over a warp.
__device__ __forceinline__ int warp_prefix(int x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, x, step);
    if (threadIdx.x % 32 >= step) x += other;
  }
  return x;
}

// Grid (lists). The warps of a CTA take the words in turns of kThreads.
__global__ void __launch_bounds__(kThreads) rank_kernel(const IndexParams a) {
  start_after_previous();
  __shared__ int sums[2][kWarps];
  const int64_t list = blockIdx.x;
  const uint32_t* mask = a.lists.mask + list * a.words;
  int32_t* word_rank = a.lists.word_rank + list * a.words;
  const int warp = threadIdx.x / 32;
  int before = 0, turn = 0;
  for (int w0 = a.first_word; w0 < a.end_word; w0 += kThreads, turn ^= 1) {  // two buffers: one barrier per turn
    const int w = w0 + threadIdx.x;
    const int rows = w < a.end_word ? __popc(__ldg(mask + w)) : 0;
    const int upto = warp_prefix(rows);
    if (threadIdx.x % 32 == 31) sums[turn][warp] = upto;
    __syncthreads();
    int offset = before;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) offset += sums[turn][i];
      before += sums[turn][i];
    }
    if (w < a.end_word) word_rank[w] = offset + upto - rows;
  }
  if (threadIdx.x == 0) a.lists.length[list] = before;
}

// First slot of list c of (b, n), found by one warp.
__device__ int64_t list_start(const int32_t* length, int c) {
  int units = 0;
  for (int i = threadIdx.x % 32; i < c; i += 32) units += units_of(length[i]);
  return int64_t(__reduce_add_sync(~0u, units)) * kSlotAlign;
}

// Grid (lists, runs of kThreads words).
__global__ void __launch_bounds__(kThreads) row_kernel(const IndexParams a) {
  start_after_previous();
  const int64_t list = blockIdx.x;
  const int64_t bn = list / a.block_count;
  const int c = int(list % a.block_count), lane = threadIdx.x % 32;
  const int32_t* lengths = a.lists.length + bn * a.block_count;
  const int64_t start = list_start(lengths, c);
  const int length = lengths[c];
  if (blockIdx.y == 0 && threadIdx.x == 0) {
    int64_t* starts = a.lists.start + bn * (a.block_count + 1);
    starts[c] = start;
    if (c == a.block_count - 1) starts[c + 1] = start + int64_t(units_of(length)) * kSlotAlign;
  }

  const int w0 = a.first_word + blockIdx.y * kThreads + threadIdx.x / 32 * 32;
  const bool live = w0 + lane < a.end_word;
  const uint32_t words = live ? a.lists.mask[list * a.words + w0 + lane] : 0;
  const int ranks = live ? a.lists.word_rank[list * a.words + w0 + lane] : 0;
  int32_t* row = a.lists.row + bn * a.lists.row_stride + start;
  __shared__ uint16_t places[kWarps][kWarpRows];
  uint16_t* place = places[threadIdx.x / 32];
  const int first = __shfl_sync(~0u, ranks, 0), count = __reduce_add_sync(~0u, __popc(words));
  int at = ranks - first;
  for (uint32_t bits = words; bits != 0; bits &= bits - 1) place[at++] = uint16_t(lane * 32 + __ffs(bits) - 1);
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < count; i += 32) {
    const int p = w0 * 32 + place[i];
    row[first + i] = a.token_of && p < a.video_tokens ? __ldg(a.token_of + p) : p;
  }

  // The warp that wrote the list's last row repeats it in the pads.
  const unsigned last = __ballot_sync(~0u, words != 0 && ranks + __popc(words) == length);
  if (last == 0) return;
  const int i = 31 - __clz(last);
  const int p = (w0 + i) * 32 + 31 - __clz(__shfl_sync(~0u, words, i));
  const int32_t token = a.token_of && p < a.video_tokens ? a.token_of[p] : p;
  for (int slot = length + lane; slot < units_of(length) * kSlotAlign; slot += 32) row[slot] = token;
}

bool arguments_valid(const IndexArgs& a) {
  const bool lists = a.lists.row == nullptr ? a.lists.length != nullptr : lists_valid(a.lists, a.shape);
  return shape_valid(a.shape) && lists && masks_valid(a.lists) && partition_valid(a.partition, a.shape);
}

}  // namespace

int64_t index_workspace_bytes(const Shape&) {
  return 0;
}

cudaError_t index(const IndexArgs& args, cudaStream_t stream) {
  if (!arguments_valid(args)) return cudaErrorInvalidValue;
  const Shape& s = args.shape;
  const IndexParams a{args.lists,      args.partition.identity ? nullptr : args.partition.token_of,
                      s.video_tokens,  s.mask_words(),
                      s.block_count(), s.first_word,
                      s.end_word()};
  int device = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  const Launcher launch{stream, kernel_family(device) == 90};
  const unsigned lists = unsigned(s.lists());
  if (cudaError_t e = launch(rank_kernel, lists, kThreads, 0, a)) return e;
  if (a.lists.row == nullptr) return cudaSuccess;
  return launch(row_kernel, dim3(lists, (a.end_word - a.first_word + kThreads - 1) / kThreads), kThreads, 0, a);
}

}  // namespace vmoba::kernels
