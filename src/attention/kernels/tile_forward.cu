// Forward of attention by query tiles on sm_90a: one warpgroup a piece of query rows, which walks the list of key
// pieces that its tile attends and then the means of the blocks that it does not.
//
// Three or four small blocks of threads share a multiprocessor and hide each other's arithmetic, so no warp is
// specialised. The QK^T of the next piece is issued before the PV of this one, which then runs beside the softmax of
// the next. Keys and values come through one ring in the order of their use, K0 K1 V0 K2 V1 K3 ..., so that three
// buffers are enough: thread 0 asks TMA for a piece as soon as all warps have read what lay in its place.
#include "attention/kernels/forward_sm90.cuh"
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 128;

template <int D>
struct Config {
  static constexpr int kHeadDim = D;
  static constexpr int kKeyTile = kPieceRows;
  static constexpr int kPanels = D / hopper::kPanelColumns;
  static constexpr int kRowPanelBytes = kPieceRows * hopper::kPanelRowBytes;
  static constexpr int kKeyPanelBytes = kRowPanelBytes;
  static constexpr int kPieceBytes = kPanels * kRowPanelBytes;
  static constexpr int kSlots = D == 128 ? 3 : 5;                                       // of the ring; odd
  static constexpr int kValuesAhead = (kSlots - 1) / 2, kKeysAhead = (kSlots + 3) / 2;  // steps, where a slot is free
  static constexpr int kBlocksPerSm = D == 128 ? 3 : 4;
};

template <class T>
struct Storage {
  alignas(1024) char query[T::kPieceBytes];
  alignas(1024) char ring[T::kSlots][T::kPieceBytes];
  alignas(16) float bias[2][kPieceRows];
  uint32_t never_written;  // see keep_before_wait
  uint64_t query_full, ring_full[T::kSlots], ring_empty[T::kSlots];
};

struct Params {
  CUtensorMap q_map, k_map, v_map, mean_k_map, mean_v_map;
  TileForwardArgs args;
};

__device__ __forceinline__ uint32_t address_of(const void* object) {
  return hopper::smem_address(object);
}

// The steps of one piece of rows: key pieces of its list, then pieces of means.
struct Steps {
  const uint16_t* list;  // null: every piece
  int pieces, means;
  __device__ __forceinline__ int piece(int step) const { return list == nullptr ? step : __ldg(list + step); }
};

__device__ __forceinline__ Steps steps_of(const TileForwardArgs& args, int head, int piece, int& tile) {
  const TileShape& s = args.shape;
  if (piece >= s.video_pieces) {
    tile = -1;
    return {nullptr, s.pieces(), 0};
  }
  tile = __ldg(args.partition.piece_tile + piece);
  const int64_t list = int64_t(head) * s.tiles + tile;
  return {args.lists.keys + list * s.pieces(), __ldg(args.lists.key_count + list),
          args.means.keys != nullptr ? s.mean_pieces() : 0};
}

// Keys from `valid` on belong to another piece.
template <class T>
__device__ __forceinline__ void mask_keys(forward_sm90::RowState<T>& state, int valid) {
  if (valid >= T::kKeyTile) return;
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < T::kKeyTile / 2; ++i) {
    if (i / 4 * 8 + i % 2 + column >= valid) state.scores[i] = -INFINITY;
  }
}

// Means of blocks that the tile attends take no part; the others bring the logarithm of what they stand for.
template <class T>
__device__ __forceinline__ void add_bias(forward_sm90::RowState<T>& state, const float* bias) {
#pragma unroll
  for (int j = 0; j < T::kKeyTile / 8; ++j) {
    const float2 added = *reinterpret_cast<const float2*>(bias + j * 8 + threadIdx.x % 4 * 2);
    state.scores[j * 4] += added.x;
    state.scores[j * 4 + 1] += added.y;
    state.scores[j * 4 + 2] += added.x;
    state.scores[j * 4 + 3] += added.y;
  }
}

// Normalised rows through the query buffer to the original order, 128-byte lines, and the rows' log-sum-exps.
template <class T>
__device__ __forceinline__ void finish(const TileForwardArgs& args, Storage<T>& shared,
                                       forward_sm90::RowState<T>& state, const Piece& own, int head, float scale_log2) {
  const TileShape& s = args.shape;
  const int lane = threadIdx.x % 32, warp_row = int(threadIdx.x) / 32 * 16;
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
    hopper::stmatrix_x4(address_of(shared.query) + chunk / 8 * T::kRowPanelBytes +
                            hopper::swizzled_offset(warp_row + lane % 16, chunk % 8),
                        hopper::pack_bf16(o[0] * inverse[0], o[1] * inverse[0]),
                        hopper::pack_bf16(o[2] * inverse[1], o[3] * inverse[1]),
                        hopper::pack_bf16(o[4] * inverse[0], o[5] * inverse[0]),
                        hopper::pack_bf16(o[6] * inverse[1], o[7] * inverse[1]));
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + lane / 4 + r * 8;
    if (lane % 4 != 0 || row >= own.rows) continue;
    const int token = tile_token(s, args.partition, own.begin + row);
    args.lse[int64_t(head) * s.tokens() + token] =
        (fmaf(state.maximum[r], scale_log2, __log2f(total[r]))) * 0.6931471805599453f;
  }
  __syncwarp();
  // A warp's own 16 rows: nobody else wrote them.
  constexpr int kLanes = T::kHeadDim / 8;
#pragma unroll
  for (int first = 0; first < 16; first += 32 / kLanes) {
    const int row = warp_row + first + lane / kLanes, chunk = lane % kLanes;
    const uint4 value = *reinterpret_cast<const uint4*>(shared.query + chunk / 8 * T::kRowPanelBytes +
                                                        hopper::swizzled_offset(row, chunk % 8));
    if (row >= own.rows) continue;
    const int token = tile_token(s, args.partition, own.begin + row);
    reinterpret_cast<uint4*>(tile_row(args.out, s, head, token))[chunk] = value;
  }
}

// One piece of rows against the steps of its tile. Use number i of the ring: K0, then K(n+1) and V(n) in turn.
template <class T>
class Attend {
 public:
  __device__ __forceinline__ Attend(const Params& params, Storage<T>& shared)
      : params_(params),
        args_(params.args),
        shared_(shared),
        head_(int(blockIdx.x) / params.args.shape.pieces()),
        piece_(int(blockIdx.x) % params.args.shape.pieces()) {}

  __device__ __forceinline__ void run() {
    steps_ = steps_of(args_, head_, piece_, tile_);
    total_ = steps_.pieces + steps_.means;
    const Piece own = piece_at(args_.partition, piece_);
    const float scale_log2 = args_.scale * 1.4426950408889634f;
    if (threadIdx.x == 0) {
      hopper::mbarrier_arrive_expect(address_of(&shared_.query_full), T::kPieceBytes);
      load_panels(&params_.q_map, shared_.query, shared_.query_full, own.begin);
      for (int use = 0; use < T::kSlots; ++use) load(use, row_of(step_of(use)));
    }
    forward_sm90::RowState<T> state;
    float rescale[2];
    int keys = keys_of(0);
    hopper::mbarrier_wait(address_of(&shared_.query_full), 0);
    issue_scores(state, 0);
    prepare_bias(0);
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.scores);
    release(0, row_of(step_of(T::kSlots)));
    // Rows of the steps to come, so that no look-up stands before a load.
    int ahead[T::kKeysAhead + 1];
#pragma unroll
    for (int i = 0; i <= T::kKeysAhead; ++i) ahead[i] = row_of(i);
    softmax(state, 0, keys, scale_log2, rescale);
    forward_sm90::pack_probabilities<T>(state);
#pragma unroll 1
    for (int step = 0; step + 1 < total_; ++step) {
      keys = keys_of(step + 1);
      issue_scores(state, 2 * step + 1);
      issue_output(state, 2 * step + 2, step > 0);
      prepare_bias(step + 1);
      hopper::wgmma_wait<1>();
      hopper::wgmma_fence_operand(state.scores);
      release(2 * step + 1, ahead[T::kValuesAhead]);
      softmax(state, step + 1, keys, scale_log2, rescale);
      hopper::wgmma_fence_operand(state.scores);
      forward_sm90::keep_before_wait(state.sum[0] + state.sum[1], address_of(&shared_.never_written));
      hopper::wgmma_wait<0>();
      hopper::wgmma_fence_operand(state.output);
      release(2 * step + 2, ahead[T::kKeysAhead]);
      forward_sm90::pack_probabilities<T>(state);
      forward_sm90::rescale_output<T>(state, rescale);
#pragma unroll
      for (int i = 0; i < T::kKeysAhead; ++i) ahead[i] = ahead[i + 1];
      ahead[T::kKeysAhead] = row_of(step + 1 + T::kKeysAhead);
    }
    issue_output(state, 2 * total_, total_ > 1);
    hopper::wgmma_wait<0>();
    hopper::wgmma_fence_operand(state.output);
    finish<T>(args_, shared_, state, own, head_, scale_log2);
  }

 private:
  __device__ __forceinline__ int keys_of(int step) const {
    return step < steps_.pieces ? piece_at(args_.partition, steps_.piece(step)).rows : kPieceRows;
  }

  __device__ __forceinline__ void load_panels(const CUtensorMap* map, const char* target, uint64_t& full, int row) {
#pragma unroll
    for (int panel = 0; panel < T::kPanels; ++panel) {
      hopper::tma_load_4d(address_of(target) + panel * T::kRowPanelBytes, map, address_of(&full),
                          panel * hopper::kPanelColumns, row, head_ % args_.shape.heads, head_ / args_.shape.heads);
    }
  }

  // First row of a step's keys among the keys, or the complement of that among the means.
  __device__ __forceinline__ int row_of(int step) const {
    if (step >= total_) return 0;
    return step < steps_.pieces ? __ldg(args_.partition.piece_begin + steps_.piece(step))
                                : ~((step - steps_.pieces) * kPieceRows);
  }

  // What use number `use` reads, if there is such a step; `row` is its row_of().
  __device__ __forceinline__ void load(int use, int row) {
    const bool value = use > 0 && use % 2 == 0, mean = row < 0;
    if (step_of(use) >= total_) return;
    const CUtensorMap* map =
        value ? (mean ? &params_.mean_v_map : &params_.v_map) : (mean ? &params_.mean_k_map : &params_.k_map);
    uint64_t& full = shared_.ring_full[use % T::kSlots];
    hopper::mbarrier_arrive_expect(address_of(&full), T::kPieceBytes);
    load_panels(map, shared_.ring[use % T::kSlots], full, mean ? ~row : row);
  }
  __device__ __forceinline__ static int step_of(int use) {
    return use > 0 && use % 2 == 0 ? use / 2 - 1 : (use + 1) / 2;
  }

  // This warp has read what use number `use` loaded; `row` is the row_of() of what takes its place.
  __device__ __forceinline__ void release(int use, int row) {
    const uint32_t empty = address_of(&shared_.ring_empty[use % T::kSlots]);
    if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(empty);
    if (threadIdx.x == 0) {
      hopper::mbarrier_wait(empty, use / T::kSlots & 1);
      load(use + T::kSlots, row);
    }
    __syncwarp();
  }

  __device__ __forceinline__ uint32_t loaded(int use) {
    hopper::mbarrier_wait(address_of(&shared_.ring_full[use % T::kSlots]), use / T::kSlots & 1);
    return address_of(shared_.ring[use % T::kSlots]);
  }
  __device__ __forceinline__ void issue_scores(forward_sm90::RowState<T>& state, int use) {
    forward_sm90::issue_scores<T>(state, hopper::descriptor_k_major(address_of(shared_.query)),
                                  hopper::descriptor_k_major(loaded(use)));
  }
  __device__ __forceinline__ void issue_output(forward_sm90::RowState<T>& state, int use, bool accumulate) {
    forward_sm90::issue_output<T>(state, hopper::descriptor_mn_major(loaded(use), T::kKeyPanelBytes), accumulate);
  }

  __device__ __forceinline__ void prepare_bias(int step) {
    if (step < steps_.pieces) return;
    if (threadIdx.x < kPieceRows) {
      const int mean = (step - steps_.pieces) * kPieceRows + int(threadIdx.x), blocks = args_.shape.blocks;
      const uint8_t* mask = args_.lists.mask + (int64_t(head_) * args_.shape.tiles + tile_) * blocks;
      const bool enters = mean < blocks && mask[mean] == 0;
      shared_.bias[step % 2][threadIdx.x] =
          enters ? __ldg(args_.means.bias + int64_t(head_) * blocks + mean) / args_.scale : -INFINITY;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void softmax(forward_sm90::RowState<T>& state, int step, int keys, float scale_log2,
                                          float (&rescale)[2]) {
    if (step < steps_.pieces)
      mask_keys<T>(state, keys);
    else
      add_bias<T>(state, shared_.bias[step % 2]);
    forward_sm90::softmax<T>(state, step == 0, T::kKeyTile, scale_log2, rescale);
  }

  const Params& params_;
  const TileForwardArgs& args_;
  Storage<T>& shared_;
  const int head_, piece_;
  int tile_ = 0, total_ = 0;
  Steps steps_{};
};

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerSm) forward_kernel(const __grid_constant__ Params params) {
#ifdef VMOBA_HOPPER_CODE
  extern __shared__ __align__(1024) char shared_bytes[];
  Storage<T>& shared = *reinterpret_cast<Storage<T>*>(shared_bytes);
  if (threadIdx.x == 0) {
    hopper::mbarrier_init(address_of(&shared.query_full), 1);
    for (uint64_t& barrier : shared.ring_full) hopper::mbarrier_init(address_of(&barrier), 1);
    for (uint64_t& barrier : shared.ring_empty) hopper::mbarrier_init(address_of(&barrier), kThreads / 32);
    hopper::mbarrier_init_fence();
  }
  __syncthreads();
  Attend<T>(params, shared).run();
#endif
}

template <int D>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  using T = Config<D>;
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
  forward_kernel<T><<<unsigned(s.batch * s.heads * s.pieces()), kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
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
