#include <ATen/ATen.h>

#include "attention/reference/reference.h"
#include "support/attention_cases.h"
#include "support/attention_oracle.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;
using test::attention_cases;
using test::normal_tensor;

namespace {

std::vector<LayerAttention> every_rule(const Chunk& chunk) {
  std::vector<LayerAttention> layers;
  for (const Pool pool : {Pool::kQueryHead, Pool::kBlock, Pool::kHeadGlobal, Pool::kOverall}) {
    for (const double tau : {0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 3.0})
      layers.push_back(test::threshold_layer(chunk, pool, tau));
    if (pool != Pool::kBlock)
      for (const int64_t k : {1, 2, 3, 5, 1000}) layers.push_back(test::topk_layer(chunk, pool, k));
  }
  return layers;
}

void check_against_oracle(const at::Tensor& gate_NCS, const Grid& grid, const Chunk& chunk) {
  const auto tables = partition_tables(grid, chunk, at::kCPU);
  const auto block = test::oracle_block_of_token(grid, chunk);
  for (const LayerAttention& layer : every_rule(chunk)) {
    INFO("pool " << int(layer.pool) << " select " << int(layer.select) << " tau " << layer.tau << " k " << layer.topk);
    const at::Tensor mask = reference::select_NCS(*tables, layer, gate_NCS);
    CHECK(at::equal(mask, test::oracle_select(gate_NCS, block, layer)));
  }
}

const Grid kGrid = {5, 4, 3};
const Chunk kChunk = {2, 3, 2};  // 3 x 2 x 2 ragged blocks

at::Tensor random_gate(const std::string& name) {
  return normal_tensor(name, {3, 12, kGrid.tokens()}, at::kFloat);
}

}  // namespace

TEST_CASE("gates are q times the block means of k") {
  for (const auto& c : attention_cases()) {
    INFO(c.name);
    const auto tables = partition_tables(c.grid, c.layer.chunk, at::kCPU);
    const auto block = test::oracle_block_of_token(c.grid, c.layer.chunk);
    const at::Tensor q = case_tensor(c, "q")[0], k = case_tensor(c, "k")[0];
    const at::Tensor expected =
        test::oracle_gate(q.slice(0, 0, c.grid.tokens()), k.slice(0, 0, c.grid.tokens()), block);
    const at::Tensor gate64 = reference::gate_NCS(*tables, q, k);
    CHECK(gate64.scalar_type() == at::kDouble);
    CHECK(at::allclose(gate64, expected, 1e-13, 1e-13));
    // fp32: D products and sums of values near 1, each rounded to 2^-24.
    const at::Tensor gate32 = reference::gate_NCS(*tables, q.to(at::kFloat), k.to(at::kFloat));
    CHECK(gate32.scalar_type() == at::kFloat);
    CHECK(at::allclose(gate32.to(at::kDouble), expected, 1e-5, 1e-5));
    const at::Tensor q16 = q.to(at::kBFloat16), k16 = k.to(at::kBFloat16);
    const at::Tensor gate16 = reference::gate_NCS(*tables, q16, k16);
    CHECK(gate16.scalar_type() == at::kFloat);
    CHECK(at::equal(gate16, reference::gate_NCS(*tables, q16.to(at::kFloat), k16.to(at::kFloat))));
  }
}

TEST_CASE("selection agrees with one sort per pool") {
  for (const char* name : {"a", "b", "c"}) check_against_oracle(random_gate(name), kGrid, kChunk);
}

TEST_CASE("equal gates go to the lower block, then head, then token") {
  // Values on a grid of quarters: pools are full of ties, and sums are exact in any order.
  for (const char* name : {"a", "b", "c"}) check_against_oracle((random_gate(name) * 2).round() / 4, kGrid, kChunk);
}

TEST_CASE("flat, tiny and huge gates are selected without dividing by zero") {
  check_against_oracle(at::zeros({3, 12, kGrid.tokens()}), kGrid, kChunk);
  check_against_oracle(at::full({3, 12, kGrid.tokens()}, -7.5), kGrid, kChunk);
  check_against_oracle(random_gate("a") * 1e-8, kGrid, kChunk);
  check_against_oracle(random_gate("a") * 1e30, kGrid, kChunk);
}

TEST_CASE("a pool always selects at least one other entry, and no more than it must") {
  const at::Tensor gate = random_gate("a");
  const auto tables = partition_tables(kGrid, kChunk, at::kCPU);
  const int64_t own = 3 * kGrid.tokens();
  const auto extra = [&](Pool pool) {
    return reference::select_NCS(*tables, test::threshold_layer(kChunk, pool, 0.0), gate).sum().item<int64_t>() - own;
  };
  CHECK(extra(Pool::kQueryHead) == own);
  CHECK(extra(Pool::kBlock) == 12);
  CHECK(extra(Pool::kHeadGlobal) == 3);
  CHECK(extra(Pool::kOverall) == 1);
}

TEST_CASE("NaN and infinite gates end, and the own block stays attended") {
  const auto tables = partition_tables(kGrid, kChunk, at::kCPU);
  for (const double bad :
       {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    at::Tensor gate = random_gate("a");
    gate.index_put_({at::tensor({1}), at::tensor({4}), at::tensor({7})}, at::scalar_tensor(bad));
    for (const LayerAttention& layer : every_rule(kChunk)) {
      const at::Tensor mask = reference::select_NCS(*tables, layer, gate);
      const at::Tensor block_S = tables->block_of_S.to(at::kLong);
      CHECK(mask.gather(1, block_S.view({1, 1, -1}).expand({3, 1, -1})).all().item<bool>());
    }
  }
}

TEST_CASE("rows of a list ascend and follow the mask, text joins every list") {
  const at::Tensor mask = at::tensor({1, 0, 0, 1, 0, 1, 1, 0}, at::kInt).view({2, 4}).to(at::kBool);
  const auto plain = reference::index_rows(mask, 0);
  CHECK(at::equal(plain.rows, at::tensor({0, 3, 1, 2}, at::kLong)));
  CHECK(plain.start == std::vector<int64_t>{0, 2, 4});
  const auto text = reference::index_rows(mask, 2);
  CHECK(at::equal(text.rows, at::tensor({0, 3, 4, 5, 1, 2, 4, 5, 0, 1, 2, 3, 4, 5}, at::kLong)));
  CHECK(text.start == std::vector<int64_t>{0, 4, 8, 14});
}
