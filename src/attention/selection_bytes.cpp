// What the native engines keep of a call's selection for backward; see `index` in native/engine.cpp and
// native/tile_engine.cpp, which make these tensors. Counts shapes, no GPU is asked.
#include <ATen/ops/zeros.h>

#include "attention/attention.h"
#include "attention/block/engine.h"
#include "attention/kernel_work.h"
#include "attention/kernels/kernels.h"
#include "attention/method.h"
#include "attention/native/row_memory.h"
#include "attention/native/tile_call.h"
#include "attention/native/tile_memory.h"

namespace vmoba::attention {
namespace {

constexpr double kBf16Bytes = 2;

// For each tile of queries the pieces of keys that it meets, for each block those of rows, the mask, and where they are
// kept Q, K and V in the order of tiles.
double tile_bytes(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, int64_t heads, int64_t head_dim) {
  const BlockProblem problem{grid, text_tokens, layer, partition_tables(grid, layer.chunk, at::kCPU),
                             tile_tables(grid, layer.chunk, query_tile(layer), at::kCPU)};
  const at::Tensor x_BZND = at::zeros({1}).expand({1, grid.tokens() + text_tokens, heads, head_dim});
  const native::TileCall call(problem, x_BZND);
  return double(native::tile_list_bytes(call.shape)) +
         (call.keeps_copies() ? double(native::tile_copy_bytes(call.shape)) : 0.0);
}

// K and V in block order, where that is another; for each block the mask of its rows, and where lists are kept their
// ranks and the rows.
double row_bytes(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, int64_t heads, int64_t head_dim) {
  const auto tables = partition_tables(grid, layer.chunk, at::kCPU);
  kernels::Shape shape;
  shape.video_tokens = int32_t(tables->tokens);
  shape.text_tokens = int32_t(text_tokens);
  shape.blocks = int32_t(tables->blocks);
  shape.head_dim = head_dim <= 64 ? 64 : 128;
  const double copies = tables->identity ? 0 : 2 * kBf16Bytes * double(shape.tokens()) * double(shape.head_dim);
  const double words = double(sizeof(int32_t)) * double(shape.block_count()) * double(shape.mask_words());
  if (!native::keeps_row_lists(shape)) return double(heads) * (copies + words);
  const double rows = double(sizeof(int32_t)) * double(kernels::slots_per_head_capacity(shape));
  return double(heads) * (copies + 2 * words + rows);
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
