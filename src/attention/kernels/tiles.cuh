// What the tile kernels share: addresses of rows, and a piece's place.
#pragma once
#include <cuda_bf16.h>

#include <algorithm>
#include <iterator>

#include "attention/kernels/tiles.h"

namespace vmoba::kernels {

struct Piece {
  int begin = 0, rows = 0;  // permuted positions
};

__device__ __forceinline__ Piece piece_at(const TilePartition& partition, int piece) {
  const int begin = __ldg(partition.piece_begin + piece);
  return {begin, __ldg(partition.piece_begin + piece + 1) - begin};
}

// Rows of whole groups.
__host__ __device__ constexpr int in_groups(int rows) {
  return (rows + kGroupRows - 1) / kGroupRows * kGroupRows;
}

// Groups of rows in memory: those of all pieces one after the other, each piece's filled up where they are not packed.
__device__ __forceinline__ int first_group(const TileShape& shape, int piece, const Piece& own) {
  return shape.packed ? own.begin / kGroupRows : piece * (kPieceRows / kGroupRows);
}

// Which of (b, n) and, of it, which piece, or pair of pieces where `pairs` is not 0, is number `index`. Those of text
// go first: they meet everything, and one that is begun last would be waited for.
struct Turn {
  int head, number;
};

__device__ __forceinline__ Turn turn_of(const TileShape& shape, int pairs, int index) {
  const int text = pairs > 0 ? (shape.text_pieces() + 1) / 2 : shape.text_pieces();
  const int video = pairs > 0 ? pairs - text : shape.video_pieces, of_text = shape.batch * shape.heads * text;
  if (index < of_text) return {index / text, video + index % text};
  return {(index - of_text) / video, (index - of_text) % video};
}

__device__ __forceinline__ Piece key_piece_at(const TilePartition& partition, int piece) {
  const int begin = __ldg(partition.key_piece_begin + piece);
  return {begin, __ldg(partition.key_piece_begin + piece + 1) - begin};
}

__device__ __forceinline__ int tile_token(const TileShape& shape, const TilePartition& partition, int position) {
  return position < shape.video_tokens ? __ldg(partition.token_of + position) : position;
}

// First element of row `token` of (b, n) `head`.
__device__ __forceinline__ __nv_bfloat16* tile_row(const TensorView& view, const TileShape& shape, int head,
                                                   int64_t token) {
  return static_cast<__nv_bfloat16*>(view.data) + head / shape.heads * view.batch_stride +
         head % shape.heads * view.head_stride + token * view.token_stride;
}

// This thread's first row of its warpgroup's 64-row accumulator; the other is eight further.
__device__ __forceinline__ int own_row() {
  return int(threadIdx.x) % 128 / 32 * 16 + int(threadIdx.x) % 32 / 4;
}

// Of the current device.
inline cudaError_t multiprocessors(int& count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) : error;
}

// Persistent blocks of threads with a `Storage` of shared memory each: one a multiprocessor, and no more than `most`.
template <class Storage, class Params>
cudaError_t launch_persistent(void (*kernel)(Params), int64_t most, int threads, const Params& params,
                              cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(Storage);
  static_assert(kSharedBytes <= 227 * 1024);
  int processors = 0;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error == cudaSuccess) error = multiprocessors(processors);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(std::min<int64_t>(processors, most)), threads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

inline bool strip_rows_known(int rows) {
  return std::find(std::begin(kStripRows), std::end(kStripRows), rows) != std::end(kStripRows);
}

inline bool tile_shape_valid(const TileShape& s) {
  return s.batch > 0 && s.heads > 0 && (s.head_dim == 64 || s.head_dim == 128) && s.video_tokens > 0 &&
         s.text_tokens >= 0 && s.blocks > 0 && s.tiles >= s.blocks && s.video_pieces >= s.tiles &&
         s.pieces() <= 65535 && (s.packed == 0 || (s.head_dim == 128 && (s.key_pairs > 0 || s.strip_rows > 0))) &&
         (s.strip_rows == 0 || (s.packed != 0 && s.tiles == s.blocks && s.key_rows == kPieceRows &&
                                s.video_strips >= s.blocks && strip_rows_known(s.strip_rows))) &&
         (s.key_rows == kPieceRows ? s.video_key_pieces == s.video_pieces
                                   : s.key_rows == kLongPieceRows && s.head_dim == 128 && s.row_pairs > 0 &&
                                         s.key_pairs > 0 && s.video_key_pieces >= s.blocks);
}

}  // namespace vmoba::kernels
