// Launch interface of attention by query tiles: all queries of a tile attend the blocks that their tile chose
// (docs/attention.md, tile routing), and the means of the blocks it did not choose may stand for those in the same
// softmax (the remainder). Query-major, so that small blocks cost no partial outputs.
//
// As kernels.h: plain structs of device pointers, the caller owns all memory, every call is asynchronous on `stream`,
// never synchronises and never allocates. `family` is kernel_family()'s `wanted`; family 80 takes shapes without pairs.
//
// Words: B samples, N heads, D head size, S video tokens, X text tokens behind them, Z = S + X, C blocks, U query
// tiles. Blocks and tiles are runs of permuted positions and are cut into *pieces* of at most 64 positions, the unit of
// work: a tile holds whole pieces and a block whole tiles. Pieces of text follow those of video. Text keys are attended
// by every row and text rows attend every key; text has no tile, no block and no mean.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/kernels/kernels.h"

namespace vmoba::kernels {

constexpr int kPieceRows = 64;
constexpr int kGroupRows = 8;           // the smallest part of a piece that is handled on its own
constexpr int kLongPieceRows = 72;      // of keys, where that fits the blocks better
constexpr int kStripRows[] = {72, 80};  // of a strip, see TileShape

struct TileShape {
  int32_t batch = 1;         // B
  int32_t heads = 1;         // N
  int32_t head_dim = 128;    // D: 64 or 128
  int32_t video_tokens = 0;  // S
  int32_t text_tokens = 0;   // X
  int32_t blocks = 1;        // C
  int32_t tiles = 1;         // U
  int32_t video_pieces = 1;  // of all blocks together
  int32_t row_pairs = 0;     // see TilePartition; 0: pieces of different tiles go together
  int32_t key_pairs = 0;     // 0: keys are handled piece by piece
  // Positions of a piece of keys, at most: kPieceRows, and then the pieces of keys are those of rows, or, with pairs of
  // both and D = 128, kLongPieceRows.
  int32_t key_rows = kPieceRows;
  int32_t video_key_pieces = 1;
  // 1: every piece of rows begins at and, but for the last of text, holds a multiple of kGroupRows positions, and the
  // backward fills its steps with rows of several pieces. With pairs of keys and D = 128.
  int32_t packed = 0;
  // Where tiles are blocks, packed and with pieces of keys like those of rows: cubes and text are also cut into strips
  // of at most so many positions, which kStripRows has, and then a strip is the unit of work. 0: pieces are.
  int32_t strip_rows = 0;
  int32_t video_strips = 0;

  constexpr int32_t tokens() const { return video_tokens + text_tokens; }
  constexpr int32_t text_pieces() const { return (text_tokens + kPieceRows - 1) / kPieceRows; }
  constexpr int32_t pieces() const { return video_pieces + text_pieces(); }
  constexpr int32_t key_pieces() const { return video_key_pieces + (text_tokens + key_rows - 1) / key_rows; }
  constexpr int32_t key_blocks() const { return blocks + (text_tokens > 0 ? 1 : 0); }
  constexpr int32_t row_groups() const {
    return packed ? (tokens() + kGroupRows - 1) / kGroupRows : pieces() * (kPieceRows / kGroupRows);
  }
  constexpr int32_t strips() const {
    return strip_rows == 0 ? 0 : video_strips + (text_tokens + strip_rows - 1) / strip_rows;
  }
  constexpr int32_t mean_pieces() const { return (blocks + kPieceRows - 1) / kPieceRows; }
};

// Device tables of one partition.
struct TilePartition {
  const int32_t* token_of = nullptr;     // [S] permuted position -> original token
  const int32_t* piece_begin = nullptr;  // [pieces + 1] first permuted position of each piece, text included
  const int32_t* piece_block = nullptr;  // [video_pieces]
  const int32_t* piece_tile = nullptr;   // [video_pieces]
  const int32_t* block_begin = nullptr;  // [C + 1] first permuted position of each block
  const int32_t* tile_block = nullptr;   // [U] the block that a tile lies in
  // First pieces of pairs: one or two pieces of a tile, which share its list of keys ([row_pairs + 1]), or of a block,
  // which share its list of rows ([key_pairs + 1]); those of text follow. Needed where the shape has pairs.
  const int32_t* row_pair = nullptr;
  const int32_t* key_pair = nullptr;
  const int32_t* key_piece_begin = nullptr;  // as piece_begin and piece_block, of pieces of keys
  const int32_t* key_piece_block = nullptr;
  const int32_t* strip_begin = nullptr;  // [strips + 1] first permuted position of each strip, text included
  const int32_t* strip_block = nullptr;  // [video_strips]
};

// Which pieces meet: made by tile_index from the mask.
struct TileLists {
  // [B, N, U, key_pieces] key pieces that a tile attends, ascending; with strips, whole ones first
  uint16_t* keys = nullptr;
  int32_t* key_count = nullptr;  // [B, N, U]
  uint16_t* rows = nullptr;  // [B, N, C, pieces] row pieces that attend a block, ascending; packed, whole ones first
  int32_t* row_count = nullptr;   // [B, N, C]
  int32_t* row_tokens = nullptr;  // [B, N, E] rows that attend a block, those of text included; E = C, or, where there
                                  // is text, C + 1 with the text, which all attend
  int32_t* key_tokens = nullptr;  // [B, N, U] keys that a tile attends, those of text included; with strips
  uint32_t* next = nullptr;       // [2] counters of the forward, which leaves them at zero as tile_index does
  const uint8_t* mask = nullptr;  // [B, N, U, C] 1 where the tile attends the block
};

// The means that stand for blocks which a tile does not attend; `keys` null: no remainder.
struct TileMeans {
  const void* keys = nullptr;    // [B, N, C, D] bf16
  const void* values = nullptr;  // [B, N, C, D] bf16
  const float* bias = nullptr;   // [B, N, C] natural log of the block's size, plus the head's beta
};

// Runs of permuted rows that follow each other from the first to the last row of video.
struct TileRuns {
  const int32_t* begin = nullptr;  // [count + 1] first permuted position of each
  int32_t count = 0;
  float* mean = nullptr;    // [B, N, count, D] the rows' mean, in fp32; null: not wanted
  void* rounded = nullptr;  // the same as bf16
};

// Rows of x in permuted order, head by head, and means of runs of them: out[b, n, p, :] = x[b, token_of[p], n, :],
// bf16. Up to three tensors at a time, each read once.
struct TileGatherArgs {
  TileShape shape;
  TilePartition partition;
  TensorView x[3];                             // unused: null data
  void* out[3] = {nullptr, nullptr, nullptr};  // [B, N, Z, D]; null: the means alone
  TileRuns runs[3];
};
cudaError_t tile_gather(const TileGatherArgs& args, cudaStream_t stream);

// Every tile attends its own block and, of the others, the topk - 1 with the greatest gates; of equal ones the lower
// block first.
struct TileTopkArgs {
  TileShape shape;
  TilePartition partition;
  const float* gate = nullptr;  // [B, N, U, C]
  int32_t topk = 1;
  const uint8_t* one_more = nullptr;  // [N, U] 1 where the tile takes one block more; null: nowhere
  uint8_t* mask = nullptr;            // [B, N, U, C], see TileLists
};
cudaError_t tile_topk(const TileTopkArgs& args, cudaStream_t stream);

// Fills the lists from lists.mask.
cudaError_t tile_index(const TileShape& shape, const TilePartition& partition, const TileLists& lists,
                       cudaStream_t stream);

// out[b,i,n,:] = softmax over the keys of the tile's blocks, the text keys and the means of the other blocks of
// (q.k * scale + bias) times v.
struct TileForwardArgs {
  TileShape shape;
  TilePartition partition;
  TileLists lists;
  const void *q = nullptr, *k = nullptr, *v = nullptr;  // bf16 [B, N, Z, D], permuted
  TileMeans means;
  TensorView out;        // bf16 [B, Z, N, D], original order
  float* lse = nullptr;  // [B, N, Z], original order, natural log, the means' share included
  float scale = 0;       // 1/sqrt(D)
  int32_t family = 0;
};
cudaError_t tile_forward(const TileForwardArgs& args, cudaStream_t stream);

// Gradients of the above with the selection held constant. With pairs of keys (D = 128) sums of dq are fp32 atomics,
// whose last bits may differ from run to run; without, everything is bitwise the same in every run.
struct TileBackwardArgs {
  TileShape shape;
  TilePartition partition;
  TileLists lists;
  const void *q = nullptr, *k = nullptr, *v = nullptr;  // bf16 [B, N, Z, D], permuted
  TileMeans means;
  TensorView out, dout;        // bf16 [B, Z, N, D], original order
  const float* lse = nullptr;  // [B, N, Z], original order
  TensorView dq, dk, dv;       // bf16 [B, Z, N, D], original order
  float* dbias = nullptr;      // [B, N, mean_pieces] sums of the gradients of means.bias; null without means
  float scale = 0;
  void* workspace = nullptr;
  int32_t family = 0;
};
int64_t tile_backward_workspace_bytes(const TileShape& shape, bool means);
cudaError_t tile_backward(const TileBackwardArgs& args, cudaStream_t stream);

}  // namespace vmoba::kernels
