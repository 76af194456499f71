// What the kernels of strips share. A strip, part of a cube, stays in shared memory on the N side of wgmma, which takes
// every multiple of eight; what streams by is on the M side in steps of 64 rows of several pieces, whole groups of
// eight of each. So neither side computes rows that are not there, whatever multiple of eight a cube has.
// Products of a step, [64 rows x strip], become operands of the next product by a transposed store: rows of the strip
// with 64 columns, one panel.
#pragma once
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels::strips {

namespace hp = hopper;

constexpr int kHeadDim = 128;
constexpr int kPanels = kHeadDim / hp::kPanelColumns;
constexpr int kWarpgroup = 128;
constexpr int kStepRows = 64;
constexpr int kStepPanelBytes = kStepRows * hp::kPanelRowBytes;
constexpr int kStepBytes = kPanels * kStepPanelBytes;
constexpr int kGroupBytes = kGroupRows * hp::kPanelRowBytes;  // of a panel

__device__ __forceinline__ uint32_t address_of(const void* object) {
  return hp::smem_address(object);
}

__device__ __forceinline__ Piece strip_at(const TilePartition& partition, int strip) {
  const int begin = __ldg(partition.strip_begin + strip);
  return {begin, __ldg(partition.strip_begin + strip + 1) - begin};
}

// Number `index` of all heads' strips; those of text go first (see turn_of).
__device__ __forceinline__ Turn strip_turn(const TileShape& shape, int index) {
  const int video = shape.video_strips, text = shape.strips() - video, of_text = shape.batch * shape.heads * text;
  if (index < of_text) return {index / text, video + index % text};
  return {(index - of_text) / video, (index - of_text) % video};
}

// ---- feeding: one warp --------------------------------------------------------------------------------------------

// Maps of the boxes of a tensor of rows.
struct RowMaps {
  CUtensorMap step, group;  // 64 rows and eight
};

// `rows` of each head, [B, N, rows, 128].
inline cudaError_t encode_rows(CUtensorMap* map, const void* data, const TileShape& s, int64_t rows, int box_rows) {
  return hp::encode_row_map(map, data, kHeadDim, rows, s.heads, s.batch, kHeadDim, rows * kHeadDim,
                            rows * kHeadDim * s.heads, box_rows);
}
inline cudaError_t encode_steps(RowMaps& maps, const void* data, const TileShape& s, int64_t rows) {
  const cudaError_t error = encode_rows(&maps.step, data, s, rows, kStepRows);
  return error == cudaSuccess ? encode_rows(&maps.group, data, s, rows, kGroupRows) : error;
}

// Of keys and values, and of their means.
struct KeyMaps {
  RowMaps k, v, mean_k, mean_v;
};
template <class Args>
cudaError_t encode_keys(KeyMaps& maps, const Args& args) {
  const TileShape& s = args.shape;
  cudaError_t error = encode_steps(maps.k, args.k, s, s.tokens());
  if (error == cudaSuccess) error = encode_steps(maps.v, args.v, s, s.tokens());
  if (args.means.keys == nullptr) return error;
  if (error == cudaSuccess) error = encode_steps(maps.mean_k, args.means.keys, s, s.blocks);
  return error == cudaSuccess ? encode_steps(maps.mean_v, args.means.values, s, s.blocks) : error;
}

// First rows of the eight groups of a step, in lanes 0 to 7; those of a step that is `whole` follow each other.
struct StepGroups {
  int row;
  bool whole;
};

// Coordinates of (b, n) in the maps.
struct HeadPlace {
  int head, sample;
};
__device__ __forceinline__ HeadPlace place_of(const TileShape& shape, int head) {
  return {head % shape.heads, head / shape.heads};
}

__device__ __forceinline__ void load_box(const CUtensorMap* map, uint32_t target, uint32_t panel_bytes, uint64_t& full,
                                         int row, const HeadPlace& place) {
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    hp::tma_load_4d(target + panel * panel_bytes, map, address_of(&full), panel * hp::kPanelColumns, row, place.head,
                    place.sample);
  }
}

// In a converged warp.
__device__ __forceinline__ void load_groups(const RowMaps& maps, const char* target, uint64_t& full,
                                            const StepGroups& groups, const HeadPlace& place) {
  const int lane = threadIdx.x % 32;
  if (groups.whole) {
    if (lane == 0) load_box(&maps.step, address_of(target), kStepPanelBytes, full, groups.row, place);
  } else if (lane < kStepRows / kGroupRows) {
    load_box(&maps.group, address_of(target) + lane * kGroupBytes, kStepPanelBytes, full, groups.row, place);
  }
  __syncwarp();
}

// The pieces of a list one after the other, in steps of eight groups; with `kTiles`, of which tiles they are. In a
// converged warp.
template <bool kTiles>
class GroupStream {
 public:
  // Without a list, the pieces from `first` on. `none`: a row behind the last, where loads give zeros.
  __device__ __forceinline__ void start(const TilePartition& partition, const uint16_t* list, int first, int pieces,
                                        int none) {
    partition_ = &partition;
    list_ = list, first_ = first, pieces_ = pieces, none_ = none;
    taken_ = rest_ = 0;
    number_ = number_of(0);
    look_up(32);
  }
  __device__ __forceinline__ StepGroups next() {
    if (rest_ == 0 && taken_ < pieces_) next_piece();
    if (!kTiles && rest_ == kStepRows) {
      rest_ = 0;
      return {begin_, true};
    }
    return next_parts();
  }
  // Of the groups of the step that next() gave, in lanes 0 to 7; 0 where there is none.
  __device__ __forceinline__ int tile() const { return step_tile_; }

 private:
  __device__ __forceinline__ StepGroups next_parts() {
    const int lane = threadIdx.x % 32;
    int row = none_;
    step_tile_ = 0;
#pragma unroll 1
    for (int offset = 0; offset < kStepRows;) {
      if (rest_ == 0) {
        if (taken_ == pieces_) break;
        next_piece();
      }
      const int rows = min(kStepRows - offset, rest_), at = lane * kGroupRows - offset;
      if (at >= 0 && at < rows) {
        row = begin_ + at;
        if (kTiles) step_tile_ = tile_;
      }
      begin_ += rows, rest_ -= rows, offset += rows;
    }
    const int first = __shfl_sync(0xffffffffu, row, 0);
    const bool follows = lane >= kStepRows / kGroupRows || row == first + lane * kGroupRows;
    const bool whole = __all_sync(0xffffffffu, follows) != 0;
    return {whole ? first : row, whole};
  }
  // Each lane one of the 32 pieces from `first` on. What is looked up is used 32 pieces later.
  __device__ __forceinline__ int number_of(int first) const {
    const int at = first + int(threadIdx.x) % 32;
    if (at >= pieces_) return -1;
    return list_ == nullptr ? first_ + at : int(__ldg(list_ + at));
  }
  __device__ __forceinline__ void look_up(int next) {
    if (number_ >= 0) {
      ahead_begin_ = __ldg(partition_->piece_begin + number_);
      ahead_end_ = __ldg(partition_->piece_begin + number_ + 1);
      if (kTiles) ahead_tile_ = __ldg(partition_->piece_tile + number_);
    }
    number_ = number_of(next);
  }
  __device__ __forceinline__ void next_piece() {
    if (taken_ % 32 == 0) {
      at_hand_ = uint32_t(ahead_begin_) / kGroupRows << 4 | uint32_t(in_groups(ahead_end_ - ahead_begin_) / kGroupRows);
      tile_at_hand_ = ahead_tile_;
      look_up(taken_ + 64);
    }
    const int from = taken_++ % 32;
    const uint32_t own = __shfl_sync(0xffffffffu, at_hand_, from);
    begin_ = int(own >> 4) * kGroupRows, rest_ = int(own & 15) * kGroupRows;
    if (kTiles) tile_ = __shfl_sync(0xffffffffu, tile_at_hand_, from);
  }

  const TilePartition* partition_;
  const uint16_t* list_;
  int first_, pieces_, none_, taken_;
  int tile_, begin_, rest_;  // of the piece at hand, what is left of it
  int step_tile_;
  uint32_t at_hand_;  // this lane's of 32 pieces: their groups, first and number of
  int tile_at_hand_, ahead_tile_ = 0, ahead_begin_ = 0, ahead_end_ = 0, number_;
};

// What is known of the keys of the steps under way: where one `adds`, what its keys' scores are to be added.
template <int kSteps>
struct KnownKeys {
  alignas(16) float added[kSteps][kStepRows];
  int adds[kSteps];
};

struct KeyStep {
  StepGroups groups;
  int first;  // of the keys, or of the means
  bool mean;
};

// The keys that a strip of queries meets, in steps: those of the pieces that its cube attends, then the means of the
// cubes that it does not. In a converged warp.
template <class Args>
class KeySteps {
 public:
  // Both stay where they are.
  __device__ __forceinline__ KeySteps(const Args& args, const float& inverse_scale)
      : args_(args), shape_(args.shape), inverse_scale_(inverse_scale), lane_(int(threadIdx.x) % 32) {}

  // Their number.
  __device__ __forceinline__ int start(int head, int strip) {
    const uint16_t* list = nullptr;
    int pieces = shape_.pieces(), means = 0;
    tile_ = -1, keys_ = shape_.tokens();
    if (strip < shape_.video_strips) {
      tile_ = __ldg(args_.partition.strip_block + strip);
      const int64_t at = int64_t(head) * shape_.tiles + tile_;
      list = args_.lists.keys + at * shape_.key_pieces();
      pieces = __ldg(args_.lists.key_count + at);
      keys_ = __ldg(args_.lists.key_tokens + at);
      means = args_.means.keys != nullptr ? shape_.blocks : 0;
    }
    stream_.start(args_.partition, list, 0, pieces, shape_.tokens());
    look_up_means(head, 0);
    key_steps_ = (keys_ + kStepRows - 1) / kStepRows;
    return key_steps_ + (means + kStepRows - 1) / kStepRows;
  }

  // In the order of steps.
  __device__ __forceinline__ KeyStep at(int step) {
    const bool mean = step >= key_steps_;
    const int first = (mean ? step - key_steps_ : step) * kStepRows;
    const StepGroups groups = mean ? StepGroups{first, true} : stream_.next();
    return {groups, first, mean};
  }

  // Rows behind the last key take no part, nor do means of cubes that the strip attends; the others bring the
  // logarithm of what they stand for. In the order of steps; the caller makes it known.
  template <int kSteps>
  __device__ __forceinline__ void describe(int head, const KeyStep& step, KnownKeys<kSteps>& keys, uint32_t known) {
    const bool adds = step.mean || keys_ - step.first < kStepRows;
    if (lane_ == 0) keys.adds[known] = adds;
    if (!adds) return;
#pragma unroll
    for (int i = 0; i < kMeansOfLane; ++i) {
      const int row = lane_ + 32 * i, at = step.first + row;
      const bool enters = step.mean ? at < shape_.blocks && attended_[i] == 0 : at < keys_;
      keys.added[known][row] = !enters ? -INFINITY : step.mean ? bias_[i] * inverse_scale_ : 0.f;
    }
    if (step.mean) look_up_means(head, step.first + kStepRows);
  }

 private:
  // Of the means from `first` on; their turn is a good while away.
  __device__ __forceinline__ void look_up_means(int head, int first) {
    if (args_.means.keys == nullptr || tile_ < 0) return;
#pragma unroll
    for (int i = 0; i < kMeansOfLane; ++i) {
      const int mean = min(first + lane_ + 32 * i, shape_.blocks - 1);
      attended_[i] = __ldg(args_.lists.mask + (int64_t(head) * shape_.tiles + tile_) * shape_.blocks + mean);
      bias_[i] = __ldg(args_.means.bias + int64_t(head) * shape_.blocks + mean);
    }
  }

  static constexpr int kMeansOfLane = kStepRows / 32;
  const Args& args_;
  const TileShape& shape_;
  const float& inverse_scale_;
  const int lane_;
  int tile_, keys_, key_steps_;
  GroupStream<false> stream_;
  uint8_t attended_[kMeansOfLane];  // of the step of means to come
  float bias_[kMeansOfLane];
};

// ---- products: one warpgroup --------------------------------------------------------------------------------------

// acc (64 x kColumns) = step (64 x 128) strip (kColumns x 128)^T; the caller commits.
template <int kColumns>
__device__ __forceinline__ void issue_strip(float (&acc)[kColumns / 2], uint32_t step, uint32_t strip) {
  hp::wgmma_fence_operand(acc);
  hp::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    hp::wgmma_ss<kColumns>(hp::descriptor_k_major(step) + k / 4 * (kStepPanelBytes >> 4) + k % 4 * 2,
                           hp::descriptor_k_major(strip) + k / 4 * (kColumns * hp::kPanelRowBytes >> 4) + k % 4 * 2,
                           acc, k > 0);
  }
}
template <int kColumns>
__device__ __forceinline__ void multiply_strip(float (&acc)[kColumns / 2], uint32_t step, uint32_t strip) {
  issue_strip<kColumns>(acc, step, strip);
  hp::wgmma_commit();
}

// acc (128 x kColumns, by halves) (+)= step (64 x 128)^T weights (kColumns x 64)^T.
template <int kColumns>
__device__ __forceinline__ void accumulate_strip(float (&acc)[kPanels][kColumns / 2], uint32_t step, uint32_t weights,
                                                 bool accumulate) {
#pragma unroll
  for (int half = 0; half < kPanels; ++half) hp::wgmma_fence_operand(acc[half]);
  hp::wgmma_fence();
#pragma unroll
  for (int half = 0; half < kPanels; ++half) {
#pragma unroll
    for (int k = 0; k < kStepRows / 16; ++k) {
      hp::wgmma_ss<kColumns, true>(hp::descriptor_mn_major(step + half * kStepPanelBytes, kStepPanelBytes) + k * 128,
                                   hp::descriptor_k_major(weights) + k * 2, acc[half], k > 0 || accumulate);
    }
  }
  hp::wgmma_commit();
}

// To the scores of a step's keys.
template <int kScores, int kSteps>
__device__ __forceinline__ void add_known(float (&scores)[kScores], const KnownKeys<kSteps>& keys, uint32_t known) {
  if (keys.adds[known] == 0) return;
  const float low = keys.added[known][own_row()], high = keys.added[known][own_row() + 8];
#pragma unroll
  for (int j = 0; j < kScores / 4; ++j) {
    scores[4 * j] += low, scores[4 * j + 1] += low;
    scores[4 * j + 2] += high, scores[4 * j + 3] += high;
  }
}

// Where this lane stores its part of a [64 rows x kColumns] accumulator, transposed, in a panel.
__device__ __forceinline__ uint32_t transposed_offset() {
  const int lane = threadIdx.x % 32, warp = int(threadIdx.x) % kWarpgroup / 32;
  return lane / 16 * kGroupBytes + hp::swizzled_offset(lane % 8, 2 * warp + lane / 8 % 2);
}

// bf16 pairs of the accumulator: words 2 j and 2 j + 1 are columns 8 j + 2 (lane % 4) and the next, in this thread's
// rows.
template <int kColumns>
__device__ __forceinline__ void store_transposed(uint32_t target, const uint32_t (&words)[kColumns / 4]) {
#pragma unroll
  for (int j = 0; j + 1 < kColumns / 8; j += 2) {
    hp::stmatrix_x4_transposed(target + j * kGroupBytes, words[2 * j], words[2 * j + 1], words[2 * j + 2],
                               words[2 * j + 3]);
  }
  if (kColumns % 16 != 0)
    hp::stmatrix_x2_transposed(target + (kColumns / 8 - 1) * kGroupBytes, words[kColumns / 4 - 2],
                               words[kColumns / 4 - 1]);
}

// What store_transposed() stored.
template <int kColumns>
__device__ __forceinline__ void load_transposed(uint32_t (&words)[kColumns / 4], uint32_t source) {
#pragma unroll
  for (int j = 0; j + 1 < kColumns / 8; j += 2) {
    hp::ldmatrix_x4_transposed(source + j * kGroupBytes, words[2 * j], words[2 * j + 1], words[2 * j + 2],
                               words[2 * j + 3]);
  }
  if (kColumns % 16 != 0)
    hp::ldmatrix_x2_transposed(source + (kColumns / 8 - 1) * kGroupBytes, words[kColumns / 4 - 2],
                               words[kColumns / 4 - 1]);
}

// Rows of the result of a strip, [kColumns x 128] bf16 in panels at `rows` when all threads of the warpgroup have
// written there, to the original order.
template <int kColumns>
__device__ __forceinline__ void copy_rows(const char* rows, const TensorView& out, const TileShape& shape,
                                          const TilePartition& partition, int head, const Piece& own) {
  constexpr int kLanes = kHeadDim / 8;
  int thread = int(threadIdx.x) % kWarpgroup;
  if (kColumns > 72) asm volatile("" : "+r"(thread));  // or the places of all rows are kept in registers
  const int chunk = thread % kLanes;
#pragma unroll
  for (int first = 0; first < kColumns; first += kWarpgroup / kLanes) {
    const int row = first + thread / kLanes;
    if (row >= own.rows) continue;
    const uint4 value = *reinterpret_cast<const uint4*>(rows + chunk / 8 * kColumns * hp::kPanelRowBytes +
                                                        hp::swizzled_offset(row, chunk % 8));
    const int token = tile_token(shape, partition, own.begin + row);
    reinterpret_cast<uint4*>(tile_row(out, shape, head, token))[chunk] = value;
  }
}

}  // namespace vmoba::kernels::strips
