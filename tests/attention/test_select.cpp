#include <ATen/ATen.h>

#include <cmath>

#include "apps/bench/attention_cases.h"
#include "attention/dispatch.h"
#include "attention/reference/reference.h"
#include "attention/vmoba/vmoba.h"
#include "support/attention_oracle.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;
using bench::normal_tensor;

namespace {

std::vector<VmobaRule> every_rule() {
  std::vector<VmobaRule> rules;
  for (const Pool pool : {Pool::kQueryHead, Pool::kBlock, Pool::kHeadGlobal, Pool::kOverall}) {
    for (const double tau : {0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 3.0})
      rules.push_back({SelectMode::kThreshold, pool, tau, 1});
    if (pool != Pool::kBlock)
      for (const int64_t k : {1, 2, 3, 5, 1000}) rules.push_back({SelectMode::kTopk, pool, 0.25, k});
  }
  return rules;
}

void check_against_oracle(const at::Tensor& gate_NCS, const Grid& grid, const Chunk& chunk) {
  const auto tables = partition_tables(grid, chunk, at::kCPU);
  const auto block = test::oracle_block_of_token(grid, chunk);
  for (const VmobaRule& rule : every_rule()) {
    INFO("pool " << int(rule.pool) << " select " << int(rule.select) << " tau " << rule.tau << " k " << rule.topk);
    const at::Tensor mask = select_NCS(*tables, rule, gate_NCS);
    CHECK(at::equal(mask, test::oracle_select(gate_NCS, block, rule)));
  }
}

const Grid kGrid = {5, 4, 3};
const Chunk kChunk = {2, 3, 2};  // 3 x 2 x 2 ragged blocks

at::Tensor random_gate(const std::string& name) {
  return normal_tensor(name, {3, 12, kGrid.tokens()}, at::kFloat);
}

}  // namespace

TEST_CASE("gates are q times the block means of k") {
  for (const auto& c : bench::small_cases()) {
    INFO(c.name);
    const auto tables = partition_tables(c.grid, c.layer.chunk, at::kCPU);
    const auto block = test::oracle_block_of_token(c.grid, c.layer.chunk);
    const at::Tensor q = case_tensor(c, "q")[0], k = case_tensor(c, "k")[0];
    const at::Tensor expected =
        test::oracle_gate(q.slice(0, 0, c.grid.tokens()), k.slice(0, 0, c.grid.tokens()), block);
    const at::Tensor gate64 = gate_NCS(*tables, q, k);
    CHECK(gate64.scalar_type() == at::kDouble);
    CHECK(at::allclose(gate64, expected, 1e-13, 1e-13));
    // fp32: D products and sums of values near 1, each rounded to 2^-24.
    const at::Tensor gate32 = gate_NCS(*tables, q.to(at::kFloat), k.to(at::kFloat));
    CHECK(gate32.scalar_type() == at::kFloat);
    CHECK(at::allclose(gate32.to(at::kDouble), expected, 1e-5, 1e-5));
    const at::Tensor q16 = q.to(at::kBFloat16), k16 = k.to(at::kBFloat16);
    const at::Tensor gate16 = gate_NCS(*tables, q16, k16);
    CHECK(gate16.scalar_type() == at::kFloat);
    CHECK(at::equal(gate16, gate_NCS(*tables, q16.to(at::kFloat), k16.to(at::kFloat))));
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
    return select_NCS(*tables, {SelectMode::kThreshold, pool, 0.0, 1}, gate).sum().item<int64_t>() - own;
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
    for (const VmobaRule& rule : every_rule()) {
      const at::Tensor mask = select_NCS(*tables, rule, gate);
      const at::Tensor block_S = tables->block_of_S.to(at::kLong);
      CHECK(mask.gather(1, block_S.view({1, 1, -1}).expand({3, 1, -1})).all().item<bool>());
    }
  }
}

TEST_CASE("a block mask holds the bits of its bools, and what holds for text") {
  for (const int64_t tokens : {1, 31, 32, 33, 70})
    for (const int64_t text : {0, 1, 5}) {
      INFO(tokens << " tokens, " << text << " of text");
      const at::Tensor attends = normal_tensor("mask", {2, 3, 4, tokens}, at::kFloat) > 0;
      const BlockMask mask = BlockMask::of(attends, text);
      const int64_t entries = text > 0 ? 5 : 4, words = (tokens + text + 31) / 32;
      REQUIRE(mask.words_BNEW.sizes() == at::IntArrayRef({2, 3, entries, words}));
      REQUIRE(mask.words_BNEW.scalar_type() == at::kInt);
      const at::Tensor words_L = mask.words_BNEW.contiguous();
      const auto bit = [&](int64_t b, int64_t n, int64_t e, int64_t p) {
        const int32_t* data = words_L.const_data_ptr<int32_t>();
        const auto word = static_cast<uint32_t>(data[((b * 3 + n) * entries + e) * words + p / 32]);
        return (word >> (p % 32)) & 1U;
      };
      const auto in = attends.accessor<bool, 4>();
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t n = 0; n < 3; ++n)
          for (int64_t e = 0; e < entries; ++e)
            for (int64_t p = 0; p < 32 * words; ++p) {
              const bool video = e < 4 && p < tokens;
              const bool expected = p < tokens + text && (!video || in[b][n][e][p]);
              REQUIRE(bit(b, n, e, p) == expected);
            }
      const at::Tensor back = mask.attends_BNEZ(tokens + text);
      CHECK(at::equal(back.slice(2, 0, 4).slice(3, 0, tokens), attends));
      CHECK(back.slice(2, 4).all().item<bool>());
      CHECK(back.slice(3, tokens).all().item<bool>());
    }
}

TEST_CASE("rows of a list ascend and follow the mask, text joins every list") {
  const at::Tensor mask = at::tensor({1, 0, 0, 1, 0, 1, 1, 0}, at::kInt).view({1, 1, 2, 4}).to(at::kBool);
  const auto plain = reference::index_rows(BlockMask::of(mask, 0).attends_BNEZ(4)[0][0]);
  CHECK(at::equal(plain.rows, at::tensor({0, 3, 1, 2}, at::kLong)));
  CHECK(plain.start == std::vector<int64_t>{0, 2, 4});
  const auto text = reference::index_rows(BlockMask::of(mask, 2).attends_BNEZ(6)[0][0]);
  CHECK(at::equal(text.rows, at::tensor({0, 3, 4, 5, 1, 2, 4, 5, 0, 1, 2, 3, 4, 5}, at::kLong)));
  CHECK(text.start == std::vector<int64_t>{0, 4, 8, 14});
}

namespace {

// A layer of cubes over kGrid, 12 blocks, as number `index` of its network.
BlockProblem problem_of(const VmobaRule& rule, int64_t index = 0, int64_t first_head = 0) {
  LayerAttention layer = bench::topk_layer(kChunk, rule.pool, 1);
  layer.rule = rule;
  layer.index = index;
  layer.first_head = first_head;
  return make_block_problem(at::zeros({1, kGrid.tokens(), 3, 8}), kGrid, 0, layer);
}

at::Tensor selected(const BlockProblem& problem, const std::string& name) {
  const at::Tensor q = normal_tensor(name + "q", {2, kGrid.tokens(), 3, 8}, at::kFloat);
  const at::Tensor k = normal_tensor(name + "k", {2, kGrid.tokens(), 3, 8}, at::kFloat);
  const Selection selection = vmoba_method().select(problem, q, k, k, {});
  return attends_BNCS(problem, selection);
}

}  // namespace

TEST_CASE("the density that is asked for is met on average") {
  for (const double density : {0.01, 0.25, 0.43, 1.0})
    for (const int64_t tile : {1, 3, 0}) {
      VmobaRule rule{SelectMode::kTopk, Pool::kQueryHead};
      rule.density = density;
      rule.query_tile = tile;
      const double wanted = std::max(1.0, density * 12);
      INFO("density " << density << " tile " << tile);
      double sum = 0;
      for (int64_t layer = 0; layer < 10; ++layer) {
        const at::Tensor blocks_BNS = selected(problem_of(rule, layer), "density").sum(2).to(at::kDouble);
        CHECK(blocks_BNS.min().item<double>() >= std::floor(wanted));
        CHECK(blocks_BNS.max().item<double>() <= std::ceil(wanted));
        CHECK(at::equal(blocks_BNS[0], blocks_BNS[1]));  // samples are treated alike
        sum += blocks_BNS.mean().item<double>() / 10;
      }
      // 10 layers x 3 heads x 12 tiles: five deviations of a share of 1/2 are 0.132.
      CHECK(std::abs(sum - wanted) < (wanted == std::floor(wanted) ? 1e-12 : 0.132));
      // The fewer blocks of the same gates are among the more.
      VmobaRule whole = rule;
      whole.density = 0;
      whole.topk = int64_t(wanted);
      const at::Tensor fewer = selected(problem_of(whole), "density"), some = selected(problem_of(rule), "density");
      CHECK(at::equal(fewer.logical_and(some), fewer));
    }
}

TEST_CASE("pools over a head or a sample take the share of all entries that is asked for") {
  for (const Pool pool : {Pool::kHeadGlobal, Pool::kOverall}) {
    VmobaRule rule{SelectMode::kTopk, pool};
    rule.density = 0.2;  // 2.4 blocks of 12: 1.4 others for each of 60 tokens
    const at::Tensor taken_BN = selected(problem_of(rule), "pools").sum({2, 3}) - 60;
    if (pool == Pool::kHeadGlobal) CHECK(taken_BN.eq(84).all().item<bool>());
    CHECK(taken_BN.sum(1).eq(3 * 84).all().item<bool>());
  }
}

TEST_CASE("random blocks are as many as top-k's, the same for any gates and any share of the heads") {
  for (const Pool pool : {Pool::kQueryHead, Pool::kHeadGlobal, Pool::kOverall})
    for (const int64_t tile : {1, 3, 0}) {
      INFO("pool " << int(pool) << " tile " << tile);
      VmobaRule best{SelectMode::kTopk, pool, 0.25, 3, tile}, random = best;
      random.select = SelectMode::kRandom;
      const at::Tensor chosen = selected(problem_of(random), "a"), by_gate = selected(problem_of(best), "a");
      CHECK(at::equal(chosen, selected(problem_of(random), "b")));
      CHECK(at::equal(chosen[0], chosen[1]));
      CHECK_FALSE(at::equal(chosen, by_gate));
      CHECK_FALSE(at::equal(chosen, selected(problem_of(random, 1), "a")));
      CHECK_FALSE(at::equal(chosen.select(1, 0), chosen.select(1, 1)));
      if (pool == Pool::kQueryHead) CHECK(at::equal(chosen.sum(2), by_gate.sum(2)));
      if (pool != Pool::kOverall && tile == 1) CHECK(at::equal(chosen.sum({2, 3}), by_gate.sum({2, 3})));
      if (pool != Pool::kOverall)  // a rank that has the heads from the second on
        CHECK(at::equal(selected(problem_of(random, 0, 1), "a").slice(1, 0, 2), chosen.slice(1, 1)));
      const at::Tensor block_S = partition_tables(kGrid, kChunk, at::kCPU)->block_of_S.to(at::kLong);
      CHECK(chosen.gather(2, block_S.expand({2, 3, 1, -1})).all().item<bool>());
    }
}

TEST_CASE("heads that are left to their means attend their own blocks alone, the others what they did") {
  for (const Pool pool : {Pool::kQueryHead, Pool::kOverall})
    for (const int64_t tile : {1, 3, 0}) {
      VmobaRule all{SelectMode::kTopk, pool, 0.25, 4, tile}, some = all;
      some.remainder = Remainder::kOneSoftmax;
      some.mean_heads = {1, 7};
      const at::Tensor before = selected(problem_of(all), "means"), after = selected(problem_of(some), "means");
      CHECK(after.select(1, 1).sum(1).eq(1).all().item<bool>());
      const at::Tensor block_S = partition_tables(kGrid, kChunk, at::kCPU)->block_of_S.to(at::kLong);
      CHECK(after.gather(2, block_S.expand({2, 3, 1, -1})).all().item<bool>());
      for (const int64_t n : {0, 2}) CHECK(at::equal(after.select(1, n), before.select(1, n)));
      // A rank that has the heads from the second on.
      CHECK(selected(problem_of(some, 0, 1), "means").select(1, 0).sum(1).eq(1).all().item<bool>());
    }
}

TEST_CASE("random blocks are drawn evenly") {
  VmobaRule rule{SelectMode::kRandom, Pool::kQueryHead, 0.25, 3};
  at::Tensor count_CC = at::zeros({12, 12}, at::kDouble);
  const auto tables = partition_tables(kGrid, kChunk, at::kCPU);
  for (int64_t layer = 0; layer < 60; ++layer) {
    const at::Tensor mask_CS = selected(problem_of(rule, layer), "even")[0].sum(0).to(at::kDouble);
    count_CC.index_add_(1, tables->block_of_S.to(at::kLong), mask_CS);
  }
  const at::Tensor others = count_CC.masked_select(at::eye(12).logical_not());
  const at::Tensor per_query =
      others / (count_CC.diagonal().unsqueeze(0).expand({12, 12}).masked_select(at::eye(12).logical_not()));
  // 60 layers x 3 heads x 4 to 6 queries draw 2 of 11 others: 720 draws or more of 0.18 each deviate by 0.0143.
  CHECK((per_query - 2.0 / 11).abs().max().item<double>() < 5 * 0.0143);
}
