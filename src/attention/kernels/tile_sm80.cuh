// What the sm_80 kernels of tiles share: rows between memory and tiles or registers, and the walk of a piece of rows
// over the keys that its tile attends.
//
// A block of threads is four warps with 16 rows of a piece each. A warp without rows of its own still copies.
#pragma once
#include "attention/kernels/products_sm80.cuh"
#include "attention/kernels/tile_backward.cuh"
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {

// The forward, as tile_forward().
cudaError_t tile_forward_sm80(const TileForwardArgs& args, cudaStream_t stream);

namespace backward_tiles {

// dk and dv of pieces of keys, or the same of means by parts of the rows; dq of pieces of rows.
cudaError_t launch_keys_sm80(const Params& params, bool means, cudaStream_t stream);
cudaError_t launch_rows_sm80(const Params& params, cudaStream_t stream);

}  // namespace backward_tiles

namespace tiles_sm80 {

namespace am = ampere;

constexpr int kThreads = 128;

inline bool shape_taken(const TileShape& s) {
  return tile_shape_valid(s) && s.row_pairs == 0 && s.key_pairs == 0 && s.packed == 0;
}

// Row `row` of contiguous rows of D.
template <int D>
__device__ __forceinline__ const __nv_bfloat16* row_at(const void* rows, int64_t row) {
  return static_cast<const __nv_bfloat16*>(rows) + row * D;
}

// First of this warp's rows.
__device__ __forceinline__ int warp_row() {
  return int(threadIdx.x) / 32 * am::kGroup;
}

// `count` of at most Rows rows into a tile, in whole groups: source(row) is the first element of a row, and of the rows
// behind the last one that of any.
template <int D, int Rows, class Source>
__device__ __forceinline__ void copy_rows(uint32_t tile, int count, const Source& source) {
  constexpr int kChunks = D / 8, kRowStep = kThreads / kChunks;
  static_assert(kRowStep % 8 == 0);  // the swizzle is the same in every step
  const int first = int(threadIdx.x) / kChunks, chunk = int(threadIdx.x) % kChunks;
  uint32_t target = tile + am::tile_offset<Rows>(first, chunk);
  const int copied = (count + am::kGroup - 1) / am::kGroup * am::kGroup;
#pragma unroll 2
  for (int row = first; row < copied; row += kRowStep, target += kRowStep * hopper::kPanelRowBytes)
    hopper::cp_async_16(target, source(row) + chunk * 8);
}

// Rows that follow each other; the last one is repeated.
template <int D, int Rows>
__device__ __forceinline__ void copy_rows(uint32_t tile, const __nv_bfloat16* rows, int count) {
  copy_rows<D, Rows>(tile, count, [&](int row) { return rows + min(row, count - 1) * D; });
}

// This warp's 16 of `count` rows as the left operand of products; the last row is repeated.
template <int D>
__device__ __forceinline__ void load_operand(uint32_t (&operand)[D / 16][4], const __nv_bfloat16* rows, int count) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = min(warp_row() + lane / 4 + half * 8, count - 1);
    const uint32_t* source = reinterpret_cast<const uint32_t*>(rows + row * D);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      operand[k][half] = __ldg(source + k * 8 + lane % 4);
      operand[k][half + 2] = __ldg(source + k * 8 + lane % 4 + 4);
    }
  }
}

template <int N>
__device__ __forceinline__ void add_bias(float (&scores)[N][4], const float* bias) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float2 added = *reinterpret_cast<const float2*>(bias + n * 8 + threadIdx.x % 4 * 2);
    scores[n][0] += added.x, scores[n][1] += added.y, scores[n][2] += added.x, scores[n][3] += added.y;
  }
}

// The keys of one step: of as many pieces as fill it, or means.
struct StepKeys {
  int rows;        // 0: no more steps
  int first_mean;  // -1: keys of pieces
  __device__ __forceinline__ bool mean() const { return first_mean >= 0; }
};

// Keys and values of a piece of rows, step by step, through three buffers in the order of their use: what comes two
// uses later is loaded while this one is multiplied, into the buffer that the use before it left.
template <int D, bool kValuesFirst, class Args>
class KeyWalk {
 public:
  static constexpr int kKnownSteps = 3;
  struct Storage {
    alignas(128) char buffer[3][kPieceRows * D * 2];
    union {
      alignas(16) int position[kPieceRows];  // of the keys, permuted
      alignas(16) float bias[kPieceRows];    // of means, in units of unscaled scores
    } known[kKnownSteps];
    StepKeys keys[kKnownSteps];
  };

  __device__ __forceinline__ KeyWalk(const Args& args, Storage& storage, int head, int piece)
      : args_(args), storage_(storage), head_(head) {
    const TileShape& s = args.shape;
    pieces_ = s.key_pieces();
    if (piece < s.video_pieces) {
      tile_ = __ldg(args.partition.piece_tile + piece);
      const int64_t list = int64_t(head) * s.tiles + tile_;
      list_ = args.lists.keys + list * s.key_pieces();
      pieces_ = __ldg(args.lists.key_count + list);
      means_ = args.means.keys != nullptr ? s.blocks : 0;
    }
    next_window_ = window_at(0);
  }

  // Calls first and second in turn with (tile of the first or second operand, the step's keys, bias of means).
  template <class First, class Second>
  __device__ __forceinline__ void run(const First& first, const Second& second) {
    find_keys(0);
    find_keys(1);
    __syncthreads();
    copy(kValuesFirst, 0, 0);
    copy(!kValuesFirst, 1, 0);
#pragma unroll 1
    for (int step = 0, buffer = 0; storage_.keys[step % kKnownSteps].rows > 0; ++step) {
      await();
      copy(kValuesFirst, before(buffer), step + 1);
      first(tile(buffer), storage_.keys[step % kKnownSteps], storage_.known[step % kKnownSteps].bias);
      buffer = behind(buffer);
      await();
      copy(!kValuesFirst, before(buffer), step + 1);
      find_keys(step + 2);
      second(tile(buffer), storage_.keys[step % kKnownSteps], storage_.known[step % kKnownSteps].bias);
      buffer = behind(buffer);
    }
  }

 private:
  static __device__ __forceinline__ int behind(int buffer) {
    return buffer == 2 ? 0 : buffer + 1;
  }
  static __device__ __forceinline__ int before(int buffer) {
    return buffer == 0 ? 2 : buffer - 1;
  }
  __device__ __forceinline__ uint32_t tile(int buffer) const {
    return hopper::smem_address(storage_.buffer[buffer]);
  }

  // What is used next has landed, and every warp is done with the use before.
  __device__ __forceinline__ void await() const {
    hopper::cp_async_wait<1>();
    __syncthreads();
  }

  // This lane's of the 32 pieces from `first` on.
  __device__ __forceinline__ Piece window_at(int first) const {
    const int index = first + int(threadIdx.x) % 32;
    if (index >= pieces_) return {};
    return key_piece_at(args_.partition, list_ == nullptr ? index : __ldg(list_ + index));
  }

  // Finds the keys of `step`, a thread each of the warps that may be without rows.
  __device__ __forceinline__ void find_keys(int step) {
    const int slot = int(threadIdx.x) - (kThreads - kPieceRows);
    if (slot < 0) return;
    int found = 0, position = 0;
    while (found < kPieceRows && index_ < pieces_) {
      if (index_ % 32 == 0 && used_ == 0) {
        window_ = next_window_;
        next_window_ = window_at(index_ + 32);  // its turn is a good while away
      }
      const int begin = __shfl_sync(am::kAllLanes, window_.begin, index_ % 32) + used_;
      const int left = __shfl_sync(am::kAllLanes, window_.rows, index_ % 32) - used_;
      const int taken = min(left, kPieceRows - found);
      if (slot >= found) position = begin + min(slot - found, taken - 1);
      found += taken, used_ += taken;
      if (taken == left) ++index_, used_ = 0;
    }
    StepKeys keys{found, -1};
    if (found > 0) {
      storage_.known[step % kKnownSteps].position[slot] = position;
    } else if (mean_ < means_) {
      keys = {min(kPieceRows, means_ - mean_), mean_};
      look_up_mean(min(mean_ + slot, means_ - 1));
      mean_ += kPieceRows;
    }
    if (slot == 0) storage_.keys[step % kKnownSteps] = keys;
  }

  // Means of blocks that the tile attends take no part; the others bring the logarithm of what they stand for.
  __device__ __forceinline__ void look_up_mean(int mean) {
    attended_ = __ldg(args_.lists.mask + (int64_t(head_) * args_.shape.tiles + tile_) * means_ + mean);
    bias_ = __ldg(args_.means.bias + int64_t(head_) * means_ + mean);
  }

  // Of the keys that were found for `step`. An empty group of copies keeps the count.
  __device__ __forceinline__ void copy(bool values, int buffer, int step) {
    const StepKeys keys = storage_.keys[step % kKnownSteps];
    auto& known = storage_.known[step % kKnownSteps];
    if (keys.mean()) {
      const void* all = values ? args_.means.values : args_.means.keys;
      copy_rows<D, kPieceRows>(tile(buffer), row_at<D>(all, int64_t(head_) * means_ + keys.first_mean), keys.rows);
      const int slot = int(threadIdx.x) - (kThreads - kPieceRows);
      if (!values && slot >= 0) known.bias[slot] = attended_ == 0 ? __fdividef(bias_, args_.scale) : -INFINITY;
    } else if (keys.rows > 0) {
      const __nv_bfloat16* all = row_at<D>(values ? args_.v : args_.k, int64_t(head_) * args_.shape.tokens());
      copy_rows<D, kPieceRows>(tile(buffer), keys.rows,
                               [&](int row) { return all + int64_t(known.position[row]) * D; });
    }
    hopper::cp_async_commit();
  }

  const Args& args_;
  Storage& storage_;
  const int head_;
  int tile_ = -1, pieces_ = 0, means_ = 0;
  const uint16_t* list_ = nullptr;   // null: every piece
  int index_ = 0, used_ = 0;         // the next piece, and how many of its keys are in a step
  int mean_ = 0;                     // the next mean
  Piece window_ = {}, next_window_;  // a lane's piece of the 32 around index_, and of the 32 after those
  uint8_t attended_ = 0;             // of this thread's mean
  float bias_ = 0;
};

}  // namespace tiles_sm80
}  // namespace vmoba::kernels
