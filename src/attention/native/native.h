// The native CUDA kernels (attention/kernels) as a BlockEngine: bf16 tensors on a GPU, head sizes up to 128 (sizes
// other than 64 and 128 are filled up with zeros).
//
// Memory of a call comes from torch's allocator and is returned to it before the call ends, but for what backward
// needs: the row lists and, where the partition permutes tokens, K and V in block order. Nothing synchronises.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "attention/block/engine.h"

namespace vmoba::attention::native {

// "" where the kernels can run q's kind of tensor on its device; else the reason, as the end of a sentence.
std::string unsupported_reason(const at::Tensor& q_BZND);

const BlockEngine& engine();

// The engine of tiles: for layers whose tiles of queries choose (Method::query_tile), query-major kernels that
// need no partial outputs. It can run what engine() can.
const BlockEngine& tile_engine();

}  // namespace vmoba::attention::native
