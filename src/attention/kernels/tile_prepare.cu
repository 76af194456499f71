// What surrounds attention by query tiles: rows into permuted order with the means of runs of them, and the lists of
// pieces that meet. All of it moves bytes.
#include <algorithm>

#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kListsOfBlock = kThreads / 32;

// One block of threads a run of rows: D / 8 threads a row, the rows of a step summed in a fixed order at the end. Text
// follows the runs, a piece a block.
template <int D>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ TileGatherArgs args) {
  constexpr int kLanes = D / 8, kRows = kThreads / kLanes, kLoads = 8;
  __shared__ float sums[kRows][D];
  const TileShape& s = args.shape;
  const int tensor = blockIdx.z, head = blockIdx.y, run = blockIdx.x;
  const TileRuns& runs = args.runs[tensor];
  if (args.x[tensor].data == nullptr) return;
  const bool text = run >= runs.count;
  const int begin = text ? s.video_tokens + (run - runs.count) * kPieceRows : __ldg(runs.begin + run);
  const int end = text ? min(begin + kPieceRows, s.tokens()) : __ldg(runs.begin + run + 1);
  const int lane = threadIdx.x % kLanes, first = threadIdx.x / kLanes;
  uint4* const out = static_cast<uint4*>(args.out[tensor]);
  float sum[8] = {};
  for (int batch = begin + first; batch < end; batch += kLoads * kRows) {
    uint4 chunk[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int p = batch + i * kRows;
      if (p >= end) break;
      const int token = tile_token(s, args.partition, p);
      chunk[i] = __ldg(reinterpret_cast<const uint4*>(tile_row(args.x[tensor], s, head, token)) + lane);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int p = batch + i * kRows;
      if (p >= end) break;
      if (out != nullptr) out[(int64_t(head) * s.tokens() + p) * kLanes + lane] = chunk[i];
      const uint32_t words[4] = {chunk[i].x, chunk[i].y, chunk[i].z, chunk[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[2 * j] += __uint_as_float(words[j] << 16);
        sum[2 * j + 1] += __uint_as_float(words[j] & 0xffff0000u);
      }
    }
  }
  if (text || runs.mean == nullptr) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[first][lane * 8 + i] = sum[i];
  __syncthreads();
  for (int column = threadIdx.x; column < D; column += kThreads) {
    float total = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) total += sums[r][column];
    const int64_t at = (int64_t(head) * runs.count + run) * D + column;
    const float mean = total / float(end - begin);
    runs.mean[at] = mean;
    if (runs.rounded != nullptr) static_cast<__nv_bfloat16*>(runs.rounded)[at] = __float2bfloat16(mean);
  }
}

struct IndexParams {
  TileShape shape;
  TilePartition partition;
  TileLists lists;
};

// A warp writes one list: the numbers of the pieces that `meets` holds for, ascending. Gives how many.
template <class Meets>
__device__ __forceinline__ int write_list(uint16_t* list, int pieces, const Meets& meets) {
  constexpr int kLookUps = 4;  // in flight at a time
  const int lane = threadIdx.x % 32;
  int written = 0;
  for (int first = 0; first < pieces; first += 32 * kLookUps) {
    bool taken[kLookUps];
#pragma unroll
    for (int i = 0; i < kLookUps; ++i) {
      const int piece = first + 32 * i + lane;
      taken[i] = piece < pieces && meets(piece);
    }
#pragma unroll
    for (int i = 0; i < kLookUps; ++i) {
      const uint32_t votes = __ballot_sync(0xffffffffu, taken[i]);
      if (taken[i]) list[written + __popc(votes & ((1u << lane) - 1))] = uint16_t(first + 32 * i + lane);
      written += __popc(votes);
    }
  }
  return written;
}

__device__ __forceinline__ int warp_sum(int value) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) value += __shfl_xor_sync(0xffffffffu, value, i);
  return value;
}

__device__ __forceinline__ void write_key_list(const IndexParams& params, int head, int tile) {
  const TileShape& s = params.shape;
  const int64_t list = int64_t(head) * s.tiles + tile;
  const uint8_t* mask = params.lists.mask + list * s.blocks;
  uint16_t* keys = params.lists.keys + list * s.key_pieces();
  const bool strips = s.strip_rows > 0;
  int tokens = threadIdx.x % 32 == 0 ? s.text_tokens : 0;
  const auto attends = [&](int piece) {
    return piece >= s.video_key_pieces || __ldg(mask + __ldg(params.partition.key_piece_block + piece)) != 0;
  };
  // Whole pieces first, so that only the last steps are put together of parts.
  int count = write_list(keys, s.key_pieces(), [&](int piece) {
    const bool meets = attends(piece);
    if (!strips || !meets) return meets;
    const int of_piece = key_piece_at(params.partition, piece).rows;
    if (piece < s.video_key_pieces) tokens += of_piece;
    return of_piece == kPieceRows;
  });
  if (strips) {
    count += write_list(keys + count, s.key_pieces(), [&](int piece) {
      return key_piece_at(params.partition, piece).rows < kPieceRows && attends(piece);
    });
    tokens = warp_sum(tokens);
  }
  if (threadIdx.x % 32 != 0) return;
  params.lists.key_count[list] = count;
  if (strips) params.lists.key_tokens[list] = tokens;
}

__device__ __forceinline__ void write_row_list(const IndexParams& params, int head, int block) {
  const TileShape& s = params.shape;
  const int64_t list = int64_t(head) * s.blocks + block;
  const uint8_t* mask = params.lists.mask + int64_t(head) * s.tiles * s.blocks + block;
  int tokens = threadIdx.x % 32 == 0 ? s.text_tokens : 0;
  const auto attends = [&](int piece) {
    return piece >= s.video_pieces || __ldg(mask + int64_t(__ldg(params.partition.piece_tile + piece)) * s.blocks) != 0;
  };
  uint16_t* rows = params.lists.rows + list * s.pieces();
  // Whole pieces first, so that only the last steps are put together of parts.
  int count = write_list(rows, s.pieces(), [&](int piece) {
    const int of_piece = piece_at(params.partition, piece).rows;
    const bool meets = attends(piece);
    if (meets && piece < s.video_pieces) tokens += of_piece;
    return meets && (!s.packed || of_piece == kPieceRows);
  });
  if (s.packed) {
    count += write_list(rows + count, s.pieces(), [&](int piece) {
      return piece_at(params.partition, piece).rows < kPieceRows && attends(piece);
    });
  }
  tokens = warp_sum(tokens);
  if (threadIdx.x % 32 != 0) return;
  params.lists.row_count[list] = count;
  int32_t* row_tokens = params.lists.row_tokens + int64_t(head) * s.key_blocks();
  row_tokens[block] = tokens;
  if (block == 0 && s.text_tokens > 0) row_tokens[s.blocks] = s.tokens();
}

__global__ void __launch_bounds__(kThreads) lists_kernel(const __grid_constant__ IndexParams params) {
  const int list = blockIdx.x * kListsOfBlock + threadIdx.x / 32, tiles = params.shape.tiles;
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < 2) params.lists.next[threadIdx.x] = 0;
  if (list < tiles)
    write_key_list(params, blockIdx.y, list);
  else if (list < tiles + params.shape.blocks)
    write_row_list(params, blockIdx.y, list - tiles);
}

template <int D>
cudaError_t launch_gather(const TileGatherArgs& args, cudaStream_t stream) {
  const TileShape& s = args.shape;
  int runs = 0;
  for (int i = 0; i < 3; ++i) {
    if (args.x[i].data == nullptr) continue;
    if (args.runs[i].begin == nullptr || args.runs[i].count < 1) return cudaErrorInvalidValue;
    runs = std::max(runs, args.runs[i].count);
  }
  const dim3 grid(unsigned(runs + s.pieces() - s.video_pieces), unsigned(s.batch * s.heads), 3);
  gather_kernel<D><<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t tile_gather(const TileGatherArgs& args, cudaStream_t stream) {
  if (!tile_shape_valid(args.shape)) return cudaErrorInvalidValue;
  return args.shape.head_dim == 64 ? launch_gather<64>(args, stream) : launch_gather<128>(args, stream);
}

cudaError_t tile_index(const TileShape& shape, const TilePartition& partition, const TileLists& lists,
                       cudaStream_t stream) {
  if (!tile_shape_valid(shape)) return cudaErrorInvalidValue;
  const IndexParams params{shape, partition, lists};
  const unsigned blocks = unsigned(shape.tiles + shape.blocks + kListsOfBlock - 1) / kListsOfBlock;
  lists_kernel<<<dim3(blocks, unsigned(shape.batch * shape.heads)), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels
