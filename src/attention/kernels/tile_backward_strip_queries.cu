// dq of the backward by query tiles on sm_90a for strips (D = 128): the queries of a strip and their dout stay in
// shared memory on the N side of wgmma while the keys that its cube attends, and then the means of the cubes that it
// does not, stream by in steps of 64 (tile_strips.cuh).
//   S^T = K Q^T, dP^T = V dO^T, P = exp2(S c + bias - lse2), dS = P (dP - delta), dQ^T += K^T dS^T
// Persistent blocks of threads. Warpgroup 0 feeds by TMA. Warpgroups 1 and 2 take every second step each, with sums of
// their own, so that one's arithmetic hides behind the other's products without a word between them; at a strip's end
// each adds up half of the columns. S and dP of a warpgroup's next step are issued together with its dQ of this one. So
// values are free one step before the keys: they have rings of their own.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "attention/kernels/tile_backward.cuh"
#include "attention/kernels/tile_strips.cuh"

namespace vmoba::kernels::backward_tiles {
namespace {

using namespace strips;

constexpr int kStripThreads = 384;
constexpr int kGroups = 2;              // warpgroups with products
constexpr int kProducerRegisters = 56;  // 128 * 56 + 256 * 224 = 384 * 168, the uniform share at launch
constexpr int kMathRegisters = 224;
constexpr int kOwnBarrier = 1;  // named barriers kOwnBarrier + warpgroup
constexpr int kBothBarrier = 3;
constexpr int kKnownSteps = 8;  // more steps are never under way

template <int kColumns_>
struct QueryConfig {
  static constexpr int kColumns = kColumns_;
  static constexpr int kPanelBytes = kColumns * hp::kPanelRowBytes;
  static constexpr int kStripBytes = kPanels * kPanelBytes;
  static constexpr int kStrips = kColumns <= 72 ? 2 : 1;
  static constexpr int kKeySlots = kStrips == 2 ? 5 : 6, kValueSlots = kStrips == 2 ? 3 : 4;
};

struct QueryItem {
  int head, strip, begin, rows, steps;  // no steps: no more items
};

template <class T>
struct QueryStorage {
  alignas(1024) char query[T::kStrips][T::kStripBytes];  // these two also take sums of dQ in fp32
  alignas(1024) char dout[T::kStrips][T::kStripBytes];
  alignas(1024) char keys[T::kKeySlots][kStepBytes];
  alignas(1024) char values[T::kValueSlots][kStepBytes];
  alignas(1024) char scores[kGroups][T::kPanelBytes];
  KnownKeys<kKnownSteps> known;
  QueryItem item[T::kStrips];
  uint32_t never_written;  // see keep_before_wait
  uint64_t strip_full[T::kStrips], strip_empty[T::kStrips];
  uint64_t keys_full[T::kKeySlots], keys_empty[T::kKeySlots];
  uint64_t values_full[T::kValueSlots], values_empty[T::kValueSlots];
};

struct QueryParams {
  CUtensorMap q_map, dout_map;
  KeyMaps key_maps;
  TileBackwardArgs args;
  Workspace work;
  float inverse_scale;
};

// ---- loads: one warp ----------------------------------------------------------------------------------------------

template <class T>
class QueryFeed {
 public:
  __device__ __forceinline__ QueryFeed(const QueryParams& params, QueryStorage<T>& shared)
      : params_(params),
        args_(params.args),
        shape_(params.args.shape),
        shared_(shared),
        steps_(params.args, params.inverse_scale),
        lane_(int(threadIdx.x) % 32) {}

  // Items one after the other. A strip is asked for when the rings are full: they are sooner free.
  __device__ __forceinline__ void run() {
    const int items = shape_.batch * shape_.heads * shape_.strips();
    int index = __shfl_sync(0xffffffffu, claim(), 0);
    for (; index < items; ++done_) {
      const int claimed = claim();  // its turn is a good while away
      const Turn turn = strip_turn(shape_, index);
      start(turn.head, turn.number);
      for (int step = 0; step < item_.steps; ++step) {
        if (step == T::kValueSlots) ask_for_strip();
        load_step(step);
      }
      if (item_.steps <= T::kValueSlots) ask_for_strip();
      index = __shfl_sync(0xffffffffu, claimed, 0);
    }
    item_.steps = 0;
    ask_for_strip();
  }

 private:
  // In lane 0.
  __device__ __forceinline__ int claim() const { return lane_ == 0 ? int(atomicAdd(params_.work.next + 2, 1)) : 0; }

  __device__ __forceinline__ void start(int head, int strip) {
    const Piece own = strip_at(args_.partition, strip);
    item_ = {head, strip, own.begin, own.rows, steps_.start(head, strip)};
    place_ = place_of(shape_, head);
  }

  __device__ __forceinline__ void ask_for_strip() {
    const uint32_t place = done_ % T::kStrips;
    if (done_ >= T::kStrips) hp::mbarrier_wait(address_of(&shared_.strip_empty[place]), (done_ / T::kStrips - 1) & 1);
    if (lane_ == 0) {
      uint64_t& full = shared_.strip_full[place];
      shared_.item[place] = item_;
      if (item_.steps == 0) {
        hp::mbarrier_arrive(address_of(&full));
      } else {
        hp::mbarrier_arrive_expect(address_of(&full), 2 * T::kStripBytes);
        load_box(&params_.q_map, address_of(shared_.query[place]), T::kPanelBytes, full, item_.begin, place_);
        load_box(&params_.dout_map, address_of(shared_.dout[place]), T::kPanelBytes, full, item_.begin, place_);
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_step(int step) {
    const KeyStep keys = steps_.at(step);
    // Before the waits: keys of `kKnownSteps` steps ago are free. load() brings the warp in step before it arrives.
    static_assert(T::kKeySlots < kKnownSteps);
    steps_.describe(item_.head, keys, shared_.known, used_ % kKnownSteps);
    const uint32_t value = used_ % T::kValueSlots, key = used_ % T::kKeySlots;
    if (used_ >= T::kValueSlots)
      hp::mbarrier_wait(address_of(&shared_.values_empty[value]), (used_ / T::kValueSlots - 1) & 1);
    load(keys.mean ? params_.key_maps.mean_v : params_.key_maps.v, shared_.values[value], shared_.values_full[value],
         keys.groups);
    if (used_ >= T::kKeySlots) hp::mbarrier_wait(address_of(&shared_.keys_empty[key]), (used_ / T::kKeySlots - 1) & 1);
    load(keys.mean ? params_.key_maps.mean_k : params_.key_maps.k, shared_.keys[key], shared_.keys_full[key],
         keys.groups);
    ++used_;
  }
  __device__ __forceinline__ void load(const RowMaps& maps, const char* target, uint64_t& full,
                                       const StepGroups& groups) const {
    if (lane_ == 0) hp::mbarrier_arrive_expect(address_of(&full), kStepBytes);
    __syncwarp();
    load_groups(maps, target, full, groups, place_);
  }

  const QueryParams& params_;
  const TileBackwardArgs& args_;
  const TileShape& shape_;
  QueryStorage<T>& shared_;
  KeySteps<TileBackwardArgs> steps_;
  const int lane_;
  QueryItem item_;
  HeadPlace place_;
  uint32_t done_ = 0, used_ = 0;  // items; steps of all items together
};

// ---- products: two warpgroups -------------------------------------------------------------------------------------

template <class T>
class QueryMath {
 public:
  static constexpr int kColumns = T::kColumns;
  static constexpr int kOwnColumns = kColumns / 4;  // a thread's: 8 j + 2 (lane % 4) and the next

  __device__ __forceinline__ QueryMath(const QueryParams& params, QueryStorage<T>& shared, int group)
      : params_(params), shared_(shared), group_(group), lane_(int(threadIdx.x) % 32), offset_(transposed_offset()) {
    asm volatile("" : "+r"(offset_));  // one register, not the parts of a sum
  }

  __device__ __forceinline__ void run() {
    uint32_t before = 0;  // steps of the items before
#pragma unroll 1
    for (;; ++done_) {
      const uint32_t place = done_ % T::kStrips;
      hp::mbarrier_wait(address_of(&shared_.strip_full[place]), done_ / T::kStrips & 1);
      const QueryItem item = shared_.item[place];
      if (item.steps == 0) break;
      float dq[kPanels][kColumns / 2];
      look_up(item);
      differentiate_all(dq, before + group_, before + item.steps);
      before += item.steps;
      finish(dq, item, item.steps > group_);
      __syncwarp();
      if (lane_ == 0) hp::mbarrier_arrive(address_of(&shared_.strip_empty[place]));
    }
  }

 private:
  __device__ __forceinline__ int own_column(int i) const {
    return i / 2 * 8 + lane_ % 4 * 2 + i % 2;
  }

  __device__ __forceinline__ void look_up(const QueryItem& item) {
    const int64_t first = int64_t(item.head) * params_.args.shape.row_groups() * kGroupRows + item.begin;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const int column = own_column(i);
      lse2_[i] = column < item.rows ? __ldg(params_.work.lse2 + first + column) : INFINITY;
      delta_[i] = column < item.rows ? __ldg(params_.work.delta + first + column) : 0.f;
    }
  }

  __device__ __forceinline__ void differentiate_all(float (&dq)[kPanels][kColumns / 2], uint32_t step, uint32_t end) {
    if (step >= end) return;
    float s[kColumns / 2], dp[kColumns / 2];
    issue_scores(s, dp, step);
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(s);
    hp::wgmma_fence_operand(dp);
    release(shared_.values_empty[step % T::kValueSlots]);
    differentiate(s, dp, step);
    publish();
    bool accumulate = false;
#pragma unroll 1
    for (; step + kGroups < end; step += kGroups, accumulate = true) {
      const uint32_t next = step + kGroups;
      issue_scores(s, dp, next);
      add_scores(dq, step, accumulate);
      hp::wgmma_wait<1>();
      hp::wgmma_fence_operand(s);
      hp::wgmma_fence_operand(dp);
      release(shared_.values_empty[next % T::kValueSlots]);
      uint32_t words[kOwnColumns];
      scores_of(words, s, dp, next);
      uint32_t all = 0;
#pragma unroll
      for (const uint32_t word : words) all |= word;
      hp::keep_before_wait(__uint_as_float(all), address_of(&shared_.never_written));
      wait_sums(dq);
      release(shared_.keys_empty[step % T::kKeySlots]);
      store_transposed<kColumns>(address_of(shared_.scores[group_]) + offset_, words);
      publish();
    }
    add_scores(dq, step, accumulate);
    wait_sums(dq);
    release(shared_.keys_empty[step % T::kKeySlots]);
  }

  __device__ __forceinline__ void release(uint64_t& empty) {
    if (lane_ == 0) hp::mbarrier_arrive(address_of(&empty));
  }
  __device__ __forceinline__ void wait_sums(float (&dq)[kPanels][kColumns / 2]) {
    hp::wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < kPanels; ++half) hp::wgmma_fence_operand(dq[half]);
  }
  __device__ __forceinline__ void issue_scores(float (&s)[kColumns / 2], float (&dp)[kColumns / 2], uint32_t step) {
    const uint32_t key = step % T::kKeySlots, value = step % T::kValueSlots, place = done_ % T::kStrips;
    hp::mbarrier_wait(address_of(&shared_.values_full[value]), step / T::kValueSlots & 1);
    hp::mbarrier_wait(address_of(&shared_.keys_full[key]), step / T::kKeySlots & 1);
    issue_strip<kColumns>(s, address_of(shared_.keys[key]), address_of(shared_.query[place]));
    issue_strip<kColumns>(dp, address_of(shared_.values[value]), address_of(shared_.dout[place]));
    hp::wgmma_commit();
  }
  __device__ __forceinline__ void add_scores(float (&dq)[kPanels][kColumns / 2], uint32_t step, bool accumulate) {
    accumulate_strip<kColumns>(dq, address_of(shared_.keys[step % T::kKeySlots]), address_of(shared_.scores[group_]),
                               accumulate);
  }

  __device__ __forceinline__ void differentiate(float (&s)[kColumns / 2], const float (&dp)[kColumns / 2],
                                                uint32_t step) {
    uint32_t words[kOwnColumns];
    scores_of(words, s, dp, step);
    store_transposed<kColumns>(address_of(shared_.scores[group_]) + offset_, words);
  }
  __device__ __forceinline__ void publish() {
    hp::fence_async_proxy();
    hp::named_barrier_sync(kOwnBarrier + group_, kWarpgroup);
  }
  // dS of a step as bf16 pairs.
  __device__ __forceinline__ void scores_of(uint32_t (&words)[kOwnColumns], float (&s)[kColumns / 2],
                                            const float (&dp)[kColumns / 2], uint32_t step) {
    const float scale_log2 = params_.args.scale * kLog2E;
    add_known(s, shared_.known, step % kKnownSteps);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {  // word i: columns 2 (i / 2) and the next, row i % 2
      float ds[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = i / 2 * 2 + j;
        ds[j] = hp::exp2_approx(fmaf(s[2 * i + j], scale_log2, -lse2_[column])) * (dp[2 * i + j] - delta_[column]);
      }
      words[i] = hp::pack_bf16(ds[0], ds[1]);
    }
  }

  // Each warpgroup adds the other's sums of its half of the columns to its own, and stores them by way of its buffer of
  // scores. The strip's buffers take the sums: nobody reads them any more.
  __device__ __forceinline__ void finish(float (&dq)[kPanels][kColumns / 2], const QueryItem& item, bool any) {
    const TileBackwardArgs& args = params_.args;
    const uint32_t place = done_ % T::kStrips;
    const int thread = int(threadIdx.x) % kWarpgroup;
    float* const given = reinterpret_cast<float*>(group_ == 0 ? shared_.query[place] : shared_.dout[place]) + thread;
    const float* const taken =
        reinterpret_cast<const float*>(group_ == 0 ? shared_.dout[place] : shared_.query[place]) + thread;
    hp::named_barrier_sync(kBothBarrier, kGroups * kWarpgroup);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const float other = group_ == 0 ? dq[1][i] : dq[0][i];
      given[i * kWarpgroup] = any ? other : 0.f;
    }
    hp::named_barrier_sync(kBothBarrier, kGroups * kWarpgroup);
    uint32_t words[kOwnColumns];
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      float sum[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float own = group_ == 0 ? dq[0][2 * i + j] : dq[1][2 * i + j];
        sum[j] = ((any ? own : 0.f) + taken[(2 * i + j) * kWarpgroup]) * args.scale;
      }
      words[i] = hp::pack_bf16(sum[0], sum[1]);
    }
    hp::fence_async_proxy();  // the next strip comes by TMA
    store_transposed<kColumns>(address_of(shared_.scores[group_]) + offset_, words);
    hp::named_barrier_sync(kOwnBarrier + group_, kWarpgroup);
    constexpr int kLanes = hp::kPanelColumns / 8;
    const int chunk = thread % kLanes;
#pragma unroll
    for (int first = 0; first < kColumns; first += kWarpgroup / kLanes) {
      const int row = first + thread / kLanes;
      if (row >= item.rows) continue;
      const uint4 value = *reinterpret_cast<const uint4*>(shared_.scores[group_] + hp::swizzled_offset(row, chunk));
      const int token = tile_token(args.shape, args.partition, item.begin + row);
      reinterpret_cast<uint4*>(tile_row(args.dq, args.shape, item.head, token) + group_ * hp::kPanelColumns)[chunk] =
          value;
    }
    hp::named_barrier_sync(kOwnBarrier + group_, kWarpgroup);  // the next scores take the buffer
  }

  const QueryParams& params_;
  QueryStorage<T>& shared_;
  const int group_, lane_;
  uint32_t offset_;    // of what this lane stores
  uint32_t done_ = 0;  // items
  float lse2_[kOwnColumns], delta_[kOwnColumns];
};

template <class T>
__global__ void __launch_bounds__(kStripThreads, 1) queries_kernel(const __grid_constant__ QueryParams params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  QueryStorage<T>& shared = *reinterpret_cast<QueryStorage<T>*>(shared_bytes);
  if (threadIdx.x == 0) {
    hp::mbarrier_init_each(1, shared.strip_full);
    hp::mbarrier_init_each(kGroups * kWarpgroup / 32, shared.strip_empty);
    hp::mbarrier_init_each(1, shared.keys_full);
    hp::mbarrier_init_each(kWarpgroup / 32, shared.keys_empty);
    hp::mbarrier_init_each(1, shared.values_full);
    hp::mbarrier_init_each(kWarpgroup / 32, shared.values_empty);
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hp::register_decrease<kProducerRegisters>();
    if (warp == 0) QueryFeed<T>(params, shared).run();
  } else {
    hp::register_increase<kMathRegisters>();
    QueryMath<T>(params, shared, warp / 4 - 1).run();
  }
#endif
}

template <int kColumns>
cudaError_t launch(const Params& from, cudaStream_t stream) {
  using T = QueryConfig<kColumns>;
  const TileBackwardArgs& args = from.args;
  const TileShape& s = args.shape;
  QueryParams params;
  params.args = args, params.work = from.work, params.inverse_scale = from.inverse_scale;
  cudaError_t error = encode_rows(&params.q_map, args.q, s, s.tokens(), kColumns);
  if (error == cudaSuccess) error = encode_rows(&params.dout_map, from.work.dout, s, s.tokens(), kColumns);
  if (error == cudaSuccess) error = encode_keys(params.key_maps, args);
  if (error != cudaSuccess) return error;
  const int64_t items = int64_t(s.batch) * s.heads * s.strips();
  return launch_persistent<QueryStorage<T>>(queries_kernel<T>, items, kStripThreads, params, stream);
}

}  // namespace

cudaError_t launch_query_strips(const Params& params, cudaStream_t stream) {
  return params.args.shape.strip_rows == 72 ? launch<72>(params, stream) : launch<80>(params, stream);
}

}  // namespace vmoba::kernels::backward_tiles
