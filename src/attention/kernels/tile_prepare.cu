// What surrounds attention by query tiles: rows into permuted order, means of runs of rows, and the lists of pieces
// that meet. All of it moves bytes; no kernel here holds more than a row.
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 128;

// One thread for each 16 bytes; consecutive threads share a row.
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ TileGatherArgs args) {
  const TileShape& s = args.shape;
  const int chunks = s.head_dim / 8;
  const int64_t total = int64_t(s.batch) * s.heads * s.tokens() * chunks;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= total) return;
  const int chunk = int(index % chunks);
  const int64_t row = index / chunks;
  const int position = int(row % s.tokens()), head = int(row / s.tokens());
  const int64_t token = tile_token(s, args.partition, position);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (args.out[i] == nullptr) continue;
    const uint4* source = reinterpret_cast<const uint4*>(tile_row(args.x[i], s, head, token)) + chunk;
    static_cast<uint4*>(args.out[i])[index] = __ldg(source);
  }
}

struct MeansParams {
  TileShape shape;
  const __nv_bfloat16* x;
  const int32_t* begin;
  int32_t count;
  float* mean;
  __nv_bfloat16* rounded;
};

// One block a run of rows: D / 8 threads a row, the rows of a step summed in a fixed order at the end.
template <int D>
__global__ void __launch_bounds__(kThreads) means_kernel(const MeansParams params) {
  constexpr int kLanes = D / 8, kRows = kThreads / kLanes;
  __shared__ float sums[kRows][D];
  const int run = blockIdx.x, head = blockIdx.y;
  const int begin = params.begin[run], end = params.begin[run + 1];
  const int lane = threadIdx.x % kLanes, first = threadIdx.x / kLanes;
  float sum[8] = {};
  const uint4* rows = reinterpret_cast<const uint4*>(params.x + int64_t(head) * params.shape.tokens() * D);
  for (int p = begin + first; p < end; p += kRows) {
    const uint4 chunk = __ldg(rows + int64_t(p) * kLanes + lane);
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += __uint_as_float(words[i] << 16);
      sum[2 * i + 1] += __uint_as_float(words[i] & 0xffff0000u);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[first][lane * 8 + i] = sum[i];
  __syncthreads();
  for (int column = threadIdx.x; column < D; column += kThreads) {
    float total = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) total += sums[r][column];
    const int64_t at = (int64_t(head) * params.count + run) * D + column;
    const float mean = total / float(end - begin);
    params.mean[at] = mean;
    if (params.rounded != nullptr) params.rounded[at] = __float2bfloat16(mean);
  }
}

struct IndexParams {
  TileShape shape;
  TilePartition partition;
  TileLists lists;
};

// A warp writes one list: the numbers of the pieces that `meets` holds for, ascending; pieces of text always. Gives how
// many.
template <class Meets>
__device__ __forceinline__ int write_list(const TileShape& s, uint16_t* list, const Meets& meets) {
  const int lane = threadIdx.x % 32, pieces = s.pieces();
  int written = 0;
  for (int first = 0; first < pieces; first += 32) {
    const int piece = first + lane;
    const bool taken = piece < pieces && (piece >= s.video_pieces || meets(piece));
    const uint32_t votes = __ballot_sync(0xffffffffu, taken);
    if (taken) list[written + __popc(votes & ((1u << lane) - 1))] = uint16_t(piece);
    written += __popc(votes);
  }
  return written;
}

__global__ void __launch_bounds__(kThreads) key_lists_kernel(const IndexParams params) {
  const TileShape& s = params.shape;
  const int tile = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, head = blockIdx.y;
  if (tile >= s.tiles) return;
  const int64_t list = int64_t(head) * s.tiles + tile;
  const uint8_t* mask = params.lists.mask + list * s.blocks;
  const int count = write_list(s, params.lists.keys + list * s.pieces(),
                               [&](int piece) { return mask[__ldg(params.partition.piece_block + piece)] != 0; });
  if (threadIdx.x % 32 == 0) params.lists.key_count[list] = count;
}

__global__ void __launch_bounds__(kThreads) row_lists_kernel(const IndexParams params) {
  const TileShape& s = params.shape;
  const int block = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, head = blockIdx.y;
  if (block >= s.blocks) return;
  const int64_t list = int64_t(head) * s.blocks + block;
  const uint8_t* mask = params.lists.mask + int64_t(head) * s.tiles * s.blocks + block;
  int tokens = threadIdx.x % 32 == 0 ? s.text_tokens : 0;
  const int count = write_list(s, params.lists.rows + list * s.pieces(), [&](int piece) {
    const bool attends = mask[int64_t(__ldg(params.partition.piece_tile + piece)) * s.blocks] != 0;
    if (attends) tokens += piece_at(params.partition, piece).rows;
    return attends;
  });
#pragma unroll
  for (int i = 16; i > 0; i /= 2) tokens += __shfl_xor_sync(0xffffffffu, tokens, i);
  if (threadIdx.x % 32 != 0) return;
  params.lists.row_count[list] = count;
  params.lists.row_tokens[list] = tokens;
}

}  // namespace

cudaError_t tile_gather(const TileGatherArgs& args, cudaStream_t stream) {
  if (!tile_shape_valid(args.shape)) return cudaErrorInvalidValue;
  const TileShape& s = args.shape;
  const int64_t threads = int64_t(s.batch) * s.heads * s.tokens() * (s.head_dim / 8);
  gather_kernel<<<unsigned((threads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t tile_means(const TileShape& shape, const void* x, const int32_t* begin, int32_t count, float* mean,
                       void* rounded, cudaStream_t stream) {
  if (!tile_shape_valid(shape) || count < 1) return cudaErrorInvalidValue;
  const MeansParams params{shape, static_cast<const __nv_bfloat16*>(x), begin, count,
                           mean,  static_cast<__nv_bfloat16*>(rounded)};
  const dim3 grid(unsigned(count), unsigned(shape.batch * shape.heads));
  if (shape.head_dim == 64)
    means_kernel<64><<<grid, kThreads, 0, stream>>>(params);
  else
    means_kernel<128><<<grid, kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

cudaError_t tile_index(const TileShape& shape, const TilePartition& partition, const TileLists& lists,
                       cudaStream_t stream) {
  if (!tile_shape_valid(shape)) return cudaErrorInvalidValue;
  const IndexParams params{shape, partition, lists};
  constexpr int kLists = kThreads / 32;
  const auto heads = unsigned(shape.batch * shape.heads);
  key_lists_kernel<<<dim3((shape.tiles + kLists - 1) / kLists, heads), kThreads, 0, stream>>>(params);
  row_lists_kernel<<<dim3((shape.blocks + kLists - 1) / kLists, heads), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels
