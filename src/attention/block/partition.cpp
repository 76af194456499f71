#include "attention/block/partition.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include "attention/block/table_cache.h"
#include "core/check.h"

namespace vmoba::attention {
namespace {

void check_partition(const Grid& grid, const Chunk& chunk) {
  VMOBA_CHECK_INPUT(grid.t >= 1 && grid.h >= 1 && grid.w >= 1,
                    "expected a grid of at least 1x1x1 latent patches, found {}x{}x{}", grid.t, grid.h, grid.w);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  VMOBA_CHECK_INPUT(grid.t <= kMost && grid.h <= kMost / grid.t && grid.w <= kMost / (grid.t * grid.h),
                    "expected a grid of fewer than 2^31 latent patches, found {}x{}x{}; use shorter or smaller clips",
                    grid.t, grid.h, grid.w);
  VMOBA_CHECK_INPUT(chunk[0] >= 0 && chunk[1] >= 0 && chunk[2] >= 0,
                    "expected chunk sizes of at least 1 (0 for a whole dimension), found ({}, {}, {})", chunk[0],
                    chunk[1], chunk[2]);
}

struct Range {
  int64_t begin, end;
};

std::vector<Range> ranges(int64_t length, int64_t chunk) {
  std::vector<Range> out;
  int64_t begin = 0;
  for (const int64_t size : split_dimension(length, whole_if_zero(chunk, length))) {
    out.push_back({begin, begin + size});
    begin += size;
  }
  return out;
}

std::shared_ptr<const PartitionTables> make_tables(const Grid& grid, const Chunk& chunk, at::Device device) {
  auto tables = std::make_shared<PartitionTables>();
  tables->tokens = grid.tokens();
  const auto host = at::TensorOptions().dtype(at::kInt);
  at::Tensor token_of_S = at::empty({tables->tokens}, host);
  at::Tensor block_of_S = at::empty({tables->tokens}, host);
  int32_t* token_of = token_of_S.mutable_data_ptr<int32_t>();
  int32_t* block_of = block_of_S.mutable_data_ptr<int32_t>();

  int64_t position = 0;
  tables->block_start.push_back(0);
  tables->identity = true;
  const std::vector<Range> frames = ranges(grid.t, chunk[0]), rows = ranges(grid.h, chunk[1]),
                           columns = ranges(grid.w, chunk[2]);
  for (const Range& ft : frames)
    for (const Range& fh : rows)
      for (const Range& fw : columns) {
        for (int64_t t = ft.begin; t < ft.end; ++t)
          for (int64_t h = fh.begin; h < fh.end; ++h)
            for (int64_t w = fw.begin; w < fw.end; ++w, ++position) {
              const int64_t token = (t * grid.h + h) * grid.w + w;
              token_of[position] = static_cast<int32_t>(token);
              block_of[position] = static_cast<int32_t>(tables->blocks);
              tables->identity = tables->identity && token == position;
            }
        tables->max_block_tokens = std::max(tables->max_block_tokens, position - tables->block_start.back());
        tables->block_start.push_back(position);
        ++tables->blocks;
      }

  at::Tensor block_start_C1 = at::empty({tables->blocks + 1}, host);
  std::copy(tables->block_start.begin(), tables->block_start.end(), block_start_C1.mutable_data_ptr<int32_t>());
  tables->token_of_S = token_of_S.to(device);
  tables->block_of_S = block_of_S.to(device);
  tables->block_start_C1 = block_start_C1.to(device);
  tables->block_tokens_C = block_start_C1.diff().to(device, at::kDouble);
  return tables;
}

}  // namespace

int64_t whole_if_zero(int64_t chunk, int64_t length) {
  return chunk == 0 ? length : chunk;
}

std::vector<int64_t> split_dimension(int64_t length, int64_t chunk) {
  VMOBA_CHECK(length >= 1 && chunk >= 1, "expected a length and a chunk of at least 1, found {} and {}", length, chunk);
  const int64_t blocks = (length - 1) / chunk + 1;
  std::vector<int64_t> sizes(static_cast<size_t>(blocks), length / blocks);
  std::for_each_n(sizes.begin(), length % blocks, [](int64_t& size) { ++size; });
  return sizes;
}

int64_t partition_block_count(const Grid& grid, const Chunk& chunk) {
  check_partition(grid, chunk);
  const auto blocks = [](int64_t length, int64_t c) { return (length - 1) / whole_if_zero(c, length) + 1; };
  return blocks(grid.t, chunk[0]) * blocks(grid.h, chunk[1]) * blocks(grid.w, chunk[2]);
}

at::Tensor token_order_Z(const PartitionTables& tables, int64_t text_tokens) {
  const at::Tensor order_S = tables.token_of_S.to(at::kLong);
  if (text_tokens == 0) return order_S;
  return at::cat({order_S, at::arange(tables.tokens, tables.tokens + text_tokens, order_S.options())});
}

std::shared_ptr<const PartitionTables> partition_tables(const Grid& grid, const Chunk& chunk, at::Device device) {
  check_partition(grid, chunk);
  using Key = std::tuple<int64_t, int64_t, int64_t, Chunk, std::string>;
  static TableCache<Key, PartitionTables> cache;
  return cache.get({grid.t, grid.h, grid.w, chunk, device.str()}, [&] { return make_tables(grid, chunk, device); });
}

}  // namespace vmoba::attention
