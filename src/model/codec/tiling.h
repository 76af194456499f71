// Work on a picture in overlapping tiles whose seams are blended linearly, tile for tile as diffusers' tiled_encode
// and tiled_decode do it: tiles start every `stride`, and in the overlap weights rise from the tile before to this one.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace vmoba::model {

struct Tiling {
  int64_t tile = 0, stride = 0;          // of the input's rows and columns
  int64_t scale_up = 1, scale_down = 1;  // output positions of an input position: up / down
  int64_t out(int64_t in) const { return in * scale_up / scale_down; }
};

// `run(row, column, rows, columns)` works on that part of the input: [T, out(rows), out(columns), C]. Returns
// [T, out(height), out(width), C]. Keeps two rows of tiles beside the result.
using TileFunction = std::function<at::Tensor(int64_t row, int64_t column, int64_t rows, int64_t columns)>;
at::Tensor run_tiled(int64_t height, int64_t width, const Tiling& tiling, const TileFunction& run);

}  // namespace vmoba::model
