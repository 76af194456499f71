// Forward of tiles by strips on sm_90a.
#pragma once
#include "attention/kernels/tiles.h"

namespace vmoba::kernels {

// As tile_forward(), for shapes with strips.
cudaError_t tile_forward_strips(const TileForwardArgs& args, cudaStream_t stream);

}  // namespace vmoba::kernels
