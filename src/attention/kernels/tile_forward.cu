// Forward of attention by query tiles on sm_90a: two pieces of query rows a block of threads, each walking the list of
// key pieces that its tile attends and then the means of the blocks that it does not, two of them in a step.
//
// Warpgroup 0 feeds by TMA; warpgroups 1 and 2 own a piece of rows each. Pieces of one tile (`kShared`) read the same
// keys from one ring and take turns in issuing, so that one's softmax hides behind the other's products; pieces of
// different tiles have a ring each. The QK^T of the next step is issued together with the PV of this one. Keys and
// values come through a ring in the order of their use, K0 K1 V0 K2 V1 K3 ...
#include "attention/kernels/forward_sm90.cuh"
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 384;
constexpr int kGroups = 2;              // warpgroups with rows
constexpr int kProducerRegisters = 40;  // 128 * 40 + 256 * 232 = 384 * 168, the uniform share at launch
constexpr int kMathRegisters = 232;
constexpr int kTurnBarrier = 1;  // named barriers kTurnBarrier + warpgroup: whose turn it is to issue products
constexpr int kStepPieces = 2;

template <int D, bool kShared_>
struct Config {
  static constexpr bool kShared = kShared_;
  static constexpr int kHeadDim = D;
  static constexpr int kKeyTile = kStepPieces * kPieceRows;
  static constexpr int kPanels = D / hopper::kPanelColumns;
  static constexpr int kRowPanelBytes = kPieceRows * hopper::kPanelRowBytes;
  static constexpr int kKeyPanelBytes = kStepPieces * kRowPanelBytes;
  static constexpr int kPieceBytes = kPanels * kRowPanelBytes;
  static constexpr int kStepBytes = kStepPieces * kPieceBytes;
  static constexpr int kStreams = kShared ? 1 : kGroups;
  static constexpr int kSlots = 6 / kStreams;
  // Of what is known of a step's keys. More steps than K has buffers: a buffer is free before the softmax of its step.
  static constexpr int kKnownSteps = 4 / kStreams;
};

// One ring of keys and values.
template <class T>
struct Stream {
  alignas(16) float bias[T::kKnownSteps][T::kKeyTile];  // of means
  alignas(8) int valid[T::kKnownSteps][kStepPieces];    // keys of each piece; -1: means
  uint64_t full[T::kSlots], empty[T::kSlots];
};

template <class T>
struct Storage {
  alignas(1024) char query[kGroups][T::kPieceBytes];
  alignas(1024) char ring[T::kStreams][T::kSlots][T::kStepBytes];
  Stream<T> stream[T::kStreams];
  uint32_t never_written;  // see keep_before_wait
  uint64_t query_full[kGroups];
};

struct Params {
  CUtensorMap q_map, k_map, v_map, mean_k_map, mean_v_map;
  TileForwardArgs args;
};

__device__ __forceinline__ uint32_t address_of(const void* object) {
  return hopper::smem_address(object);
}

// A block of threads' pieces of rows: `pieces` from `piece` on.
struct Rows {
  int head, piece, pieces;
};

template <class T>
__device__ __forceinline__ Rows rows_of_block(const TileForwardArgs& args) {
  const TileShape& s = args.shape;
  const int pairs = T::kShared ? s.row_pairs : (s.pieces() + 1) / 2, pair = int(blockIdx.x) % pairs;
  const int head = int(blockIdx.x) / pairs;
  if (!T::kShared) return {head, 2 * pair, min(2, s.pieces() - 2 * pair)};
  const int first = __ldg(args.partition.row_pair + pair);
  return {head, first, __ldg(args.partition.row_pair + pair + 1) - first};
}

// The steps of a piece of rows: its tile's key pieces, then pieces of means.
struct Steps {
  const uint16_t* list;  // null: every piece
  int tile, pieces, key_steps, total;
};

__device__ __forceinline__ Steps steps_of(const TileForwardArgs& args, int head, int piece) {
  const TileShape& s = args.shape;
  Steps steps{nullptr, -1, s.pieces(), 0, 0};
  int means = 0;
  if (piece < s.video_pieces) {
    steps.tile = __ldg(args.partition.piece_tile + piece);
    const int64_t list = int64_t(head) * s.tiles + steps.tile;
    steps.list = args.lists.keys + list * s.pieces();
    steps.pieces = __ldg(args.lists.key_count + list);
    means = args.means.keys != nullptr ? s.mean_pieces() : 0;
  }
  steps.key_steps = (steps.pieces + kStepPieces - 1) / kStepPieces;
  steps.total = steps.key_steps + (means + kStepPieces - 1) / kStepPieces;
  return steps;
}

// ---- loads: a warp a ring
// --------------------------------------------------------------------------------------------

template <class T>
class Feed {
 public:
  __device__ __forceinline__ Feed(const Params& params, Storage<T>& shared, const Rows& rows, int stream)
      : params_(params),
        args_(params.args),
        shared_(shared),
        ring_(shared.stream[stream]),
        buffers_(shared.ring[stream]),
        head_(rows.head),
        lane_(int(threadIdx.x) % 32),
        steps_(steps_of(params.args, rows.head, rows.piece + stream)) {}

  __device__ __forceinline__ void load_query(int group, int piece) {
    if (lane_ != 0) return;
    uint64_t& full = shared_.query_full[group];
    hopper::mbarrier_arrive_expect(address_of(&full), T::kPieceBytes);
    load_panels<T::kRowPanelBytes>(&params_.q_map, shared_.query[group], full, piece_at(args_.partition, piece).begin);
  }

  // K0, then K of the next step and V of this one in turn: uses 0, 1, 2 ... of the ring.
  __device__ __forceinline__ void run() {
    look_up(0);
    StepKeys keys = keys_of(0), next;
    load(0, keys, /*value=*/false, 0);
    for (int step = 0; step < steps_.total; ++step, keys = next) {
      if (step + 1 < steps_.total) {
        next = keys_of(step + 1);
        load(2 * step + 1, next, /*value=*/false, step + 1);
      }
      load(2 * step + 2, keys, /*value=*/true, step);
    }
  }

 private:
  // First rows of a step's pieces among the keys or the means.
  struct StepKeys {
    int row[kStepPieces] = {}, valid[kStepPieces] = {};
    bool mean = false;
  };

  // Each lane one piece of the 32 from `first` on, whose turn is a good while away.
  __device__ __forceinline__ void look_up(int first) {
    const int index = first + lane_;
    ahead_ = {};
    if (index < steps_.pieces)
      ahead_ = piece_at(args_.partition, steps_.list == nullptr ? index : __ldg(steps_.list + index));
  }

  // In the order of steps. A piece that is not there repeats the one before it, without keys.
  __device__ __forceinline__ StepKeys keys_of(int step) {
    StepKeys keys;
    keys.mean = step >= steps_.key_steps;
    const int first = kStepPieces * (keys.mean ? step - steps_.key_steps : step);
    if (keys.mean) {
#pragma unroll
      for (int i = 0; i < kStepPieces; ++i) keys.row[i] = (first + i) * kPieceRows, keys.valid[i] = -1;
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

  __device__ __forceinline__ void load(int use, const StepKeys& keys, bool value, int step) {
    const int slot = use % T::kSlots;
    if (use >= T::kSlots) hopper::mbarrier_wait(address_of(&ring_.empty[slot]), (use / T::kSlots - 1) & 1);
    if (!value) describe(keys, step);
    if (lane_ == 0) {
      const CUtensorMap* map = value ? (keys.mean ? &params_.mean_v_map : &params_.v_map)
                                     : (keys.mean ? &params_.mean_k_map : &params_.k_map);
      hopper::mbarrier_arrive_expect(address_of(&ring_.full[slot]), T::kStepBytes);
#pragma unroll
      for (int i = 0; i < kStepPieces; ++i)
        load_panels<T::kKeyPanelBytes>(map, buffers_[slot] + i * T::kRowPanelBytes, ring_.full[slot], keys.row[i]);
    }
    __syncwarp();
  }

  // Means of blocks that the tile attends take no part; the others bring the logarithm of what they stand for.
  __device__ __forceinline__ void describe(const StepKeys& keys, int step) {
    const int known = step % T::kKnownSteps, blocks = args_.shape.blocks;
    if (lane_ < kStepPieces) ring_.valid[known][lane_] = lane_ == 0 ? keys.valid[0] : keys.valid[1];
    if (keys.mean) {
      const uint8_t* mask = args_.lists.mask + (int64_t(head_) * args_.shape.tiles + steps_.tile) * blocks;
      for (int i = lane_; i < T::kKeyTile; i += 32) {
        const int mean = keys.row[0] + i;
        const bool enters = mean < blocks && mask[mean] == 0;
        ring_.bias[known][i] =
            enters ? __ldg(args_.means.bias + int64_t(head_) * blocks + mean) / args_.scale : -INFINITY;
      }
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
  const int head_, lane_;
  const Steps steps_;
  Piece looked_up_, ahead_;  // this lane's of the 32 pieces at hand, and of the 32 after those
};

// ---- products: a warpgroup a piece of rows
// ----------------------------------------------------------------------------

template <class T>
class Attend {
 public:
  __device__ __forceinline__ Attend(const Params& params, Storage<T>& shared, const Rows& rows, int group)
      : args_(params.args),
        shared_(shared),
        ring_(shared.stream[T::kShared ? 0 : group]),
        buffers_(shared.ring[T::kShared ? 0 : group]),
        head_(rows.head),
        group_(group) {}

  // Rows of `piece`; where there is none, those of the other group once more, for nothing.
  __device__ __forceinline__ void run(int piece, bool store) {
    const int steps = steps_of(args_, head_, piece).total;
    const float scale_log2 = args_.scale * 1.4426950408889634f;
    forward_sm90::RowState<T> state;
    float rescale[2];
    if (T::kShared && group_ == 1) hopper::named_barrier_arrive(kTurnBarrier, kGroups * kWarpgroupThreads);
    hopper::mbarrier_wait(address_of(&shared_.query_full[group_]), 0);
    issue_scores(state, 0);
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.scores);
    release(0);
    softmax(state, 0, scale_log2, rescale);
    forward_sm90::pack_probabilities<T>(state);
#pragma unroll 1
    for (int step = 0; step + 1 < steps; ++step) {
      if (T::kShared) hopper::named_barrier_sync(kTurnBarrier + group_, kGroups * kWarpgroupThreads);
      issue_scores(state, 2 * step + 1);
      issue_output(state, 2 * step + 2, step > 0);
      if (T::kShared) hopper::named_barrier_arrive(kTurnBarrier + (group_ ^ 1), kGroups * kWarpgroupThreads);
      hopper::wgmma_wait<1>();
      hopper::wgmma_fence_operand(state.scores);
      release(2 * step + 1);
      softmax(state, step + 1, scale_log2, rescale);
      hopper::wgmma_fence_operand(state.scores);
      forward_sm90::keep_before_wait(state.sum[0] + state.sum[1], address_of(&shared_.never_written));
      hopper::wgmma_wait<0>();
      hopper::wgmma_fence_operand(state.output);
      release(2 * step + 2);
      forward_sm90::pack_probabilities<T>(state);
      forward_sm90::rescale_output<T>(state, rescale);
    }
    issue_output(state, 2 * steps, steps > 1);
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.output);
    // Takes up the turn that the other warpgroup granted last, so that no barrier is left half arrived.
    if (T::kShared && group_ == 0) hopper::named_barrier_sync(kTurnBarrier, kGroups * kWarpgroupThreads);
    Piece own = piece_at(args_.partition, piece);
    if (!store) own.rows = 0;
    finish(state, own, scale_log2);
  }

 private:
  __device__ __forceinline__ void release(int use) {
    if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(address_of(&ring_.empty[use % T::kSlots]));
  }
  __device__ __forceinline__ uint32_t loaded(int use) {
    hopper::mbarrier_wait(address_of(&ring_.full[use % T::kSlots]), use / T::kSlots & 1);
    return address_of(buffers_[use % T::kSlots]);
  }
  __device__ __forceinline__ void issue_scores(forward_sm90::RowState<T>& state, int use) {
    forward_sm90::issue_scores<T>(state, hopper::descriptor_k_major(address_of(shared_.query[group_])),
                                  hopper::descriptor_k_major(loaded(use)));
  }
  __device__ __forceinline__ void issue_output(forward_sm90::RowState<T>& state, int use, bool accumulate) {
    forward_sm90::issue_output<T>(state, hopper::descriptor_mn_major(loaded(use), T::kKeyPanelBytes), accumulate);
  }

  __device__ __forceinline__ void softmax(forward_sm90::RowState<T>& state, int step, float scale_log2,
                                          float (&rescale)[2]) {
    const int known = step % T::kKnownSteps, column = threadIdx.x % 4 * 2;
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
      constexpr int kHalf = kPieceRows / 2;
#pragma unroll
      for (int i = 0; i < 2 * kHalf; ++i) {
        const bool behind = i % kHalf / 4 * 8 + i % 2 + column >= (i < kHalf ? valid.x : valid.y);
        if (behind) state.scores[i] = -INFINITY;
      }
    }
    forward_sm90::softmax<T>(state, step == 0, T::kKeyTile, scale_log2, rescale);
  }

  // Normalised rows through the query buffer to the original order, 128-byte lines, and the rows' log-sum-exps.
  __device__ __forceinline__ void finish(const forward_sm90::RowState<T>& state, const Piece& own, float scale_log2) {
    const TileShape& s = args_.shape;
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
      args_.lse[int64_t(head_) * s.tokens() + token] =
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
      reinterpret_cast<uint4*>(tile_row(args_.out, s, head_, token))[chunk] = value;
    }
  }

  const TileForwardArgs& args_;
  Storage<T>& shared_;
  Stream<T>& ring_;
  char (&buffers_)[T::kSlots][T::kStepBytes];
  const int head_, group_;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<T>& shared = *reinterpret_cast<Storage<T>*>(shared_bytes);
  if (threadIdx.x == 0) {
    for (uint64_t& full : shared.query_full) hopper::mbarrier_init(address_of(&full), 1);
    for (Stream<T>& stream : shared.stream) {
      for (uint64_t& full : stream.full) hopper::mbarrier_init(address_of(&full), 1);
      for (uint64_t& empty : stream.empty) hopper::mbarrier_init(address_of(&empty), 4 * kGroups / T::kStreams);
    }
    hopper::mbarrier_init_fence();
  }
  __syncthreads();
  const Rows rows = rows_of_block<T>(params.args);
  // Uniform across the warp, so that setmaxnreg and wgmma see converged warps.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hopper::register_decrease<kProducerRegisters>();
    if (warp >= T::kStreams || warp >= rows.pieces) return;
    Feed<T> feed(params, shared, rows, warp);
    feed.load_query(warp, rows.piece + warp);
    if (T::kShared) feed.load_query(1, rows.piece + rows.pieces - 1);
    feed.run();
  } else {
    hopper::register_increase<kMathRegisters>();
    const int group = warp / 4 - 1;
    if (!T::kShared && group >= rows.pieces) return;
    Attend<T>(params, shared, rows, group).run(rows.piece + min(group, rows.pieces - 1), group < rows.pieces);
  }
#endif
}

template <int D, bool kShared>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  using T = Config<D, kShared>;
  const TileShape& s = args.shape;
  Params params;
  params.args = args;
  const auto encode = [&](CUtensorMap* map, const void* data, int64_t rows) {
    return hopper::encode_row_map(map, data, D, rows, s.heads, s.batch, D, rows * D, rows * D * s.heads, kPieceRows);
  };
  cudaError_t error = encode(&params.q_map, args.q, s.tokens());
  if (error == cudaSuccess) error = encode(&params.k_map, args.k, s.tokens());
  if (error == cudaSuccess) error = encode(&params.v_map, args.v, s.tokens());
  if (args.means.keys != nullptr) {
    if (error == cudaSuccess) error = encode(&params.mean_k_map, args.means.keys, s.blocks);
    if (error == cudaSuccess) error = encode(&params.mean_v_map, args.means.values, s.blocks);
  }
  constexpr int kSharedBytes = sizeof(Storage<T>);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int64_t pairs = kShared ? s.row_pairs : (s.pieces() + 1) / 2;
  forward_kernel<T><<<unsigned(pairs * s.batch * s.heads), kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <int D>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  return args.shape.row_pairs > 0 ? launch<D, true>(args, stream) : launch<D, false>(args, stream);
}

}  // namespace

cudaError_t tile_forward(const TileForwardArgs& args, cudaStream_t stream) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (kernel_family(device) != 90) return cudaErrorNotSupported;
  if (!tile_shape_valid(args.shape)) return cudaErrorInvalidValue;
  return args.shape.head_dim == 64 ? launch<64>(args, stream) : launch<128>(args, stream);
}

}  // namespace vmoba::kernels
