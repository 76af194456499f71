#include "attention/vmoba/sub_blocks.h"

#include <ATen/ATen.h>

#include <string>
#include <tuple>

#include "attention/block/table_cache.h"

namespace vmoba::attention {
namespace {

std::array<std::vector<int64_t>, 3> block_extents(const Grid& grid, const Chunk& chunk) {
  const auto sizes = [](int64_t length, int64_t c) { return split_dimension(length, whole_if_zero(c, length)); };
  return {sizes(grid.t, chunk[0]), sizes(grid.h, chunk[1]), sizes(grid.w, chunk[2])};
}

// Which of the pieces of one dimension each coordinate lies in.
std::vector<int64_t> pieces_of_extent(int64_t extent, int64_t chunk) {
  std::vector<int64_t> out;
  int64_t piece = 0;
  for (const int64_t size : split_dimension(extent, whole_if_zero(chunk, extent)))
    out.insert(out.end(), size_t(size), piece++);
  return out;
}

// [C, K] of [M] blocks, which do not fall.
at::Tensor of_block_CK(const std::vector<int64_t>& block_of) {
  const int64_t blocks = block_of.back() + 1;
  std::vector<std::vector<int64_t>> of_block(static_cast<size_t>(blocks));
  size_t most = 0;
  for (size_t m = 0; m < block_of.size(); ++m) {
    std::vector<int64_t>& own = of_block[size_t(block_of[m])];
    own.push_back(int64_t(m));
    most = std::max(most, own.size());
  }
  std::vector<int64_t> flat;
  for (std::vector<int64_t>& own : of_block) {
    own.resize(most, int64_t(block_of.size()));
    flat.insert(flat.end(), own.begin(), own.end());
  }
  return at::tensor(flat, at::kLong).view({blocks, int64_t(most)});
}

std::shared_ptr<const SubBlocks> make_sub_blocks(const Grid& grid, const Chunk& chunk, const Chunk& cut,
                                                 at::Device device) {
  std::vector<int64_t> mean_of, block_of;
  int64_t block = 0;
  const auto extents = block_extents(grid, chunk);
  for (const int64_t extent_t : extents[0])
    for (const int64_t extent_h : extents[1])
      for (const int64_t extent_w : extents[2]) {
        const std::vector<int64_t> at_t = pieces_of_extent(extent_t, cut[0]), at_h = pieces_of_extent(extent_h, cut[1]),
                                   at_w = pieces_of_extent(extent_w, cut[2]);
        const int64_t rows = at_h.back() + 1, columns = at_w.back() + 1, first = int64_t(block_of.size());
        for (const int64_t t : at_t)
          for (const int64_t h : at_h)
            for (const int64_t w : at_w) mean_of.push_back(first + (t * rows + h) * columns + w);
        block_of.insert(block_of.end(), size_t((at_t.back() + 1) * rows * columns), block++);
      }
  auto out = std::make_shared<SubBlocks>();
  const at::Tensor mean_of_S = at::tensor(mean_of, at::kLong);
  const at::Tensor tokens_M = at::bincount(mean_of_S, {}, int64_t(block_of.size()));
  out->tokens_M = tokens_M.to(device, at::kDouble);
  out->start_M1 = at::constant_pad_nd(tokens_M.cumsum(0), {1, 0}).to(device, at::kInt);
  out->position_S = std::get<1>(mean_of_S.sort(/*stable=*/true, 0, false)).to(device);
  out->mean_of_S = mean_of_S.to(device);
  out->block_of_M = at::tensor(block_of, at::kLong).to(device);
  out->of_block_CK = of_block_CK(block_of).to(device);
  return out;
}

}  // namespace

at::Tensor SubBlocks::means_MD(const at::Tensor& x_SD) const {
  const at::Tensor sum_MD = at::zeros({count(), x_SD.size(1)}, x_SD.options().dtype(at::kDouble));
  return (sum_MD.index_add(0, mean_of_S, x_SD.to(at::kDouble)) / tokens_M.unsqueeze(1)).to(x_SD.scalar_type());
}

std::shared_ptr<const SubBlocks> sub_blocks(const BlockProblem& problem, const Chunk& cut, at::Device device) {
  using Key = std::tuple<int64_t, int64_t, int64_t, Chunk, Chunk, std::string>;
  static TableCache<Key, SubBlocks> cache;
  const Grid& grid = problem.grid;
  const Chunk& chunk = problem.layer.chunk;
  return cache.get({grid.t, grid.h, grid.w, chunk, cut, device.str()},
                   [&] { return make_sub_blocks(grid, chunk, cut, device); });
}

int64_t sub_block_count(const Grid& grid, const Chunk& chunk, const Chunk& cut) {
  int64_t count = 1;
  const auto extents = block_extents(grid, chunk);
  for (size_t i = 0; i < 3; ++i) {
    int64_t pieces = 0;
    for (const int64_t extent : extents[i])
      pieces += int64_t(split_dimension(extent, whole_if_zero(cut[i], extent)).size());
    count *= pieces;
  }
  return count;
}

}  // namespace vmoba::attention
