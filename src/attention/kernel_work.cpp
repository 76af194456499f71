#include "attention/kernel_work.h"

#include <algorithm>

#include "attention/dispatch.h"
#include "attention/method.h"

namespace vmoba::attention {
namespace {

// Of a dimension; a chunk of 0 is all of it.
int64_t extent(int64_t chunk, int64_t size) {
  return chunk == 0 ? size : std::min(chunk, size);
}

}  // namespace

KernelWork kernel_work(const LayerAttention& layer, const Grid& grid, int64_t text_tokens) {
  if (!layer.sparse() || grid.tokens() == 0) return {};
  const int64_t blocks = block_count(grid, layer);
  const bool full = layer.full_when_faster && layer.implementation == Implementation::kAuto &&
                    full_is_faster(grid.tokens() + text_tokens, blocks, layer);
  if (blocks == 1 || full) return {};
  const int64_t tile = query_tile(layer);
  KernelWork out{tile == 1 ? KernelKind::kRows : KernelKind::kTiles, blocks};
  out.block_tokens = extent(layer.chunk[0], grid.t) * extent(layer.chunk[1], grid.h) * extent(layer.chunk[2], grid.w);
  out.tile_tokens = tile == 0 ? out.block_tokens : std::min(tile, out.block_tokens);
  return out;
}

}  // namespace vmoba::attention
