// What the native engines keep of a call's selection for backward; see `index` in native/engine.cpp and
// native/tile_engine.cpp, which make these tensors. Counts shapes, no GPU is asked.
#include "attention/attention.h"
#include "attention/block/partition.h"
#include "attention/block/tiles.h"
#include "attention/kernel_work.h"
#include "attention/kernels/kernels.h"
#include "attention/kernels/tiles.h"
#include "attention/method.h"

namespace vmoba::attention {
namespace {

constexpr double kBf16Bytes = 2;

int64_t kernel_head_dim(int64_t head_dim) {
  return head_dim <= 64 ? 64 : 128;
}

// Q, K and V in the order of tiles; for each tile of queries the pieces of keys that it meets, for each block those of
// rows, and the mask.
double tile_bytes(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, int64_t heads, int64_t head_dim) {
  const auto tiles = tile_tables(grid, layer.chunk, query_tile(layer), at::kCPU);
  const auto pieces_of = [](int64_t tokens) { return (tokens + kernels::kPieceRows - 1) / kernels::kPieceRows; };
  int64_t pieces = pieces_of(text_tokens);
  for (size_t u = 0; u + 1 < tiles->start.size(); ++u) pieces += pieces_of(tiles->start[u + 1] - tiles->start[u]);
  const double blocks = double(partition_block_count(grid, layer.chunk)), count = double(tiles->tiles);
  const double copies = 3 * kBf16Bytes * double((grid.tokens() + text_tokens) * kernel_head_dim(head_dim));
  const double lists = double(sizeof(uint16_t)) * double(pieces) * (count + blocks), mask = count * blocks;
  return double(heads) * (copies + lists + mask);
}

// K and V in block order, where that is another; for each block the mask of its rows, their ranks and the rows.
double row_bytes(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, int64_t heads, int64_t head_dim) {
  const auto tables = partition_tables(grid, layer.chunk, at::kCPU);
  kernels::Shape shape;
  shape.video_tokens = int32_t(tables->tokens);
  shape.text_tokens = int32_t(text_tokens);
  shape.blocks = int32_t(tables->blocks);
  const double copies =
      tables->identity ? 0 : 2 * kBf16Bytes * double(shape.tokens()) * double(kernel_head_dim(head_dim));
  const double words = 2 * double(sizeof(int32_t)) * double(shape.block_count()) * double(shape.mask_words());
  const double rows = double(sizeof(int32_t)) * double(kernels::slots_per_head_capacity(shape));
  return double(heads) * (copies + words + rows);
}

}  // namespace

double selection_bytes(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, int64_t heads,
                       int64_t head_dim) {
  switch (kernel_work(layer, grid, text_tokens).kind) {
    case KernelKind::kFull:
      break;
    case KernelKind::kRows:
      return row_bytes(layer, grid, text_tokens, heads, head_dim);
    case KernelKind::kTiles:
      return tile_bytes(layer, grid, text_tokens, heads, head_dim);
  }
  return 0;
}

}  // namespace vmoba::attention
