#include "attention/block/tiles.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "attention/block/table_cache.h"
#include "core/check.h"

namespace vmoba::attention {
namespace {

std::shared_ptr<const TileTables> make_tables(const PartitionTables& partition, int64_t tile_tokens,
                                              at::Device device) {
  auto tables = std::make_shared<TileTables>();
  std::vector<int64_t> block_of, tile_of;
  for (int64_t block = 0; block < partition.blocks; ++block) {
    tables->block_start.push_back(int64_t(tables->start.size()));
    const int64_t end = partition.block_start[size_t(block) + 1];
    const int64_t step = tile_tokens == 0 ? end : tile_tokens;
    for (int64_t begin = partition.block_start[size_t(block)]; begin < end; begin += step) {
      tile_of.insert(tile_of.end(), size_t(std::min(step, end - begin)), int64_t(tables->start.size()));
      tables->start.push_back(begin);
      block_of.push_back(block);
    }
  }
  tables->tiles = int64_t(tables->start.size());
  tables->tile_tokens = tile_tokens;
  tables->block_start.push_back(tables->tiles);
  tables->start.push_back(partition.tokens);
  const at::Tensor start_U1 = at::tensor(tables->start, at::kLong);
  tables->start_U1 = start_U1.to(device, at::kInt);
  tables->tile_of_S = at::tensor(tile_of, at::kLong).to(device);
  tables->block_of_U = at::tensor(block_of, at::kLong).to(device);
  tables->tokens_U = start_U1.diff().to(device, at::kDouble);
  return tables;
}

}  // namespace

std::shared_ptr<const TileTables> tile_tables(const Grid& grid, const Chunk& chunk, int64_t tile_tokens,
                                              at::Device device) {
  VMOBA_CHECK_INPUT(tile_tokens >= 0, "expected query tiles of at least 1 token (0: whole blocks), found {}",
                    tile_tokens);
  using Key = std::tuple<int64_t, int64_t, int64_t, Chunk, int64_t, std::string>;
  static TableCache<Key, TileTables> cache;
  return cache.get({grid.t, grid.h, grid.w, chunk, tile_tokens, device.str()},
                   [&] { return make_tables(*partition_tables(grid, chunk, device), tile_tokens, device); });
}

int64_t tile_count(const Grid& grid, const Chunk& chunk, int64_t tile_tokens) {
  if (tile_tokens == 0) return partition_block_count(grid, chunk);
  const auto pieces = [](int64_t length, int64_t c) { return split_dimension(length, whole_if_zero(c, length)); };
  int64_t tiles = 0;
  for (const int64_t t : pieces(grid.t, chunk[0]))
    for (const int64_t h : pieces(grid.h, chunk[1]))
      for (const int64_t w : pieces(grid.w, chunk[2])) tiles += (t * h * w + tile_tokens - 1) / tile_tokens;
  return tiles;
}

at::Tensor means_of_runs_RD(const at::Tensor& x_SD, const std::vector<int64_t>& start) {
  const auto runs = int64_t(start.size()) - 1;
  const at::ScalarType type = x_SD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor mean_RD = at::empty({runs, x_SD.size(1)}, x_SD.options().dtype(type));
  for (int64_t run = 0; run < runs; ++run)
    mean_RD[run].copy_(x_SD.slice(0, start[size_t(run)], start[size_t(run) + 1]).mean(0, false, at::kDouble));
  return mean_RD;
}

}  // namespace vmoba::attention
