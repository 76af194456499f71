// Which kernels compute a layer on a GPU, and over blocks of what size: for forecasts of time and memory.
#pragma once
#include <cstdint>

#include "attention/attention.h"

namespace vmoba::attention {

enum class KernelKind {
  kFull,   // full attention, also where that is faster
  kRows,   // lists of queries for each block of keys
  kTiles,  // tiles of queries that choose together
};
struct KernelWork {
  KernelKind kind = KernelKind::kFull;
  int64_t blocks = 1;
  // Tokens of a whole block, and queries of a tile of it.
  int64_t block_tokens = 0, tile_tokens = 0;
};
KernelWork kernel_work(const LayerAttention& layer, const Grid& grid, int64_t text_tokens);

}  // namespace vmoba::attention
