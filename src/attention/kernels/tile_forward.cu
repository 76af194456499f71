// Forward of attention by query tiles on sm_90a: two pieces of query rows a block of threads, each walking the list of
// key pieces that its tile attends and then the means of the blocks that it does not, two of them in a step.
//
// Persistent blocks of threads. Warpgroup 0 feeds by TMA; warpgroups 1 and 2 own a piece of rows each. Pieces of one
// tile (`kShared`) read the same keys from one ring and take turns in issuing, so that one's softmax hides behind the
// other's products; pieces of different tiles have a ring each and go their own ways. The QK^T of the next step is
// issued together with the PV of this one. Keys and values come through a ring in the order of their use, K0 K1 V0 K2
// V1 K3 ..., which the next rows' keys continue while the last rows are still being stored.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "attention/kernels/forward_sm90.cuh"
#include "attention/kernels/tile_forward_strips.cuh"
#include "attention/kernels/tile_sm80.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 384;
constexpr int kGroups = 2;              // warpgroups with rows
constexpr int kProducerRegisters = 56;  // 128 * 56 + 256 * 224 = 384 * 168, the uniform share at launch
constexpr int kMathRegisters = 224;
constexpr int kTurnBarrier = 1;  // named barriers kTurnBarrier + warpgroup: whose turn it is to issue products
constexpr int kStepPieces = 2;

template <int D, bool kShared_, int kKeyRows_>
struct Config {
  static constexpr bool kShared = kShared_;
  static constexpr int kHeadDim = D;
  static constexpr int kKeyRows = kKeyRows_;  // of a piece of keys
  static constexpr int kKeyTile = kStepPieces * kKeyRows;
  static constexpr int kPanels = D / hopper::kPanelColumns;
  static constexpr int kRowPanelBytes = kPieceRows * hopper::kPanelRowBytes;
  static constexpr int kKeyPiecePanelBytes = kKeyRows * hopper::kPanelRowBytes;
  static constexpr int kKeyPanelBytes = kStepPieces * kKeyPiecePanelBytes;
  static constexpr int kQueryBytes = kPanels * kRowPanelBytes;
  static constexpr int kStepBytes = kPanels * kKeyPanelBytes;
  static constexpr int kStreams = kShared ? 1 : kGroups;
  static constexpr int kSlots = kShared ? (kKeyRows == 64 ? 6 : 5) : 3;
  // Of what is known of a step's keys. A buffer of keys is free behind the softmax of the step before; more steps are
  // never under way.
  static constexpr int kKnownSteps = 4 / kStreams;
  static constexpr int kMeansOfLane = (kKeyTile + 31) / 32;
};

// One ring of keys and values.
template <class T>
struct Stream {
  alignas(16) float bias[T::kKnownSteps][T::kKeyTile];  // of means
  alignas(8) int valid[T::kKnownSteps][kStepPieces];    // keys of each piece; -1: means
  uint64_t full[T::kSlots], empty[T::kSlots];
};

// Rows of a warpgroup: one piece, or none of its own.
struct Item {
  int head, piece, steps;  // steps 0: no more items
  bool stores;
};

template <class T>
struct Storage {
  alignas(1024) char query[kGroups][T::kQueryBytes];
  alignas(1024) char ring[T::kStreams][T::kSlots][T::kStepBytes];
  Stream<T> stream[T::kStreams];
  Item item[kGroups];
  uint32_t never_written;  // see keep_before_wait
  uint64_t query_full[kGroups], query_empty[kGroups];
};

struct Params {
  CUtensorMap q_map, k_map, v_map, mean_k_map, mean_v_map;
  TileForwardArgs args;
  float inverse_scale;
};

__device__ __forceinline__ uint32_t address_of(const void* object) {
  return hopper::smem_address(object);
}

// The steps of a piece of rows: its tile's key pieces, then pieces of means.
struct Steps {
  const uint16_t* list;  // null: every piece
  int tile, pieces, key_steps, total;
};

template <class T>
__device__ __forceinline__ Steps steps_of(const TileForwardArgs& args, int head, int piece) {
  const TileShape& s = args.shape;
  Steps steps{nullptr, -1, s.key_pieces(), 0, 0};
  int means = 0;
  if (piece < s.video_pieces) {
    steps.tile = __ldg(args.partition.piece_tile + piece);
    const int64_t list = int64_t(head) * s.tiles + steps.tile;
    steps.list = args.lists.keys + list * s.key_pieces();
    steps.pieces = __ldg(args.lists.key_count + list);
    means = args.means.keys != nullptr ? s.blocks : 0;
  }
  steps.key_steps = (steps.pieces + kStepPieces - 1) / kStepPieces;
  steps.total = steps.key_steps + (means + T::kKeyTile - 1) / T::kKeyTile;
  return steps;
}

// ---- loads: a warp a ring
// --------------------------------------------------------------------------------------------

template <class T>
class Feed {
 public:
  __device__ __forceinline__ Feed(const Params& params, Storage<T>& shared, int stream)
      : params_(params),
        args_(params.args),
        shared_(shared),
        ring_(shared.stream[stream]),
        buffers_(shared.ring[stream]),
        stream_(stream),
        lane_(int(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run() {
    const TileShape& s = args_.shape;
    const int of_head = T::kShared ? s.row_pairs : s.pieces(), items = of_head * s.heads * s.batch;
    for (int item = __shfl_sync(0xffffffffu, claim(), 0); item < items;) {
      const int next = claim();  // its turn is a good while away
      const Turn turn = turn_of(s, T::kShared ? s.row_pairs : 0, item);
      start(turn.head, turn.number);
      feed_steps();
      ++done_;
      item = __shfl_sync(0xffffffffu, next, 0);
    }
    announce({0, 0, 0, false}, /*rows=*/0);
    // The last of all rings leaves the counters as it found them.
    const unsigned last = gridDim.x * T::kStreams - 1;
    if (lane_ == 0 && atomicInc(args_.lists.next + 1, last) == last) atomicExch(args_.lists.next, 0);
  }

 private:
  // First rows of a step's pieces among the keys or the means.
  struct StepKeys {
    int row[kStepPieces] = {}, valid[kStepPieces] = {};
    bool mean = false;
  };

  // In lane 0.
  __device__ __forceinline__ int claim() { return lane_ == 0 ? int(atomicAdd(args_.lists.next, 1)) : 0; }

  __device__ __forceinline__ void start(int head, int index) {
    head_ = head;
    first_ = T::kShared ? __ldg(args_.partition.row_pair + index) : index;
    pieces_ = T::kShared ? __ldg(args_.partition.row_pair + index + 1) - first_ : 1;
    steps_ = steps_of<T>(args_, head, first_);
    look_up(0);
    look_up_means(0);
  }

  // The warpgroups' rows, when the rows before them are stored. Where there is no second piece, the first once more,
  // for nothing.
  __device__ __forceinline__ void announce(Item item, int rows) {
#pragma unroll
    for (int i = 0; i < (T::kShared ? kGroups : 1); ++i) {
      const int group = T::kShared ? i : stream_;
      if (done_ > 0) hopper::mbarrier_wait(address_of(&shared_.query_empty[group]), (done_ - 1) & 1);
      if (lane_ == 0) {
        uint64_t& full = shared_.query_full[group];
        Item own = item;
        own.piece += min(i, max(rows - 1, 0)), own.stores = i < rows;
        shared_.item[group] = own;
        if (rows == 0) {
          hopper::mbarrier_arrive(address_of(&full));
        } else {
          hopper::mbarrier_arrive_expect(address_of(&full), T::kQueryBytes);
          load_panels<T::kRowPanelBytes>(&params_.q_map, shared_.query[group], full,
                                         piece_at(args_.partition, own.piece).begin);
        }
      }
      __syncwarp();
    }
  }

  // K0, then K of the next step and V of this one in turn. The rows are asked for when the ring is full of keys: it is
  // sooner free than the rows' buffers.
  __device__ __forceinline__ void feed_steps() {
    bool announced = false;
    const auto announce_before = [&](int use) {
      if (announced || (use < T::kSlots && use < 2 * steps_.total)) return;
      announce({head_, first_, steps_.total, true}, pieces_);
      announced = true;
    };
    StepKeys keys = keys_of(0), next;
    load(keys, /*value=*/false);
    for (int step = 0, use = 1; step < steps_.total; ++step, keys = next) {
      if (step + 1 < steps_.total) {
        next = keys_of(step + 1);
        announce_before(use++);
        load(next, /*value=*/false);
      }
      announce_before(use++);
      load(keys, /*value=*/true);
    }
    announce_before(2 * steps_.total);
  }

  // Each lane one piece of the 32 from `first` on, whose turn is a good while away.
  __device__ __forceinline__ void look_up(int first) {
    const int index = first + lane_;
    ahead_ = {};
    if (index < steps_.pieces)
      ahead_ = key_piece_at(args_.partition, steps_.list == nullptr ? index : __ldg(steps_.list + index));
  }

  // In the order of steps. A piece that is not there repeats the one before it, without keys.
  __device__ __forceinline__ StepKeys keys_of(int step) {
    StepKeys keys;
    keys.mean = step >= steps_.key_steps;
    const int first = kStepPieces * (keys.mean ? step - steps_.key_steps : step);
    if (keys.mean) {
#pragma unroll
      for (int i = 0; i < kStepPieces; ++i) keys.row[i] = (first + i) * T::kKeyRows, keys.valid[i] = -1;
      return keys;
    }
    if (first % 32 == 0) {
      looked_up_ = ahead_;
      look_up(first + 32);
    }
#pragma unroll
    for (int i = 0; i < kStepPieces; ++i) {
      const int from = min(first + i, steps_.pieces - 1) % 32;
      keys.row[i] = __shfl_sync(0xffffffffu, looked_up_.begin, from);
      keys.valid[i] = __shfl_sync(0xffffffffu, looked_up_.rows, from);
      if (first + i >= steps_.pieces) keys.valid[i] = 0;
    }
    return keys;
  }

  __device__ __forceinline__ void load(const StepKeys& keys, bool value) {
    const uint32_t slot = use_ % T::kSlots;
    if (use_ >= T::kSlots) hopper::mbarrier_wait(address_of(&ring_.empty[slot]), (use_ / T::kSlots - 1) & 1);
    if (!value) describe(keys);
    if (lane_ == 0) {
      const CUtensorMap* map = value ? (keys.mean ? &params_.mean_v_map : &params_.v_map)
                                     : (keys.mean ? &params_.mean_k_map : &params_.k_map);
      hopper::mbarrier_arrive_expect(address_of(&ring_.full[slot]), T::kStepBytes);
#pragma unroll
      for (int i = 0; i < kStepPieces; ++i)
        load_panels<T::kKeyPanelBytes>(map, buffers_[slot] + i * T::kKeyPiecePanelBytes, ring_.full[slot], keys.row[i]);
    }
    ++use_;
    __syncwarp();
  }

  // Of the means from `first` on; their turn is a good while away.
  __device__ __forceinline__ void look_up_means(int first) {
    const int blocks = args_.shape.blocks;
    if (args_.means.keys == nullptr || steps_.tile < 0) return;
#pragma unroll
    for (int i = 0; i < T::kMeansOfLane; ++i) {
      const int mean = min(first + lane_ + 32 * i, blocks - 1);
      attended_[i] = __ldg(args_.lists.mask + (int64_t(head_) * args_.shape.tiles + steps_.tile) * blocks + mean);
      bias_[i] = __ldg(args_.means.bias + int64_t(head_) * blocks + mean);
    }
  }
  // Means of blocks that the tile attends take no part; the others bring the logarithm of what they stand for.
  __device__ __forceinline__ void describe(const StepKeys& keys) {
    const uint32_t known = described_++ % T::kKnownSteps;
    if (lane_ < kStepPieces) ring_.valid[known][lane_] = lane_ == 0 ? keys.valid[0] : keys.valid[1];
    if (keys.mean) {
#pragma unroll
      for (int i = 0; i < T::kMeansOfLane; ++i) {
        const int key = lane_ + 32 * i;
        const bool enters = keys.row[0] + key < args_.shape.blocks && attended_[i] == 0;
        if (key < T::kKeyTile) ring_.bias[known][key] = enters ? bias_[i] * params_.inverse_scale : -INFINITY;
      }
      look_up_means(keys.row[0] + T::kKeyTile);
    }
    __syncwarp();
  }

  template <int kPanelBytes>
  __device__ __forceinline__ void load_panels(const CUtensorMap* map, const char* target, uint64_t& full, int row) {
#pragma unroll
    for (int panel = 0; panel < T::kPanels; ++panel) {
      hopper::tma_load_4d(address_of(target) + panel * kPanelBytes, map, address_of(&full),
                          panel * hopper::kPanelColumns, row, head_ % args_.shape.heads, head_ / args_.shape.heads);
    }
  }

  const Params& params_;
  const TileForwardArgs& args_;
  Storage<T>& shared_;
  Stream<T>& ring_;
  char (&buffers_)[T::kSlots][T::kStepBytes];
  const int stream_, lane_;
  uint32_t use_ = 0, described_ = 0;  // of the ring and of what is known of steps, all items together
  int done_ = 0;                      // items
  int head_ = 0, first_ = 0, pieces_ = 0;
  Steps steps_;
  Piece looked_up_, ahead_;            // this lane's of the 32 pieces at hand, and of the 32 after those
  uint8_t attended_[T::kMeansOfLane];  // of the step of means to come
  float bias_[T::kMeansOfLane];
};

// ---- products: a warpgroup a piece of rows
// ----------------------------------------------------------------------------

template <class T>
class Attend {
 public:
  __device__ __forceinline__ Attend(const Params& params, Storage<T>& shared, int group)
      : args_(params.args),
        shared_(shared),
        ring_(shared.stream[T::kShared ? 0 : group]),
        buffers_(shared.ring[T::kShared ? 0 : group]),
        group_(group) {}

  __device__ __forceinline__ void run() {
    if (T::kShared && group_ == 1) hopper::named_barrier_arrive(kTurnBarrier, kGroups * kWarpgroupThreads);
#pragma unroll 1
    for (uint32_t done = 0;; ++done) {
      hopper::mbarrier_wait(address_of(&shared_.query_full[group_]), done & 1);
      const Item item = shared_.item[group_];
      if (item.steps == 0) break;
      if (!T::kShared || item.stores)
        attend(item);
      else
        let_pass(item.steps);
    }
    // Takes up the turn that the other warpgroup granted last, so that no barrier is left half arrived.
    if (T::kShared && group_ == 0) hopper::named_barrier_sync(kTurnBarrier, kGroups * kWarpgroupThreads);
  }

 private:
  __device__ __forceinline__ void attend(const Item& item) {
    const float scale_log2 = args_.scale * 1.4426950408889634f;
    forward_sm90::RowState<T> state;
    float rescale[2];
    issue_scores(state, use_);
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.scores);
    softmax(state, /*first=*/true, scale_log2, rescale);
    release(use_);  // behind the softmax: there may be no more steps known than this and the next
    forward_sm90::pack_probabilities<T>(state);
    ++use_;
#pragma unroll 1
    for (int step = 0; step + 1 < item.steps; ++step, use_ += 2) {
      if (T::kShared) hopper::named_barrier_sync(kTurnBarrier + group_, kGroups * kWarpgroupThreads);
      issue_scores(state, use_);
      issue_output(state, use_ + 1, step > 0);
      if (T::kShared) hopper::named_barrier_arrive(kTurnBarrier + (group_ ^ 1), kGroups * kWarpgroupThreads);
      hopper::wgmma_wait<1>();
      hopper::wgmma_fence_operand(state.scores);
      release(use_);
      softmax(state, /*first=*/false, scale_log2, rescale);
      hopper::wgmma_fence_operand(state.scores);
      hopper::keep_before_wait(state.sum[0] + state.sum[1], address_of(&shared_.never_written));
      hopper::wgmma_wait<0>();
      hopper::wgmma_fence_operand(state.output);
      release(use_ + 1);
      forward_sm90::pack_probabilities<T>(state);
      forward_sm90::rescale_output<T>(state, rescale);
    }
    issue_output(state, use_, item.steps > 1);
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.output);
    release(use_++);
    finish(state, item, scale_log2);
  }

  // The other warpgroup has the only piece of a tile's last pair.
  __device__ __forceinline__ void let_pass(int steps) {
#pragma unroll 1
    for (int use = 0; use < 2 * steps; ++use, ++use_) {
      const bool turn = use % 2 == 1 && use + 1 < 2 * steps;
      if (turn) hopper::named_barrier_sync(kTurnBarrier + group_, kGroups * kWarpgroupThreads);
      if (turn) hopper::named_barrier_arrive(kTurnBarrier + (group_ ^ 1), kGroups * kWarpgroupThreads);
      loaded(use_);
      release(use_);
    }
    known_ += steps;
    if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(address_of(&shared_.query_empty[group_]));
  }

  __device__ __forceinline__ void release(uint32_t use) {
    if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(address_of(&ring_.empty[use % T::kSlots]));
  }
  __device__ __forceinline__ uint32_t loaded(uint32_t use) {
    hopper::mbarrier_wait(address_of(&ring_.full[use % T::kSlots]), use / T::kSlots & 1);
    return address_of(buffers_[use % T::kSlots]);
  }
  __device__ __forceinline__ void issue_scores(forward_sm90::RowState<T>& state, uint32_t use) {
    forward_sm90::issue_scores<T>(state, hopper::descriptor_k_major(address_of(shared_.query[group_])),
                                  hopper::descriptor_k_major(loaded(use)));
  }
  __device__ __forceinline__ void issue_output(forward_sm90::RowState<T>& state, uint32_t use, bool accumulate) {
    forward_sm90::issue_output<T>(state, hopper::descriptor_mn_major(loaded(use), T::kKeyPanelBytes), accumulate);
  }

  __device__ __forceinline__ void softmax(forward_sm90::RowState<T>& state, bool first, float scale_log2,
                                          float (&rescale)[2]) {
    const uint32_t known = known_++ % T::kKnownSteps;
    const int column = threadIdx.x % 4 * 2;
    const int2 valid = *reinterpret_cast<const int2*>(ring_.valid[known]);
    if (valid.x < 0) {
#pragma unroll
      for (int j = 0; j < T::kKeyTile / 8; ++j) {
        const float2 added = *reinterpret_cast<const float2*>(ring_.bias[known] + j * 8 + column);
        state.scores[j * 4] += added.x, state.scores[j * 4 + 1] += added.y;
        state.scores[j * 4 + 2] += added.x, state.scores[j * 4 + 3] += added.y;
      }
    } else if (valid.x + valid.y < T::kKeyTile) {
      // Keys behind a piece's end are another's.
      constexpr int kHalf = T::kKeyRows / 2;
#pragma unroll
      for (int i = 0; i < 2 * kHalf; ++i) {
        const bool behind = i % kHalf / 4 * 8 + i % 2 + column >= (i < kHalf ? valid.x : valid.y);
        if (behind) state.scores[i] = -INFINITY;
      }
    }
    forward_sm90::softmax<T>(state, first, T::kKeyTile, scale_log2, rescale);
  }

  // Normalised rows through the query buffer to the original order, 128-byte lines, and the rows' log-sum-exps.
  __device__ __forceinline__ void finish(const forward_sm90::RowState<T>& state, const Item& item, float scale_log2) {
    const TileShape& s = args_.shape;
    const Piece own = piece_at(args_.partition, item.piece);
    char* const query = shared_.query[group_];
    const int lane = threadIdx.x % 32, warp_row = int(threadIdx.x) % kWarpgroupThreads / 32 * 16;
    float total[2], inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] = state.sum[r];
      total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
      total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
      inverse[r] = __fdividef(1.f, total[r]);
    }
#pragma unroll
    for (int i = 0; i < T::kHeadDim / 16; ++i) {
      const int chunk = i * 2 + lane / 16;
      const float* o = state.output + i * 8;
      hopper::stmatrix_x4(
          address_of(query) + chunk / 8 * T::kRowPanelBytes + hopper::swizzled_offset(warp_row + lane % 16, chunk % 8),
          hopper::pack_bf16(o[0] * inverse[0], o[1] * inverse[0]),
          hopper::pack_bf16(o[2] * inverse[1], o[3] * inverse[1]),
          hopper::pack_bf16(o[4] * inverse[0], o[5] * inverse[0]),
          hopper::pack_bf16(o[6] * inverse[1], o[7] * inverse[1]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row + lane / 4 + r * 8;
      if (lane % 4 != 0 || row >= own.rows) continue;
      const int token = tile_token(s, args_.partition, own.begin + row);
      args_.lse[int64_t(item.head) * s.tokens() + token] =
          (fmaf(state.maximum[r], scale_log2, __log2f(total[r]))) * 0.6931471805599453f;
    }
    __syncwarp();
    // A warp's own 16 rows: nobody else wrote them.
    constexpr int kLanes = T::kHeadDim / 8;
#pragma unroll
    for (int first = 0; first < 16; first += 32 / kLanes) {
      const int row = warp_row + first + lane / kLanes, chunk = lane % kLanes;
      const uint4 value = *reinterpret_cast<const uint4*>(query + chunk / 8 * T::kRowPanelBytes +
                                                          hopper::swizzled_offset(row, chunk % 8));
      if (row >= own.rows) continue;
      const int token = tile_token(s, args_.partition, own.begin + row);
      reinterpret_cast<uint4*>(tile_row(args_.out, s, item.head, token))[chunk] = value;
    }
    hopper::fence_async_proxy();  // the next rows come by TMA
    __syncwarp();
    if (lane == 0) hopper::mbarrier_arrive(address_of(&shared_.query_empty[group_]));
  }

  const TileForwardArgs& args_;
  Storage<T>& shared_;
  Stream<T>& ring_;
  char (&buffers_)[T::kSlots][T::kStepBytes];
  const int group_;
  uint32_t use_ = 0, known_ = 0;  // of the ring and of what is known of steps, all items together
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<T>& shared = *reinterpret_cast<Storage<T>*>(shared_bytes);
  if (threadIdx.x == 0) {
    hopper::mbarrier_init_each(1, shared.query_full);
    hopper::mbarrier_init_each(4, shared.query_empty);
    for (Stream<T>& stream : shared.stream) {
      hopper::mbarrier_init_each(1, stream.full);
      hopper::mbarrier_init_each(4 * kGroups / T::kStreams, stream.empty);
    }
    hopper::mbarrier_init_fence();
  }
  __syncthreads();
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hopper::register_decrease<kProducerRegisters>();
    if (warp < T::kStreams) Feed<T>(params, shared, warp).run();
  } else {
    hopper::register_increase<kMathRegisters>();
    Attend<T>(params, shared, warp / 4 - 1).run();
  }
#endif
}

template <class T>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  constexpr int D = T::kHeadDim;
  const TileShape& s = args.shape;
  Params params;
  params.args = args;
  params.inverse_scale = 1 / args.scale;
  const auto encode = [&](CUtensorMap* map, const void* data, int64_t rows, int box_rows) {
    return hopper::encode_row_map(map, data, D, rows, s.heads, s.batch, D, rows * D, rows * D * s.heads, box_rows);
  };
  cudaError_t error = encode(&params.q_map, args.q, s.tokens(), kPieceRows);
  if (error == cudaSuccess) error = encode(&params.k_map, args.k, s.tokens(), T::kKeyRows);
  if (error == cudaSuccess) error = encode(&params.v_map, args.v, s.tokens(), T::kKeyRows);
  if (args.means.keys != nullptr) {
    if (error == cudaSuccess) error = encode(&params.mean_k_map, args.means.keys, s.blocks, T::kKeyRows);
    if (error == cudaSuccess) error = encode(&params.mean_v_map, args.means.values, s.blocks, T::kKeyRows);
  }
  if (error != cudaSuccess) return error;
  const int64_t pairs = T::kShared ? s.row_pairs : (s.pieces() + 1) / 2;
  return launch_persistent<Storage<T>>(forward_kernel<T>, pairs * s.batch * s.heads, kThreads, params, stream);
}

template <int D>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  if (args.shape.row_pairs == 0) return launch<Config<D, false, kPieceRows>>(args, stream);
  if constexpr (D == 128) {
    if (args.shape.key_rows == kLongPieceRows) return launch<Config<D, true, kLongPieceRows>>(args, stream);
  }
  return launch<Config<D, true, kPieceRows>>(args, stream);
}

}  // namespace

cudaError_t tile_forward(const TileForwardArgs& args, cudaStream_t stream) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const int family = kernel_family(device, args.family);
  if (family == 0) return cudaErrorNotSupported;
  if (family == 80) return tile_forward_sm80(args, stream);
  if (!tile_shape_valid(args.shape)) return cudaErrorInvalidValue;
  if (args.shape.strip_rows > 0) return tile_forward_strips(args, stream);
  return args.shape.head_dim == 64 ? launch<64>(args, stream) : launch<128>(args, stream);
}

}  // namespace vmoba::kernels
