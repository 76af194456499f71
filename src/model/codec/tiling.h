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

// The same along time, as diffusers' _temporal_tiled_encode and _temporal_tiled_decode do it. Counted here are the
// frames behind the first one: a tile has its own `tile` frames and one in front of them, whose result is dropped in
// all tiles but the first. `run(frame, frames)` gives [1 + out(frames - 1), H, W, C]; the result is
// [1 + out(frames - 1), H, W, C]. Keeps two tiles beside it.
using TimeTileFunction = std::function<at::Tensor(int64_t frame, int64_t frames)>;
at::Tensor run_time_tiled(int64_t frames, const Tiling& tiling, const TimeTileFunction& run);

}  // namespace vmoba::model
