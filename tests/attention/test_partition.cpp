#include <algorithm>
#include <numeric>

#include "attention/block/partition.h"
#include "core/check.h"
#include "support/attention_oracle.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;

namespace {

std::vector<int64_t> to_vector(const at::Tensor& x) {
  const at::Tensor y = x.to(at::kCPU, at::kLong).contiguous();
  return {y.const_data_ptr<int64_t>(), y.const_data_ptr<int64_t>() + y.numel()};
}

}  // namespace

TEST_CASE("a dimension splits into blocks that differ by at most one, larger first") {
  CHECK(split_dimension(13, 4) == std::vector<int64_t>{4, 3, 3, 3});
  CHECK(split_dimension(12, 4) == std::vector<int64_t>{4, 4, 4});
  CHECK(split_dimension(7, 2) == std::vector<int64_t>{2, 2, 2, 1});
  CHECK(split_dimension(21, 6) == std::vector<int64_t>{6, 5, 5, 5});
  CHECK(split_dimension(5, 9) == std::vector<int64_t>{5});
  CHECK(split_dimension(3, 1) == std::vector<int64_t>{1, 1, 1});
  CHECK(split_dimension(1, 1) == std::vector<int64_t>{1});
  CHECK_THROWS_AS(split_dimension(0, 1), Error);
  CHECK_THROWS_AS(split_dimension(1, 0), Error);
}

TEST_CASE("the permuted order of a small spatial partition, by hand") {
  // Grid 2 x 2 x 3, tiles (1, 2): columns split into {0, 1} and {2}; a tile runs through both frames.
  const auto tables = partition_tables({2, 2, 3}, {0, 1, 2}, at::kCPU);
  CHECK(tables->blocks == 4);
  CHECK(to_vector(tables->token_of_S) == std::vector<int64_t>{0, 1, 6, 7, 2, 8, 3, 4, 9, 10, 5, 11});
  CHECK(to_vector(tables->block_of_S) == std::vector<int64_t>{0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3});
  CHECK(tables->block_start == std::vector<int64_t>{0, 4, 6, 10, 12});
  CHECK(to_vector(tables->block_start_C1) == tables->block_start);
  CHECK(to_vector(tables->block_tokens_C) == std::vector<int64_t>{4, 2, 4, 2});
  CHECK(tables->max_block_tokens == 4);
  CHECK_FALSE(tables->identity);
}

TEST_CASE("tables of many grids agree with the block of each token") {
  const std::vector<Grid> grids = {{1, 1, 1}, {7, 5, 4}, {13, 3, 9}, {21, 30, 52}, {2, 1, 31}};
  const std::vector<Chunk> chunks = {{1, 0, 0}, {3, 0, 0}, {0, 2, 4}, {0, 6, 8}, {2, 2, 2}, {6, 9, 16}};
  for (const Grid& grid : grids)
    for (const Chunk& chunk : chunks) {
      INFO(grid.t << "x" << grid.h << "x" << grid.w << " by " << chunk[0] << "," << chunk[1] << "," << chunk[2]);
      const auto tables = partition_tables(grid, chunk, at::kCPU);
      const std::vector<int64_t> block = test::oracle_block_of_token(grid, chunk);
      const std::vector<int64_t> order = test::oracle_token_order(block);
      REQUIRE(to_vector(tables->token_of_S) == order);
      const std::vector<int64_t> block_of = to_vector(tables->block_of_S);
      for (size_t p = 0; p < order.size(); ++p) REQUIRE(block_of[p] == block[size_t(order[p])]);
      CHECK(tables->blocks == 1 + *std::max_element(block.begin(), block.end()));
      CHECK(tables->blocks == partition_block_count(grid, chunk));
      CHECK(tables->block_start.back() == grid.tokens());
      CHECK(tables->identity == std::is_sorted(order.begin(), order.end()));
      for (int64_t c = 0; c < tables->blocks; ++c) {
        const int64_t size = std::count(block.begin(), block.end(), c);
        REQUIRE(tables->block_start[size_t(c) + 1] - tables->block_start[size_t(c)] == size);
        CHECK(size <= tables->max_block_tokens);
      }
    }
}

TEST_CASE("a temporal partition keeps the order of tokens") {
  CHECK(partition_tables({9, 4, 6}, {2, 0, 0}, at::kCPU)->identity);
  CHECK_FALSE(partition_tables({9, 4, 6}, {0, 2, 3}, at::kCPU)->identity);
}

TEST_CASE("partition tables are shared, also once the cache has started afresh") {
  const auto first = partition_tables({3, 4, 5}, {1, 2, 2}, at::kCPU);
  CHECK(partition_tables({3, 4, 5}, {1, 2, 2}, at::kCPU) == first);
  for (int64_t t = 1; t <= 300; ++t) partition_tables({t, 1, 2}, {1, 0, 0}, at::kCPU);
  CHECK(first->blocks == 3 * 2 * 3);
  CHECK(to_vector(partition_tables({3, 4, 5}, {1, 2, 2}, at::kCPU)->token_of_S) == to_vector(first->token_of_S));
}

TEST_CASE("impossible grids and chunks are refused before memory is taken") {
  CHECK_THROWS_AS(partition_tables({0, 1, 1}, {1, 0, 0}, at::kCPU), Error);
  CHECK_THROWS_AS(partition_tables({1, -1, 1}, {1, 0, 0}, at::kCPU), Error);
  CHECK_THROWS_AS(partition_tables({1, 1, 1}, {-1, 0, 0}, at::kCPU), Error);
  CHECK_THROWS_AS(partition_block_count({int64_t(1) << 16, int64_t(1) << 16, 1}, {1, 0, 0}), Error);
  CHECK_THROWS_AS(partition_block_count({int64_t(1) << 62, int64_t(1) << 62, 4}, {1, 0, 0}), Error);
  CHECK(partition_block_count({24, 36, 64}, {3, 0, 0}) == 8);
  CHECK(partition_block_count({24, 36, 64}, {0, 6, 8}) == 48);
  CHECK(partition_block_count({24, 36, 64}, {6, 9, 16}) == 64);
}
