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
  return tile_shape_valid(s) && s.row_pairs == 0 && s.key_pairs == 0;
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

// `count` of at most Rows rows into a tile, in whole groups: the last row is repeated.
template <int D, int Rows>
__device__ __forceinline__ void copy_rows(uint32_t tile, const __nv_bfloat16* rows, int count) {
  constexpr int kChunks = D / 8, kRowStep = kThreads / kChunks;
  static_assert(kRowStep % 8 == 0);  // the swizzle is the same in every step
  const int first = int(threadIdx.x) / kChunks, chunk = int(threadIdx.x) % kChunks;
  const int copied = (count + am::kGroup - 1) / am::kGroup * am::kGroup;
  uint32_t target = tile + am::tile_offset<Rows>(first, chunk);
#pragma unroll 2
  for (int row = first; row < copied; row += kRowStep, target += kRowStep * hopper::kPanelRowBytes)
    hopper::cp_async_16(target, rows + (min(row, count - 1) * D + chunk * 8));
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

// The keys of one step: a piece, or as many means.
struct StepKeys {
  int begin, rows;  // permuted positions, or numbers of means
  bool mean;
};

// Keys and values of a piece of rows, step by step, through three buffers in the order of their use: what comes two
// uses later is loaded while this one is multiplied, into the buffer that the use before it left.
template <int D, bool kValuesFirst, class Args>
class KeyWalk {
 public:
  struct Storage {
    alignas(1024) char buffer[3][kPieceRows * D * 2];
    alignas(16) float bias[2][kPieceRows];  // of means, in units of unscaled scores
    StepKeys keys[2];                       // of this step and the next
  };

  __device__ __forceinline__ KeyWalk(const Args& args, Storage& storage, int head, int piece)
      : args_(args), storage_(storage), head_(head) {
    const TileShape& s = args.shape;
    pieces_ = total_ = s.key_pieces();
    if (piece >= s.video_pieces) return;
    tile_ = __ldg(args.partition.piece_tile + piece);
    const int64_t list = int64_t(head) * s.tiles + tile_;
    list_ = args.lists.keys + list * s.key_pieces();
    pieces_ = __ldg(args.lists.key_count + list);
    total_ = pieces_ + (args.means.keys != nullptr ? s.mean_pieces() : 0);
  }

  // Calls first and second in turn with (tile of the first or second operand, the step's keys, bias of means).
  template <class First, class Second>
  __device__ __forceinline__ void run(const First& first, const Second& second) {
    look_up(0);
    copy(kValuesFirst, 0, 0);
    copy(!kValuesFirst, 1, 0);
    look_up(1);
#pragma unroll 1
    for (int step = 0, buffer = 0; step < total_; ++step) {
      await();
      copy(kValuesFirst, before(buffer), step + 1);
      first(tile(buffer), storage_.keys[step % 2], storage_.bias[step % 2]);
      buffer = behind(buffer);
      await();
      copy(!kValuesFirst, before(buffer), step + 1);
      look_up(step + 2);
      second(tile(buffer), storage_.keys[step % 2], storage_.bias[step % 2]);
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

  // Finds the keys of `step`, whose turn is a good while away.
  __device__ __forceinline__ void look_up(int step) {
    if (step >= total_) return;
    const int blocks = args_.shape.blocks;
    ahead_.mean = step >= pieces_;
    if (!ahead_.mean) {
      const Piece piece = key_piece_at(args_.partition, list_ == nullptr ? step : __ldg(list_ + step));
      ahead_.begin = piece.begin, ahead_.rows = piece.rows;
      return;
    }
    ahead_.begin = (step - pieces_) * kPieceRows, ahead_.rows = min(kPieceRows, blocks - ahead_.begin);
    if (threadIdx.x >= kPieceRows) return;
    // Means of blocks that the tile attends take no part; the others bring the logarithm of what they stand for.
    const int mean = min(ahead_.begin + int(threadIdx.x), blocks - 1);
    attended_ = __ldg(args_.lists.mask + (int64_t(head_) * args_.shape.tiles + tile_) * blocks + mean);
    bias_ = __ldg(args_.means.bias + int64_t(head_) * blocks + mean);
  }

  // Of the keys that were looked up for `step`. An empty group of copies keeps the count.
  __device__ __forceinline__ void copy(bool values, int buffer, int step) {
    if (step < total_) {
      const int64_t row = int64_t(head_) * (ahead_.mean ? args_.shape.blocks : args_.shape.tokens()) + ahead_.begin;
      const void* rows =
          values ? (ahead_.mean ? args_.means.values : args_.v) : (ahead_.mean ? args_.means.keys : args_.k);
      copy_rows<D, kPieceRows>(tile(buffer), row_at<D>(rows, row), ahead_.rows);
      if (values == kValuesFirst && threadIdx.x == 0) storage_.keys[step % 2] = ahead_;
      if (!values && ahead_.mean && threadIdx.x < kPieceRows)
        storage_.bias[step % 2][threadIdx.x] = attended_ == 0 ? __fdividef(bias_, args_.scale) : -INFINITY;
    }
    hopper::cp_async_commit();
  }

  const Args& args_;
  Storage& storage_;
  const int head_;
  int tile_ = -1, pieces_ = 0, total_ = 0;
  const uint16_t* list_ = nullptr;  // null: every piece
  StepKeys ahead_ = {0, 0, false};
  uint8_t attended_ = 0;  // of this thread's mean ahead
  float bias_ = 0;
};

}  // namespace tiles_sm80
}  // namespace vmoba::kernels
