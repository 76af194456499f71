// Forward of attention by query tiles on sm_90a for strips (D = 128): the queries of a strip stay in shared memory
// while the keys that its cube attends, and then the means of the cubes that it does not, stream by in steps of 64.
//   S^T = K Q^T, P^T = exp2(S^T c + offset), O^T += V^T P^T
// with keys, and then columns of values, on the M side of wgmma and queries on the N side (tile_strips.cuh).
//
// Persistent blocks of threads. Warpgroup 0 feeds by TMA, a warp a ring; warpgroups 1 and 2 own a strip each and go
// their own ways. The K Q^T of the next step is issued together with the V^T P^T of this one. Keys and values come in
// the order of their use, K0 K1 V0 K2 V1 K3 ..., which the next strip's keys continue while the last is still stored.
//
// A query's keys are spread over all threads of the warpgroup, so its maximum would be an exchange in every step.
// Instead P refers to the maximum of the strip's first step: bf16 and fp32 have the exponents for any other reference.
// Only where a sum outgrows `kMostSum`, as it does in the first step of all, the warpgroup agrees on a new one.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "attention/kernels/tile_forward_strips.cuh"

#include "attention/kernels/tile_strips.cuh"

namespace vmoba::kernels {
namespace strips {
namespace {

constexpr int kThreads = 384;
constexpr int kGroups = 2;              // warpgroups with a strip
constexpr int kProducerRegisters = 56;  // 128 * 56 + 256 * 224 = 384 * 168, the uniform share at launch
constexpr int kMathRegisters = 224;
constexpr int kOwnBarrier = 1;  // named barriers kOwnBarrier + warpgroup
constexpr int kKnownSteps = 4;  // more steps are never under way
constexpr float kMostSum = 0x1p40f;
constexpr float kLn2 = 0.6931471805599453f;

template <int kColumns_>
struct Config {
  static constexpr int kColumns = kColumns_;
  static constexpr int kSlots = 4;
  static constexpr int kWeights = 2;  // buffers of P
  static constexpr int kPanelBytes = kColumns * hp::kPanelRowBytes;
};

struct Item {
  int head, strip, steps;  // steps 0: no more items
};

// What one warpgroup needs.
template <class T>
struct Ring {
  alignas(1024) char query[kPanels * T::kPanelBytes];
  alignas(1024) char weights[T::kWeights][T::kPanelBytes];
  alignas(1024) char buffer[T::kSlots][kStepBytes];
};
template <class T>
struct Known {
  KnownKeys<kKnownSteps> keys;
  float exchange[kWarpgroup / 32][T::kColumns];  // of the warps
  Item item;
  uint64_t query_full, query_empty, full[T::kSlots], empty[T::kSlots];
};
template <class T>
struct Storage {
  Ring<T> ring[kGroups];
  Known<T> known[kGroups];
};

struct Params {
  CUtensorMap q_map;
  KeyMaps key_maps;
  TileForwardArgs args;
  float inverse_scale;
};

// ---- loads: a warp a ring -----------------------------------------------------------------------------------------

template <class T>
class Feed {
 public:
  __device__ __forceinline__ Feed(const Params& params, Ring<T>& ring, Known<T>& known)
      : params_(params),
        args_(params.args),
        shape_(params.args.shape),
        ring_(ring),
        known_(known),
        steps_(params.args, params.inverse_scale),
        lane_(int(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run() {
    const int items = shape_.batch * shape_.heads * shape_.strips();
    int index = __shfl_sync(0xffffffffu, claim(), 0);
    for (; index < items; ++done_) {
      const int claimed = claim();  // its turn is a good while away
      const Turn turn = strip_turn(shape_, index);
      start(turn.head, turn.number);
      feed_steps();
      index = __shfl_sync(0xffffffffu, claimed, 0);
    }
    item_.steps = 0;
    announce();
    // The last of all rings leaves the counters as it found them.
    const unsigned last = gridDim.x * kGroups - 1;
    if (lane_ == 0 && atomicInc(args_.lists.next + 1, last) == last) atomicExch(args_.lists.next, 0);
  }

 private:
  // In lane 0.
  __device__ __forceinline__ int claim() const { return lane_ == 0 ? int(atomicAdd(args_.lists.next, 1)) : 0; }

  __device__ __forceinline__ void start(int head, int strip) {
    item_ = {head, strip, steps_.start(head, strip)};
    place_ = place_of(shape_, head);
  }

  // The queries, when those before them are stored.
  __device__ __forceinline__ void announce() {
    if (done_ > 0) hp::mbarrier_wait(address_of(&known_.query_empty), (done_ - 1) & 1);
    if (lane_ == 0) {
      known_.item = item_;
      if (item_.steps == 0) {
        hp::mbarrier_arrive(address_of(&known_.query_full));
      } else {
        hp::mbarrier_arrive_expect(address_of(&known_.query_full), kPanels * T::kPanelBytes);
        load_box(&params_.q_map, address_of(ring_.query), T::kPanelBytes, known_.query_full,
                 strip_at(args_.partition, item_.strip).begin, place_);
      }
    }
    __syncwarp();
  }

  // K0, then K of the next step and V of this one in turn. The queries are asked for when the ring is full of keys: it
  // is sooner free than their buffer.
  __device__ __forceinline__ void feed_steps() {
    bool announced = false;
    const auto announce_before = [&](int use) {
      if (announced || (use < T::kSlots && use < 2 * item_.steps)) return;
      announce();
      announced = true;
    };
    KeyStep keys = steps_.at(0), next;
    load(keys, /*value=*/false);
    for (int step = 0, use = 1; step < item_.steps; ++step, keys = next) {
      if (step + 1 < item_.steps) {
        next = steps_.at(step + 1);
        announce_before(use++);
        load(next, /*value=*/false);
      }
      announce_before(use++);
      load(keys, /*value=*/true);
    }
    announce_before(2 * item_.steps);
  }

  __device__ __forceinline__ void load(const KeyStep& keys, bool value) {
    const uint32_t slot = use_ % T::kSlots;
    if (use_ >= T::kSlots) hp::mbarrier_wait(address_of(&known_.empty[slot]), (use_ / T::kSlots - 1) & 1);
    ++use_;
    if (!value) steps_.describe(item_.head, keys, known_.keys, described_++ % kKnownSteps);
    __syncwarp();  // lane 0 arrives for the warp
    uint64_t& full = known_.full[slot];
    if (lane_ == 0) hp::mbarrier_arrive_expect(address_of(&full), kStepBytes);
    __syncwarp();
    const RowMaps& maps = value ? (keys.mean ? params_.key_maps.mean_v : params_.key_maps.v)
                                : (keys.mean ? params_.key_maps.mean_k : params_.key_maps.k);
    load_groups(maps, ring_.buffer[slot], full, keys.groups, place_);
  }

  const Params& params_;
  const TileForwardArgs& args_;
  const TileShape& shape_;
  Ring<T>& ring_;
  Known<T>& known_;
  KeySteps<TileForwardArgs> steps_;
  const int lane_;
  uint32_t use_ = 0, described_ = 0;  // of the ring and of what is known of steps, all items together
  int done_ = 0;                      // items
  Item item_;
  HeadPlace place_;
};

// ---- products: a warpgroup a strip --------------------------------------------------------------------------------

template <class T>
class Attend {
 public:
  static constexpr int kColumns = T::kColumns;
  static constexpr int kOwnColumns = kColumns / 4;  // a thread's: 8 j + 2 (lane % 4) and the next

  __device__ __forceinline__ Attend(const Params& params, Ring<T>& ring, Known<T>& known, int group)
      : params_(params), ring_(ring), known_(known), barrier_(kOwnBarrier + group), offset_(transposed_offset()) {
    asm volatile("" : "+r"(offset_));  // one register, not the parts of a sum
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (uint32_t done = 0;; ++done) {
      hp::mbarrier_wait(address_of(&known_.query_full), done & 1);
      const Item item = known_.item;
      if (item.steps == 0) break;
      attend(item);
    }
  }

 private:
  struct State {
    float scores[kColumns / 2];
    float output[kPanels][kColumns / 2];
    float sum[kOwnColumns];        // over this thread's keys
    float reference[kOwnColumns];  // what the scores' logarithms are less
  };

  __device__ __forceinline__ void attend(const Item& item) {
    State state;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) state.sum[i] = 0, state.reference[i] = -INFINITY;
    multiply_strip<kColumns>(state.scores, loaded(use_), address_of(ring_.query));
    hp::wgmma_wait<0>();
    hp::wgmma_fence_operand(state.scores);
    release(use_++);
    weigh(state, /*first=*/true);
#pragma unroll 1
    for (int step = 0; step + 1 < item.steps; ++step, use_ += 2) {
      multiply_strip<kColumns>(state.scores, loaded(use_), address_of(ring_.query));
      accumulate_strip<kColumns>(state.output, loaded(use_ + 1), weights(known_step_ - 1), step > 0);
      hp::wgmma_wait<1>();
      hp::wgmma_fence_operand(state.scores);
      release(use_);
      weigh(state, /*first=*/false);
    }
    accumulate_strip<kColumns>(state.output, loaded(use_), weights(known_step_ - 1), item.steps > 1);
    wait_output(state, use_++);
    finish(state, item);
  }

  __device__ __forceinline__ void wait_output(State& state, uint32_t use) {
    hp::wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < kPanels; ++half) hp::wgmma_fence_operand(state.output[half]);
    release(use);
  }
  __device__ __forceinline__ void release(uint32_t use) {
    if (threadIdx.x % 32 == 0) hp::mbarrier_arrive(address_of(&known_.empty[use % T::kSlots]));
  }
  __device__ __forceinline__ uint32_t loaded(uint32_t use) {
    hp::mbarrier_wait(address_of(&known_.full[use % T::kSlots]), use / T::kSlots & 1);
    return address_of(ring_.buffer[use % T::kSlots]);
  }
  __device__ __forceinline__ uint32_t weights(uint32_t step) const {
    return address_of(ring_.weights[step % T::kWeights]);
  }
  // P^T of the step whose scores are there, for the next product. In all but the first step one is under way that adds
  // to the output.
  __device__ __forceinline__ void weigh(State& state, bool first) {
    const uint32_t step = known_step_++;
    add_known(state.scores, known_.keys, step % kKnownSteps);
    const float scale_log2 = params_.args.scale * 1.4426950408889634f;
    float sum[kOwnColumns], most = 0;
    uint32_t words[kOwnColumns];
    weights_of(state, scale_log2, words, sum);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) most = fmaxf(most, sum[i]);
    store_transposed<kColumns>(weights(step) + offset_, words);
    if (!first) wait_output(state, use_ + 1);
    hp::fence_async_proxy();
    if (hp::named_barrier_any(barrier_, kWarpgroup, most > kMostSum)) {
      agree(state, scale_log2, first);
      weights_of(state, scale_log2, words, sum);
      store_transposed<kColumns>(weights(step) + offset_, words);
      hp::fence_async_proxy();
      hp::named_barrier_sync(barrier_, kWarpgroup);
    }
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) state.sum[i] = sum[i];
  }

  __device__ __forceinline__ void weights_of(const State& state, float scale_log2, uint32_t (&words)[kOwnColumns],
                                             float (&sum)[kOwnColumns]) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      float p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[i] = hp::exp2_approx(fmaf(state.scores[4 * j + i], scale_log2, -state.reference[2 * j + i % 2]));
      sum[2 * j] = state.sum[2 * j] + (p[0] + p[2]);
      sum[2 * j + 1] = state.sum[2 * j + 1] + (p[1] + p[3]);
      words[2 * j] = hp::pack_bf16(p[0], p[1]);
      words[2 * j + 1] = hp::pack_bf16(p[2], p[3]);
    }
  }

  // A new reference for every query, no less than any score so far: the old one and the logarithm of a thread's sum
  // are bounds of those before. No product is under way.
  __device__ __forceinline__ void agree(State& state, float scale_log2, bool first) {
    const int lane = threadIdx.x % 32, warp = int(threadIdx.x) % kWarpgroup / 32;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const int at = i / 2 * 4 + i % 2;
      float most = fmaxf(state.scores[at], state.scores[at + 2]) * scale_log2;
      if (state.sum[i] > 0) most = fmaxf(most, state.reference[i] + __log2f(state.sum[i]));
      most = largest(most);
      if (lane < 4) known_.exchange[warp][i / 2 * 8 + lane * 2 + i % 2] = most;
    }
    hp::named_barrier_sync(barrier_, kWarpgroup);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const int column = i / 2 * 8 + lane % 4 * 2 + i % 2, at = i / 2 * 4 + i % 2;
      float most = known_.exchange[0][column];
#pragma unroll
      for (int other = 1; other < kWarpgroup / 32; ++other) most = fmaxf(most, known_.exchange[other][column]);
      const float factor = hp::exp2_approx(state.reference[i] - most);
      state.reference[i] = most;
      state.sum[i] *= factor;
      if (first) continue;
#pragma unroll
      for (int half = 0; half < kPanels; ++half) state.output[half][at] *= factor, state.output[half][at + 2] *= factor;
    }
  }
  // Over the lanes with the same columns.
  __device__ __forceinline__ float largest(float value) const {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, i));
    return value;
  }

  // Normalised rows through the queries' buffer to the original order, and their log-sum-exps.
  __device__ __forceinline__ void finish(State& state, const Item& item) {
    const TileForwardArgs& args = params_.args;
    const Piece own = strip_at(args.partition, item.strip);
    const int lane = threadIdx.x % 32, warp = int(threadIdx.x) % kWarpgroup / 32;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      float sum = state.sum[i];
#pragma unroll
      for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
      if (lane < 4) known_.exchange[warp][i / 2 * 8 + lane * 2 + i % 2] = sum;
    }
    hp::named_barrier_sync(barrier_, kWarpgroup);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
      float sum = 0;
#pragma unroll
      for (int other = 0; other < kWarpgroup / 32; ++other) sum += known_.exchange[other][column];
      if (lane < 4 && i / 2 % 4 == warp && column < own.rows) {
        const int token = tile_token(args.shape, args.partition, own.begin + column);
        args.lse[int64_t(item.head) * args.shape.tokens() + token] = (state.reference[i] + __log2f(sum)) * kLn2;
      }
      state.sum[i] = __fdividef(1.f, sum);
    }
#pragma unroll
    for (int half = 0; half < kPanels; ++half) {
      uint32_t words[kOwnColumns];
#pragma unroll
      for (int i = 0; i < kOwnColumns; ++i) {
        const float* o = state.output[half] + 2 * i;
        words[i] = hp::pack_bf16(o[0] * state.sum[i / 2 * 2], o[1] * state.sum[i / 2 * 2 + 1]);
      }
      store_transposed<kColumns>(address_of(ring_.query) + half * T::kPanelBytes + offset_, words);
    }
    hp::named_barrier_sync(barrier_, kWarpgroup);
    copy_rows<kColumns>(ring_.query, args.out, args.shape, args.partition, item.head, own);
    hp::fence_async_proxy();  // the next queries come by TMA
    __syncwarp();
    if (lane == 0) hp::mbarrier_arrive(address_of(&known_.query_empty));
  }

  const Params& params_;
  Ring<T>& ring_;
  Known<T>& known_;
  const int barrier_;
  uint32_t offset_;                    // of what this lane stores of P^T
  uint32_t use_ = 0, known_step_ = 0;  // of the ring and of what is known of steps, all items together
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<T>& shared = *reinterpret_cast<Storage<T>*>(shared_bytes);
  if (threadIdx.x == 0) {
    for (Known<T>& known : shared.known) {
      hp::mbarrier_init_each(1, known.query_full);
      hp::mbarrier_init_each(kWarpgroup / 32, known.query_empty);
      hp::mbarrier_init_each(1, known.full);
      hp::mbarrier_init_each(kWarpgroup / 32, known.empty);
    }
    hp::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hp::register_decrease<kProducerRegisters>();
    if (warp < kGroups) Feed<T>(params, shared.ring[warp], shared.known[warp]).run();
  } else {
    hp::register_increase<kMathRegisters>();
    Attend<T>(params, shared.ring[warp / 4 - 1], shared.known[warp / 4 - 1], warp / 4 - 1).run();
  }
#endif
}

template <int kColumns>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  using T = Config<kColumns>;
  const TileShape& s = args.shape;
  Params params;
  params.args = args;
  params.inverse_scale = 1 / args.scale;
  cudaError_t error = encode_rows(&params.q_map, args.q, s, s.tokens(), kColumns);
  if (error == cudaSuccess) error = encode_keys(params.key_maps, args);
  if (error != cudaSuccess) return error;
  const int64_t items = int64_t(s.batch) * s.heads * s.strips();
  return launch_persistent<Storage<T>>(forward_kernel<T>, (items + kGroups - 1) / kGroups, kThreads, params, stream);
}

}  // namespace
}  // namespace strips

cudaError_t tile_forward_strips(const TileForwardArgs& args, cudaStream_t stream) {
  return args.shape.strip_rows == 72 ? strips::launch<72>(args, stream) : strips::launch<80>(args, stream);
}

}  // namespace vmoba::kernels
