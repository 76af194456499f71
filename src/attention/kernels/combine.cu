// Merges the partial outputs of a wave: every row finds its slots through mask, word_rank and start (no inverse map)
// and weights their outputs by exp2(lse of the slot - lse of the row). One warp per 32 rows of one head, whose slots
// are neighbours in every list. Reads each partial row once, writes out and lse once; asynchronous on the launch's
// stream.
#include "attention/kernels/schedule.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerSm = 4;
constexpr int kListsPerRound = 128;  // lists that a warp holds at a time
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLn2 = 0.6931471805599453f;

// A row is merged by as many lanes as its output has 16-byte chunks, so a warp works on several rows at once.
template <int HeadDim>
constexpr int kLanesPerRow = HeadDim / 8;
template <int HeadDim>
constexpr int kRowsAtOnce = 32 / kLanesPerRow<HeadDim>;

// The slots of one row, numbered from the wave's first, and their log-sum-exps, then weights.
struct RowSlots {
  int32_t slot[kListsPerRound];
  float weight[kListsPerRound];
  int32_t padding[kListsPerRound / 32];  // the rows of a warp in different banks
};

// The lists of one round at one mask word: which of its 32 rows attend, and the slot of the first that does.
struct WordLists {
  uint32_t mask[kListsPerRound];
  int32_t slot[kListsPerRound];
};

template <int HeadDim>
struct WarpStorage {
  WordLists lists;
  RowSlots rows[kRowsAtOnce<HeadDim>];
};

struct RunningRow {
  float sum[8] = {};  // this lane's 8 columns
  float maximum = -INFINITY, weight = 0;
};

__device__ __forceinline__ void load_word(const ForwardProblem& problem, int64_t first_slot, int head, int word,
                                          int first_list, int count, WordLists& lists) {
  const int64_t* start = problem.lists.start + int64_t(head) * (problem.block_count + 1) + first_list;
  const int64_t entry = (int64_t(head) * problem.block_count + first_list) * problem.mask_words + word;
#pragma unroll 2
  for (int i = threadIdx.x % 32; i < count; i += 32) {
    lists.mask[i] = problem.lists.mask[entry + int64_t(i) * problem.mask_words];
    lists.slot[i] = int32_t(first_slot + start[i] + problem.lists.word_rank[entry + int64_t(i) * problem.mask_words]);
  }
  __syncwarp();
}

// Collects the slots of row `bit` of the word (all lanes together); returns how many.
__device__ __forceinline__ int collect_slots(const WordLists& lists, int list_count, int bit, RowSlots& slots) {
  const int lane = threadIdx.x % 32;
  int count = 0;
  for (int base = 0; base < list_count; base += 32) {
    const uint32_t mask = base + lane < list_count ? lists.mask[base + lane] : 0;
    const bool attends = mask >> bit & 1;
    const unsigned active = __ballot_sync(kAllLanes, attends);
    if (attends) {
      slots.slot[count + __popc(active & ((1u << lane) - 1))] =
          lists.slot[base + lane] + __popc(mask & ((1u << bit) - 1));
    }
    count += __popc(active);
  }
  return count;
}

// Turns the row's log-sum-exps into weights in `slots`; rescales what the row holds to the new maximum.
template <int HeadDim>
__device__ __forceinline__ void weigh_slots(RunningRow& row, const float* partial_lse2, int count, RowSlots& slots) {
  constexpr int kLanes = kLanesPerRow<HeadDim>;
  const int lane = threadIdx.x % kLanes;
  float maximum = row.maximum;
  for (int i = lane; i < count; i += kLanes) {
    slots.weight[i] = partial_lse2[slots.slot[i]];
    maximum = fmaxf(maximum, slots.weight[i]);
  }
#pragma unroll
  for (int i = kLanes / 2; i > 0; i /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, i));
  // Every row attends its own block, so a maximum of -inf would mean lists without that block; it must not give NaN.
  const float rescale = row.maximum == -INFINITY ? 0.f : exp2f(row.maximum - maximum);
  row.maximum = maximum;
  row.weight *= rescale;
#pragma unroll
  for (float& value : row.sum) value *= rescale;
  for (int i = lane; i < count; i += kLanes) {
    slots.weight[i] = exp2f(slots.weight[i] - maximum);
    row.weight += slots.weight[i];  // this lane's share
  }
  __syncwarp();
}

// This lane's 8 columns of a slot, in the tile images of the partial buffer.
template <int HeadDim>
__device__ __forceinline__ uint4 load_chunk(const __nv_bfloat16* partial, int32_t slot, int chunk) {
  const int row = slot % kTileRows;
  const int64_t panel_row = (int64_t(slot / kTileRows) * (HeadDim / 64) + chunk / 8) * kTileRows + row;
  return __ldcs(reinterpret_cast<const uint4*>(partial + panel_row * 64) + ((chunk % 8) ^ (row % 8)));
}

__device__ __forceinline__ void add_weighted(RunningRow& row, const uint4& packed, float weight) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    row.sum[2 * i] = fmaf(weight, __uint_as_float(words[i] << 16), row.sum[2 * i]);
    row.sum[2 * i + 1] = fmaf(weight, __uint_as_float(words[i] & 0xffff0000u), row.sum[2 * i + 1]);
  }
}

// Adds the collected slots to the row; `most` is the largest count among the warp's rows. The first outputs are
// requested before the weights are known: a row of few slots then costs one memory latency instead of two.
template <int HeadDim>
__device__ __forceinline__ void add_slots(RunningRow& row, const ForwardProblem& problem, int count, int most,
                                          RowSlots& slots) {
  constexpr int kUnroll = 4;
  const int chunk = threadIdx.x % kLanesPerRow<HeadDim>;
  for (int base = 0; base < most; base += kUnroll) {
    uint4 packed[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (base + i < count) packed[i] = load_chunk<HeadDim>(problem.partial, slots.slot[base + i], chunk);
    }
    if (base == 0) weigh_slots<HeadDim>(row, problem.partial_lse2, count, slots);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (base + i < count) add_weighted(row, packed[i], slots.weight[base + i]);
    }
  }
}

template <int HeadDim>
__device__ __forceinline__ void write_row(const ForwardProblem& problem, RunningRow& row, int head, int position,
                                          int64_t token) {
  constexpr int kLanes = kLanesPerRow<HeadDim>;
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int i = kLanes / 2; i > 0; i /= 2) row.weight += __shfl_xor_sync(kAllLanes, row.weight, i);
  if (position >= problem.tokens) return;
  if (lane == 0) problem.lse[int64_t(head) * problem.tokens + token] = (row.maximum + log2f(row.weight)) * kLn2;
  const float inverse = row.weight > 0 ? 1.f / row.weight : 0.f;
  union {
    __nv_bfloat162 pairs[4];
    uint4 vector;
  } packed;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed.pairs[i] = __floats2bfloat162_rn(row.sum[2 * i] * inverse, row.sum[2 * i + 1] * inverse);
  }
  const TensorView& out = problem.out;
  __nv_bfloat16* destination = static_cast<__nv_bfloat16*>(out.data) + head / problem.shape.heads * out.batch_stride +
                               head % problem.shape.heads * out.head_stride + token * out.token_stride + lane * 8;
  *reinterpret_cast<uint4*>(destination) = packed.vector;
}

// Rows [32 word, 32 word + 32) of a head; one warp.
template <int HeadDim>
__device__ __forceinline__ void combine_word(const ForwardProblem& problem, int64_t first_slot, int head, int word,
                                             WarpStorage<HeadDim>& storage) {
  constexpr int kRows = kRowsAtOnce<HeadDim>;
  const int lane = threadIdx.x % 32;
  const int group = lane / kLanesPerRow<HeadDim>;
  const int first_position = word * 32;
  int token = first_position + lane;
  if (token < problem.shape.video_tokens) token = problem.partition.token_of[token];
  for (int bit = 0; bit < 32; bit += kRows) {
    RunningRow row;
    for (int first_list = 0; first_list < problem.block_count; first_list += kListsPerRound) {
      const int list_count = min(kListsPerRound, problem.block_count - first_list);
      if (bit == 0 || problem.block_count > kListsPerRound) {
        load_word(problem, first_slot, head, word, first_list, list_count, storage.lists);
      }
      int count = 0, most = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int collected = collect_slots(storage.lists, list_count, bit + i, storage.rows[i]);
        if (i == group) count = collected;
        most = max(most, collected);
      }
      __syncwarp();
      add_slots<HeadDim>(row, problem, count, most, storage.rows[group]);
      __syncwarp();
    }
    write_row<HeadDim>(problem, row, head, first_position + bit + group, __shfl_sync(kAllLanes, token, bit + group));
  }
}

template <int HeadDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    combine_kernel(const __grid_constant__ ForwardProblem problem, int wave) {
  __shared__ WarpStorage<HeadDim> storage[kWarps];
  const int first_head = problem.plan.wave_first[wave];
  const int end_head = problem.plan.wave_first[wave + 1];
  const int first_tile = problem.plan.tiles_before[first_head];
  const int first_word = problem.shape.first_word, of_head = problem.shape.end_word() - first_word;
  const int words = (end_head - first_head) * of_head;
  for (int i = int(blockIdx.x) * kWarps + int(threadIdx.x) / 32; i < words; i += int(gridDim.x) * kWarps) {
    const int head = first_head + i / of_head;
    const int64_t first_slot = int64_t(problem.plan.tiles_before[head] - first_tile) * kTileRows;
    combine_word<HeadDim>(problem, first_slot, head, first_word + i % of_head, storage[threadIdx.x / 32]);
  }
}

}  // namespace

cudaError_t combine_wave(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream) {
  const int blocks = sm_count * kBlocksPerSm;
  if (problem.shape.head_dim == 128) {
    combine_kernel<128><<<blocks, kThreads, 0, stream>>>(problem, wave);
  } else {
    combine_kernel<64><<<blocks, kThreads, 0, stream>>>(problem, wave);
  }
  return cudaGetLastError();
}

}  // namespace vmoba::kernels
