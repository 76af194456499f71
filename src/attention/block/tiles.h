// Query tiles: queries that choose their blocks together (docs/attention.md, "Tile routing"). Inside every block its
// tokens, in permuted order, are cut into tiles of so many consecutive ones; the last tile of a block may be shorter.
//
// Tables depend on (partition, tile size, device) only. tile_tables() keeps a bounded cache of them and returns shared
// ownership; its tensors are constant. Safe to call from several threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/block/partition.h"

namespace vmoba::attention {

// Shape letters: S tokens, U tiles, C blocks.
struct TileTables {
  int64_t tiles = 0;
  int64_t tile_tokens = 0;           // as asked for; 0: blocks
  std::vector<int64_t> start;        // [U+1] on the host: first permuted position of each tile, then S
  std::vector<int64_t> block_start;  // [C+1] on the host: first tile of each block, then U
  at::Tensor start_U1;               // int32: start on the device
  at::Tensor tile_of_S;              // int64: permuted position -> tile
  at::Tensor block_of_U;             // int64
  at::Tensor tokens_U;               // fp64: tokens of each tile
};

// `tile_tokens` 0: a tile is a block. Throws Error(kInput) for a negative size.
std::shared_ptr<const TileTables> tile_tables(const Grid& grid, const Chunk& chunk, int64_t tile_tokens,
                                              at::Device device);

// How many tiles that makes, without tables.
int64_t tile_count(const Grid& grid, const Chunk& chunk, int64_t tile_tokens);

// Means of runs of permuted rows: x [S, D], `start` [R+1] -> [R, D], fp32 (fp64 of fp64).
at::Tensor means_of_runs_RD(const at::Tensor& x_SD, const std::vector<int64_t>& start);

}  // namespace vmoba::attention
