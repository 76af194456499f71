#include "model/codec/tiling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace vmoba::model {
namespace {

// The first `extent` positions of `tile` along `dim` become a mixture with the last of the tile before it.
void blend_seam(const at::Tensor& before, const at::Tensor& tile, int64_t dim, int64_t extent) {
  const int64_t length = std::min({extent, before.size(dim), tile.size(dim)});
  if (length == 0) return;
  std::vector<int64_t> shape(size_t(tile.dim()), 1);
  shape[size_t(dim)] = length;
  const at::Tensor weight = (at::arange(length, tile.options()) / double(length)).view(shape);
  const at::Tensor seam = tile.slice(dim, 0, length);
  const at::Tensor old = before.slice(dim, before.size(dim) - length);
  seam.copy_(old * (1 - weight) + seam * weight);
}

}  // namespace

at::Tensor run_tiled(int64_t height, int64_t width, const Tiling& tiling, const TileFunction& run) {
  const int64_t step = tiling.out(tiling.stride), overlap = tiling.out(tiling.tile - tiling.stride);
  at::Tensor result;
  std::vector<at::Tensor> above, row;
  for (int64_t y = 0; y < height; y += tiling.stride) {
    for (int64_t x = 0; x < width; x += tiling.stride) {
      at::Tensor tile = run(y, x, std::min(tiling.tile, height - y), std::min(tiling.tile, width - x));
      if (!result.defined())
        result = at::empty({tile.size(0), tiling.out(height), tiling.out(width), tile.size(3)}, tile.options());
      if (y > 0) blend_seam(above[row.size()], tile, 1, overlap);
      if (x > 0) blend_seam(row.back(), tile, 2, overlap);
      const int64_t rows = std::min(step, tile.size(1)), columns = std::min(step, tile.size(2));
      result.narrow(1, tiling.out(y), rows)
          .narrow(2, tiling.out(x), columns)
          .copy_(tile.narrow(1, 0, rows).narrow(2, 0, columns));
      row.push_back(std::move(tile));
    }
    above = std::exchange(row, {});
  }
  return result;
}

at::Tensor run_time_tiled(int64_t frames, const Tiling& tiling, const TimeTileFunction& run) {
  const int64_t step = tiling.out(tiling.stride), overlap = tiling.out(tiling.tile - tiling.stride);
  at::Tensor result, before;
  int64_t done = 0;
  // A tile of its dropped frame alone adds nothing.
  for (int64_t first = 0; first == 0 || first + 1 < frames; first += tiling.stride) {
    at::Tensor tile = run(first, std::min(tiling.tile + 1, frames - first));
    if (first == 0) {
      result = at::empty({1 + tiling.out(frames - 1), tile.size(1), tile.size(2), tile.size(3)}, tile.options());
    } else {
      tile = tile.slice(0, 1);
      blend_seam(before, tile, 0, overlap);
    }
    const int64_t taken = std::min(step + (first == 0 ? 1 : 0), tile.size(0));
    result.narrow(0, done, taken).copy_(tile.narrow(0, 0, taken));
    done += taken;
    before = std::move(tile);
  }
  return result;
}

}  // namespace vmoba::model
