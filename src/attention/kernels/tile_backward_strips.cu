// Backward by query tiles on sm_90a for strips (D = 128): a strip stays in shared memory on the N side of wgmma while
// what meets it streams by in steps of 64 rows (tile_strips.cuh).
//   S = Q K^T, dP = dO V^T, P = exp2(S c + bias - lse2), dS = P (dP - delta), dV^T += dO^T P, dK^T += Q^T dS
// dq is tile_backward_strip_queries.cu's: scores are computed twice, once for a strip of keys and once for one of
// queries, so that nothing is atomic. Means are strips of keys that all rows of video may see, here those of one part.
//
// Persistent blocks of threads. Warpgroup 0 feeds by TMA. Warpgroup 1 makes P, and dV of it; warpgroup 2 makes dS, and
// dK of it, and has P from shared memory. Each issues its first product of the next step together with its second
// of this one, so that its arithmetic hides behind that and the other's products.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "attention/kernels/tile_backward.cuh"
#include "attention/kernels/tile_strips.cuh"

namespace vmoba::kernels::backward_tiles {
namespace {

using namespace strips;

constexpr int kStripThreads = 384;
constexpr int kStages = 4;
constexpr int kSlots = 2;  // of P and of dS
constexpr int kMathWarps = 8;
constexpr int kProducerRegisters = 56;  // 128 * 56 + 256 * 224 = 384 * 168, the uniform share at launch
constexpr int kMathRegisters = 224;
constexpr int kOwnBarrier = 1;  // named barriers kOwnBarrier + 0 and 1: of a warpgroup
constexpr int kStepGroups = kStepRows / kGroupRows;

template <bool kMeans_, int kColumns_>
struct StripConfig {
  static constexpr bool kMeans = kMeans_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kOwnColumns = kColumns / 4;  // a thread's: 8 j + 2 (lane % 4) and the next
  static constexpr int kPanelBytes = kColumns * hp::kPanelRowBytes;
  static constexpr int kStripBytes = kPanels * kPanelBytes;
};

struct StripItem {
  int head, strip, begin, rows, part, steps;  // no steps: no more items
};

template <class T>
struct StripStorage {
  alignas(1024) char strip[2][T::kStripBytes];     // K and V, or Q and dO
  alignas(1024) char first[kStages][kStepBytes];   // Q, or K
  alignas(1024) char second[kStages][kStepBytes];  // dO, or V
  alignas(1024) char weights[kSlots][T::kPanelBytes];
  alignas(1024) char scores[kSlots][T::kPanelBytes];
  alignas(16) float lse2[kStages][kStepRows];        // of rows; for queries what is added to the scores of keys
  alignas(16) float delta[kStages][kStepRows];       // of rows
  alignas(4) uint8_t attended[kStages][kPieceRows];  // of means: a bit for each group whose tile attends the block
  float bias_gradient[4];
  StripItem item;
  uint64_t strip_full, strip_empty, full[kStages], empty[kStages];
  uint64_t weights_full[kSlots], weights_empty[kSlots];
};

struct StripParams {
  CUtensorMap strip_maps[2];
  RowMaps first_maps, second_maps;
  TileBackwardArgs args;
  Workspace work;
};

// ---- loads: a warp, and for means another -------------------------------------------------------------------------

template <class T>
class StripFeed {
 public:
  __device__ __forceinline__ StripFeed(const StripParams& params, StripStorage<T>& shared)
      : params_(params), args_(params.args), shape_(params.args.shape), shared_(shared), lane_(int(threadIdx.x) % 32) {}

  // Items one after the other. A strip is asked for when the ring is full: it is sooner free.
  __device__ __forceinline__ void load_all() {
    int index = __shfl_sync(0xffffffffu, claim(-1), 0);
    for (; index < items(); ++done_) {
      const int claimed = claim(index);  // its turn is a good while away
      start(index);
      for (int step = 0; step < item_.steps; ++step) {
        if (step == kStages) ask_for_strip();
        load_step(step);
      }
      if (item_.steps <= kStages) ask_for_strip();
      index = __shfl_sync(0xffffffffu, claimed, 0);
    }
    item_.steps = 0;
    ask_for_strip();
  }

  // Which of the means the tiles of each step's groups attend.
  __device__ __forceinline__ void look_up_all() {
    for (int index = int(blockIdx.x); index < items(); index += int(gridDim.x)) {
      start(index);
      for (int step = 0; step < item_.steps; ++step) look_up_attended();
    }
  }

 private:
  __device__ __forceinline__ int items() const {
    const int heads = shape_.batch * shape_.heads;
    return T::kMeans ? heads * shape_.mean_pieces() * params_.work.mean_parts : heads * shape_.strips();
  }
  // The item after `index`, in lane 0. Two warps go through those of means, which are alike.
  __device__ __forceinline__ int claim(int index) const {
    if (T::kMeans) return index < 0 ? int(blockIdx.x) : index + int(gridDim.x);
    return lane_ == 0 ? int(atomicAdd(params_.work.next, 1)) : 0;
  }

  __device__ __forceinline__ void start(int index) {
    const TilePartition& partition = args_.partition;
    const uint16_t* list = nullptr;
    int first = 0, pieces = shape_.pieces();
    if (T::kMeans) {
      const int of_head = shape_.mean_pieces(), heads = shape_.batch * shape_.heads, strip = index % of_head;
      const int part = index / of_head / heads, begin = strip * kPieceRows;
      const auto begin_of = [&](int part) {
        return int(int64_t(shape_.video_pieces) * part / params_.work.mean_parts);
      };
      item_ = {index / of_head % heads, strip, begin, min(kPieceRows, shape_.blocks - begin), part, 0};
      first = begin_of(part), pieces = begin_of(part + 1) - first;
      first_row_ = __ldg(partition.piece_begin + first);
      rows_ = __ldg(partition.piece_begin + first + pieces) - first_row_;
    } else {
      const Turn turn = strip_turn(shape_, index);
      const Piece own = strip_at(partition, turn.number);
      item_ = {turn.head, turn.number, own.begin, own.rows, 0, 0};
      rows_ = shape_.tokens();
      if (turn.number < shape_.video_strips) {
        const int block = __ldg(partition.strip_block + turn.number);
        const int64_t at = int64_t(turn.head) * shape_.blocks + block;
        list = args_.lists.rows + at * shape_.pieces();
        pieces = __ldg(args_.lists.row_count + at);
        rows_ = __ldg(args_.lists.row_tokens + int64_t(turn.head) * shape_.key_blocks() + block);
      }
    }
    place_ = place_of(shape_, item_.head);
    stream_.start(partition, list, first, pieces, shape_.tokens());
    item_.steps = (rows_ + kStepRows - 1) / kStepRows;
  }

  __device__ __forceinline__ void ask_for_strip() {
    if (done_ > 0) hp::mbarrier_wait(address_of(&shared_.strip_empty), (done_ - 1) & 1);
    if (lane_ == 0) {
      shared_.item = item_;
      if (item_.steps == 0) {
        hp::mbarrier_arrive(address_of(&shared_.strip_full));
      } else {
        hp::mbarrier_arrive_expect(address_of(&shared_.strip_full), 2 * T::kStripBytes);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          load_box(&params_.strip_maps[i], address_of(shared_.strip[i]), T::kPanelBytes, shared_.strip_full,
                   item_.begin, place_);
        }
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ uint32_t next_stage() {
    const uint32_t stage = used_ % kStages;
    if (used_ >= kStages) hp::mbarrier_wait(address_of(&shared_.empty[stage]), (used_ / kStages - 1) & 1);
    ++used_;
    return stage;
  }

  // Rows of the parts of means follow each other.
  __device__ __forceinline__ void load_step(int step) {
    const StepGroups groups = T::kMeans ? StepGroups{first_row_ + step * kStepRows, true} : stream_.next();
    const uint32_t stage = next_stage();
    uint64_t& full = shared_.full[stage];
    const int valid = T::kMeans ? in_groups(rows_) - step * kStepRows : in_groups(shape_.tokens()) - groups.row;
    if (groups.whole && valid >= kStepRows) {
      if (lane_ == 0) {
        hp::mbarrier_arrive_expect(address_of(&full), 2 * kStepBytes + 2 * kStepRows * 4);
        load_statistics(stage, 0, groups.row, kStepRows);
      }
      __syncwarp();
      load_rows(stage, groups);
      return;
    }
    // Rows of zeros, or of another part, with a log-sum-exp that makes nothing of them, behind the last.
    const bool loads =
        lane_ < kStepGroups && (groups.whole ? lane_ * kGroupRows < valid : groups.row < shape_.tokens());
    const uint32_t of_groups = __popc(__ballot_sync(0xffffffffu, loads)) * uint32_t(2 * kGroupRows * 4);
    if (lane_ == 0) hp::mbarrier_expect(address_of(&full), 2 * kStepBytes + of_groups);
    __syncwarp();
    if (loads) {
      load_statistics(stage, lane_ * kGroupRows, groups.row + (groups.whole ? lane_ * kGroupRows : 0), kGroupRows);
    } else if (lane_ < kStepGroups) {
#pragma unroll
      for (int i = 0; i < kGroupRows; ++i) {
        shared_.lse2[stage][lane_ * kGroupRows + i] = INFINITY;
        shared_.delta[stage][lane_ * kGroupRows + i] = 0;
      }
      hp::fence_async_proxy();  // the next statistics here come by bulk copies
    }
    load_rows(stage, groups);
    if (lane_ == 0) hp::mbarrier_arrive(address_of(&full));
  }
  __device__ __forceinline__ void load_statistics(uint32_t stage, int offset, int row, int rows) const {
    const int64_t from = int64_t(item_.head) * shape_.row_groups() * kGroupRows + row;
    const uint32_t full = address_of(&shared_.full[stage]);
    hp::bulk_load(address_of(shared_.lse2[stage] + offset), params_.work.lse2 + from, rows * 4, full);
    hp::bulk_load(address_of(shared_.delta[stage] + offset), params_.work.delta + from, rows * 4, full);
  }
  __device__ __forceinline__ void load_rows(uint32_t stage, const StepGroups& groups) const {
    load_groups(params_.first_maps, shared_.first[stage], shared_.full[stage], groups, place_);
    load_groups(params_.second_maps, shared_.second[stage], shared_.full[stage], groups, place_);
  }

  // Of this lane's two means.
  __device__ __forceinline__ void look_up_attended() {
    stream_.next();
    const uint8_t* mask = args_.lists.mask + int64_t(item_.head) * shape_.tiles * shape_.blocks + item_.begin;
    const int mean[2] = {min(lane_, item_.rows - 1), min(lane_ + 32, item_.rows - 1)};
    uint32_t attended[2] = {0, 0};
#pragma unroll
    for (int group = 0; group < kStepGroups; ++group) {
      const int64_t row = int64_t(__shfl_sync(0xffffffffu, stream_.tile(), group)) * shape_.blocks;
#pragma unroll
      for (int i = 0; i < 2; ++i) attended[i] |= (__ldg(mask + row + mean[i]) != 0 ? 1u : 0u) << group;
    }
    const uint32_t stage = next_stage();
#pragma unroll
    for (int i = 0; i < 2; ++i) shared_.attended[stage][lane_ + 32 * i] = uint8_t(attended[i]);
    __syncwarp();
    if (lane_ == 0) hp::mbarrier_arrive(address_of(&shared_.full[stage]));
  }

  const StripParams& params_;
  const TileBackwardArgs& args_;
  const TileShape& shape_;
  StripStorage<T>& shared_;
  const int lane_;
  StripItem item_;
  HeadPlace place_;
  uint32_t done_ = 0, used_ = 0;  // items; steps of all items together
  int first_row_ = 0, rows_ = 0;
  GroupStream<T::kMeans> stream_;
};

// ---- products: two warpgroups -------------------------------------------------------------------------------------

template <class T>
class StripMath {
 public:
  static constexpr int kColumns = T::kColumns;
  static constexpr int kOwnColumns = T::kOwnColumns;
  using Sums = float[kPanels][kColumns / 2];

  __device__ __forceinline__ StripMath(const StripParams& params, StripStorage<T>& shared)
      : params_(params), shared_(shared), lane_(int(threadIdx.x) % 32), offset_(transposed_offset()) {
    asm volatile("" : "+r"(offset_));  // one register, not the parts of a sum
  }

  // Warpgroup 1.
  __device__ __forceinline__ void weigh_all() {
    StripItem item;
    while (next_item(item)) {
      Sums dv;
      float s[kColumns / 2];
      look_up_bias(item);
      const uint32_t start = step_, end = start + item.steps;
      wait_step(step_);
      multiply_strip<kColumns>(s, address_of(shared_.first[step_ % kStages]), address_of(shared_.strip[0]));
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(s);
      weigh(s, step_);
      publish_weights(step_);
#pragma unroll 1
      for (; step_ + 1 != end; ++step_) {
        const uint32_t next = step_ + 1;
        wait_step(next);
        multiply_strip<kColumns>(s, address_of(shared_.first[next % kStages]), address_of(shared_.strip[0]));
        add_weights(dv, step_, step_ != start);
        hp::wgmma_wait<1>();
        hp::wgmma_fence_operand(s);
        weigh(s, next);
        wait_sums(dv);
        release(step_);
        publish_weights(next);
      }
      add_weights(dv, step_, step_ != start);
      wait_sums(dv);
      release(step_);
      ++step_;
      store(item, dv, params_.args.dv, params_.work.mean_dv, 1.f, 0);
      arrive(shared_.strip_empty);
    }
  }

  // Warpgroup 2.
  __device__ __forceinline__ void differentiate_all() {
    StripItem item;
    while (next_item(item)) {
      Sums dx;
      float dp[kColumns / 2];
      bias_gradient_ = 0;
      const uint32_t start = step_, end = start + item.steps;
      wait_step(step_);
      multiply_strip<kColumns>(dp, address_of(shared_.second[step_ % kStages]), address_of(shared_.strip[1]));
      hp::wgmma_wait<0>();
      hp::wgmma_fence_operand(dp);
      differentiate(dp, step_);
      publish_scores();
#pragma unroll 1
      for (; step_ + 1 != end; ++step_) {
        const uint32_t next = step_ + 1;
        wait_step(next);
        multiply_strip<kColumns>(dp, address_of(shared_.second[next % kStages]), address_of(shared_.strip[1]));
        add_scores(dx, step_, step_ != start);
        hp::wgmma_wait<1>();
        hp::wgmma_fence_operand(dp);
        differentiate(dp, next);
        wait_sums(dx);
        release(step_);
        publish_scores();
      }
      add_scores(dx, step_, step_ != start);
      wait_sums(dx);
      release(step_);
      ++step_;
      const TileBackwardArgs& args = params_.args;
      store(item, dx, args.dk, params_.work.mean_dk, args.scale, 1);
      if (T::kMeans) store_bias_gradient(item);
      arrive(shared_.strip_empty);
    }
  }

 private:
  __device__ __forceinline__ bool next_item(StripItem& item) {
    hp::mbarrier_wait(address_of(&shared_.strip_full), done_++ & 1);
    item = shared_.item;
    return item.steps > 0;
  }
  __device__ __forceinline__ void arrive(uint64_t& barrier) {
    __syncwarp();
    if (lane_ == 0) hp::mbarrier_arrive(address_of(&barrier));
  }
  __device__ __forceinline__ void release(uint32_t step) {
    arrive(shared_.empty[step % kStages]);
  }
  __device__ __forceinline__ void wait_step(uint32_t step) {
    hp::mbarrier_wait(address_of(&shared_.full[step % kStages]), step / kStages & 1);
  }
  __device__ __forceinline__ void wait_sums(Sums& sums) {
    hp::wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < kPanels; ++half) hp::wgmma_fence_operand(sums[half]);
  }
  __device__ __forceinline__ void add_weights(Sums& dv, uint32_t step, bool accumulate) {
    accumulate_strip<kColumns>(dv, address_of(shared_.second[step % kStages]),
                               address_of(shared_.weights[step % kSlots]), accumulate);
  }
  __device__ __forceinline__ void add_scores(Sums& dx, uint32_t step, bool accumulate) {
    accumulate_strip<kColumns>(dx, address_of(shared_.first[step % kStages]), address_of(shared_.scores[step % kSlots]),
                               accumulate);
  }
  __device__ __forceinline__ int own_column(int i) const {
    return i / 2 * 8 + lane_ % 4 * 2 + i % 2;
  }

  // What means stand for, less of their scores' logarithms.
  __device__ __forceinline__ void look_up_bias(const StripItem& item) {
    if (!T::kMeans) return;
    const float* bias = params_.args.means.bias + int64_t(item.head) * params_.args.shape.blocks + item.begin;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i)
      of_column_[i] = own_column(i) < item.rows ? -__ldg(bias + own_column(i)) * kLog2E : INFINITY;
  }

  // P of a step to shared memory.
  __device__ __forceinline__ void weigh(float (&s)[kColumns / 2], uint32_t step) {
    const uint32_t stage = step % kStages, slot = step % kSlots;
    const float scale_log2 = params_.args.scale * kLog2E;
    const float lse2[2] = {shared_.lse2[stage][own_row()], shared_.lse2[stage][own_row() + 8]};
    const int group = int(threadIdx.x) % kWarpgroup / 32 * 2;  // of rows
    uint32_t words[kOwnColumns];
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      float p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float less = T::kMeans ? lse2[i / 2] + of_column_[2 * j + i % 2] : lse2[i / 2];
        p[i] = hp::exp2_approx(fmaf(s[4 * j + i], scale_log2, -less));
      }
      if (T::kMeans && 8 * j < kPieceRows) {
        const uint32_t attended =
            *reinterpret_cast<const uint16_t*>(shared_.attended[stage] + 8 * j + lane_ % 4 * 2) >> group;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (attended >> (i % 2 * 8 + i / 2) & 1) p[i] = 0;
        }
      }
      words[2 * j] = hp::pack_bf16(p[0], p[1]);
      words[2 * j + 1] = hp::pack_bf16(p[2], p[3]);
    }
    if (step >= kSlots) hp::mbarrier_wait(address_of(&shared_.weights_empty[slot]), (step / kSlots - 1) & 1);
    store_transposed<kColumns>(address_of(shared_.weights[slot]) + offset_, words);
  }
  __device__ __forceinline__ void publish_weights(uint32_t step) {
    arrive(shared_.weights_full[step % kSlots]);
    hp::fence_async_proxy();
    hp::named_barrier_sync(kOwnBarrier, kWarpgroup);
  }

  // dS of a step to shared memory.
  __device__ __forceinline__ void differentiate(const float (&dp)[kColumns / 2], uint32_t step) {
    const uint32_t stage = step % kStages, slot = step % kSlots;
    const float delta[2] = {shared_.delta[stage][own_row()], shared_.delta[stage][own_row() + 8]};
    uint32_t words[kOwnColumns];
    hp::mbarrier_wait(address_of(&shared_.weights_full[slot]), step / kSlots & 1);
    load_transposed<kColumns>(words, address_of(shared_.weights[slot]) + offset_);
    arrive(shared_.weights_empty[slot]);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {  // word i: columns 2 (i / 2) and the next, row i % 2
      const float low = __uint_as_float(words[i] << 16) * (dp[2 * i] - delta[i % 2]);
      const float high = __uint_as_float(words[i] & 0xffff0000u) * (dp[2 * i + 1] - delta[i % 2]);
      if (T::kMeans) bias_gradient_ += low + high;
      words[i] = hp::pack_bf16(low, high);
    }
    store_transposed<kColumns>(address_of(shared_.scores[slot]) + offset_, words);
  }
  __device__ __forceinline__ void publish_scores() {
    hp::fence_async_proxy();
    hp::named_barrier_sync(kOwnBarrier + 1, kWarpgroup);
  }

  // A strip's gradients, through the part of it that this warpgroup alone read. Of keys, a mean's gradient belongs to
  // them by equal shares; those of means stay as they are.
  __device__ __forceinline__ void store(const StripItem& item, Sums& sums, const TensorView& out, float* of_means,
                                        float factor, int own) {
    const TileBackwardArgs& args = params_.args;
    const TileShape& s = args.shape;
    const int row = own_row();
    if (T::kMeans) {
      const int64_t part_head = int64_t(item.part) * s.batch * s.heads + item.head;
      float* first = of_means + (part_head * s.blocks + item.begin) * kHeadDim + row;
#pragma unroll
      for (int i = 0; i < kOwnColumns; ++i) {
        if (own_column(i) >= item.rows) continue;
#pragma unroll
        for (int half = 0; half < kPanels; ++half) {
          float* to = first + own_column(i) * kHeadDim + half * hp::kPanelColumns;
          to[0] = sums[half][i / 2 * 4 + i % 2] * factor;
          to[8] = sums[half][i / 2 * 4 + i % 2 + 2] * factor;
        }
      }
      return;
    }
    const bool shares = args.means.keys != nullptr && item.strip < s.video_strips;
    const int block = shares ? __ldg(args.partition.strip_block + item.strip) : 0;
    const float share =
        1.f / float(__ldg(args.partition.block_begin + block + 1) - __ldg(args.partition.block_begin + block));
#pragma unroll
    for (int half = 0; half < kPanels; ++half) {
      float added[2] = {0, 0};
      if (shares) {
        const float* mean = of_means + (int64_t(item.head) * s.blocks + block) * kHeadDim + half * hp::kPanelColumns;
        added[0] = __ldg(mean + row) * share, added[1] = __ldg(mean + row + 8) * share;
      }
      uint32_t words[kOwnColumns];
#pragma unroll
      for (int i = 0; i < kOwnColumns; ++i) {
        words[i] = hp::pack_bf16(fmaf(sums[half][2 * i], factor, added[i % 2]),
                                 fmaf(sums[half][2 * i + 1], factor, added[i % 2]));
      }
      store_transposed<kColumns>(address_of(shared_.strip[own]) + half * T::kPanelBytes + offset_, words);
    }
    hp::named_barrier_sync(kOwnBarrier + own, kWarpgroup);
    copy_rows<kColumns>(shared_.strip[own], out, s, args.partition, item.head, {item.begin, item.rows});
    hp::fence_async_proxy();  // the next strip comes by TMA
  }

  __device__ __forceinline__ void store_bias_gradient(const StripItem& item) {
    const TileShape& s = params_.args.shape;
    const float total = warpgroup_sum(bias_gradient_, shared_.bias_gradient, kOwnBarrier + 1);
    const int64_t part_head = int64_t(item.part) * s.batch * s.heads + item.head;
    if (threadIdx.x % kWarpgroup == 0) params_.work.mean_dbias[part_head * s.mean_pieces() + item.strip] = total;
  }

  const StripParams& params_;
  StripStorage<T>& shared_;
  const int lane_;
  uint32_t offset_;               // of what this lane stores
  uint32_t done_ = 0, step_ = 0;  // items; steps of all items together
  float of_column_[kOwnColumns], bias_gradient_;
};

template <class T>
__global__ void __launch_bounds__(kStripThreads, 1) strips_kernel(const __grid_constant__ StripParams params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  StripStorage<T>& shared = *reinterpret_cast<StripStorage<T>*>(shared_bytes);
  if (threadIdx.x == 0) {
    hp::mbarrier_init_each(1, shared.strip_full);
    hp::mbarrier_init_each(kMathWarps, shared.strip_empty);
    hp::mbarrier_init_each(T::kMeans ? 2 : 1, shared.full);
    hp::mbarrier_init_each(kMathWarps, shared.empty);
    hp::mbarrier_init_each(kMathWarps / 2, shared.weights_full);
    hp::mbarrier_init_each(kMathWarps / 2, shared.weights_empty);
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hp::register_decrease<kProducerRegisters>();
    if (warp == 0) StripFeed<T>(params, shared).load_all();
    if (T::kMeans && warp == 1) StripFeed<T>(params, shared).look_up_all();
  } else {
    hp::register_increase<kMathRegisters>();
    StripMath<T> math(params, shared);
    if (warp < 8)
      math.weigh_all();
    else
      math.differentiate_all();
  }
#endif
}

template <bool kMeans, int kColumns>
cudaError_t launch(const Params& from, cudaStream_t stream) {
  using T = StripConfig<kMeans, kColumns>;
  const TileBackwardArgs& args = from.args;
  const TileShape& s = args.shape;
  const void* strips[2] = {kMeans ? args.means.keys : args.k, kMeans ? args.means.values : args.v};
  const int64_t strip_rows = kMeans ? s.blocks : s.tokens();
  StripParams params;
  params.args = args, params.work = from.work;
  cudaError_t error = encode_steps(params.first_maps, args.q, s, s.tokens());
  if (error == cudaSuccess) error = encode_steps(params.second_maps, from.work.dout, s, s.tokens());
  for (int i = 0; i < 2; ++i) {
    if (error == cudaSuccess) error = encode_rows(&params.strip_maps[i], strips[i], s, strip_rows, kColumns);
  }
  if (error != cudaSuccess) return error;
  const int64_t heads = int64_t(s.batch) * s.heads;
  const int64_t items = heads * (T::kMeans ? s.mean_pieces() * from.work.mean_parts : s.strips());
  return launch_persistent<StripStorage<T>>(strips_kernel<T>, items, kStripThreads, params, stream);
}

}  // namespace

cudaError_t launch_strips(const Params& params, cudaStream_t stream) {
  const cudaError_t error =
      params.args.shape.strip_rows == 72 ? launch<false, 72>(params, stream) : launch<false, 80>(params, stream);
  return error == cudaSuccess ? launch_query_strips(params, stream) : error;
}

// 64 means a strip, as many as a sum of dbias has.
cudaError_t launch_mean_strips(const Params& params, cudaStream_t stream) {
  return launch<true, 72>(params, stream);
}

}  // namespace vmoba::kernels::backward_tiles
