// Launch interface of attention by query tiles: all queries of a tile attend the blocks that their tile chose
// (docs/attention.md, tile routing), and the means of the blocks it did not choose may stand for those in the same
// softmax (the remainder). Query-major, so that small blocks cost no partial outputs.
//
// As kernels.h: plain structs of device pointers, the caller owns all memory, every call is asynchronous on `stream`,
// never synchronises and never allocates; cudaErrorNotSupported for a GPU other than sm_90.
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

  constexpr int32_t tokens() const { return video_tokens + text_tokens; }
  constexpr int32_t pieces() const { return video_pieces + (text_tokens + kPieceRows - 1) / kPieceRows; }
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
};

// Which pieces meet: made by tile_index from the mask.
struct TileLists {
  uint16_t* keys = nullptr;       // [B, N, U, pieces] key pieces that a tile attends, ascending
  int32_t* key_count = nullptr;   // [B, N, U]
  uint16_t* rows = nullptr;       // [B, N, C, pieces] row pieces that attend a block, ascending
  int32_t* row_count = nullptr;   // [B, N, C]
  int32_t* row_tokens = nullptr;  // [B, N, C] rows that attend a block, those of text included
  const uint8_t* mask = nullptr;  // [B, N, U, C] 1 where the tile attends the block
};

// The means that stand for blocks which a tile does not attend; `keys` null: no remainder.
struct TileMeans {
  const void* keys = nullptr;    // [B, N, C, D] bf16
  const void* values = nullptr;  // [B, N, C, D] bf16
  const float* bias = nullptr;   // [B, N, C] natural log of the block's size, plus the head's beta
};

// Rows of x in permuted order, head by head: out[b, n, p, :] = x[b, token_of[p], n, :], bf16. Up to three at a time.
struct TileGatherArgs {
  TileShape shape;
  TilePartition partition;
  TensorView x[3];                             // unused: null data
  void* out[3] = {nullptr, nullptr, nullptr};  // [B, N, Z, D]
};
cudaError_t tile_gather(const TileGatherArgs& args, cudaStream_t stream);

// mean[b, n, m, :] = fp32 mean of x[b, n, begin[m] .. begin[m + 1], :], x bf16 [B, N, Z, D]; `rounded` (bf16) may be
// null.
cudaError_t tile_means(const TileShape& shape, const void* x, const int32_t* begin, int32_t count, float* mean,
                       void* rounded, cudaStream_t stream);

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
};
int64_t tile_backward_workspace_bytes(const TileShape& shape, bool means);
cudaError_t tile_backward(const TileBackwardArgs& args, cudaStream_t stream);

}  // namespace vmoba::kernels
