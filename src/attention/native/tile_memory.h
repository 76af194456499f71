// Memory of attention by tiles beyond inputs, results and gradients. Lists of pieces and the mask are kept for backward
// in any case. Copies of q, k and v in the order of tiles are kept too where everything stays within kTileBudgetBytes;
// else heads go through the kernels in waves of as many as do, and each wave makes its copies again. No GPU is asked.
//
// Shape letters as in attention/kernels/tiles.h.
#pragma once
#include <cstdint>

#include "attention/kernels/tiles.h"

namespace vmoba::attention::native {

constexpr int64_t kTileBudgetBytes = int64_t(9) << 28;  // 2.25 GiB for each sample

// Lists, counts and mask of all of the shape's heads.
int64_t tile_list_bytes(const kernels::TileShape& shape);

// Copies of q, k and v of the shape's heads.
int64_t tile_copy_bytes(const kernels::TileShape& shape);

// Heads of one sample in a wave, at least one: shape.heads where copies are kept. Waves are about equally large.
int32_t tile_wave_heads(const kernels::TileShape& shape);

}  // namespace vmoba::attention::native
