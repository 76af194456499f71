// Shares as scores, and the least number of blocks: against loops that are written from docs/attention.md.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "apps/bench/attention_cases.h"
#include "attention/dispatch.h"
#include "attention/vmoba/vmoba.h"
#include "support/attention_oracle.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;
using bench::normal_tensor;

namespace {

const Grid kGrid = {4, 4, 6};
const Chunk kChunk = {2, 4, 3}, kCut = {1, 2, 0};  // 4 blocks of 24 tokens, each of 4 sub-blocks of 6
const Chunk kNested = {1, 2, 3};                   // the sub-blocks as a partition of the grid
constexpr int64_t kHeads = 3, kHeadDim = 8;

BlockProblem problem_of(const VmobaRule& rule) {
  LayerAttention layer = bench::topk_layer(kChunk, rule.pool, 1);
  layer.rule = rule;
  return make_block_problem(at::zeros({1, kGrid.tokens(), kHeads, kHeadDim}), kGrid, 0, layer);
}

VmobaRule share_rule(SelectMode select, Pool pool, double tau = 0.25) {
  VmobaRule rule{select, pool, tau};
  rule.score = Score::kShare;
  return rule;
}

// Of head n, the share that query `row` [D] gives to each block, by the means of sub-blocks.
std::vector<double> shares_of(const at::Tensor& row_D, const at::Tensor& k_SD, const std::vector<int64_t>& sub_of,
                              const std::vector<int64_t>& block_of) {
  std::map<int64_t, std::vector<int64_t>> members;
  for (size_t s = 0; s < sub_of.size(); ++s) members[sub_of[s]].push_back(int64_t(s));
  std::vector<double> out(4, 0);
  double all = 0;
  for (const auto& [sub, tokens] : members) {
    const at::Tensor mean_D = k_SD.index_select(0, at::tensor(tokens)).mean(0);
    const double score = (row_D * mean_D).sum().item<double>() / std::sqrt(double(kHeadDim));
    const double weight = double(tokens.size()) * std::exp(score);
    out[size_t(block_of[size_t(tokens.front())])] += weight;
    all += weight;
  }
  for (double& share : out) share /= all;
  return out;
}

struct Entry {
  int64_t n, c, u;
  double share, tokens;
  bool own;
};

// What a pool takes among its others, falling shares, behind those that are taken in any case.
std::vector<Entry> taken(std::vector<Entry> pool, const VmobaRule& rule, double wanted, int64_t least) {
  std::stable_sort(pool.begin(), pool.end(), [](const Entry& a, const Entry& b) { return a.share > b.share; });
  std::map<std::pair<int64_t, int64_t>, int64_t> of_chooser;
  std::vector<Entry> first, rest;
  double total = 0, own = 0;
  for (const Entry& e : pool) {
    total += e.share * e.tokens;
    if (e.own) own += e.share * e.tokens;
    if (!e.own) (of_chooser[{e.n, e.u}]++ < least - 1 ? first : rest).push_back(e);
  }
  std::vector<Entry> out = first;
  double sum = own / (total + 1e-6), count = 0;
  for (const Entry& e : first) sum += e.share * e.tokens / (total + 1e-6), count += e.tokens;
  for (const Entry& e : rest) {
    const bool threshold = rule.select == SelectMode::kThreshold;
    const bool one_of_pool = out.empty() && threshold;  // every pool takes one
    if (threshold ? !one_of_pool && sum >= rule.tau : count >= wanted) break;
    out.push_back(e);
    sum += e.share * e.tokens / (total + 1e-6);
    count += e.tokens;
  }
  return out;
}

// From logarithms of shares [N, C, U].
at::Tensor expected_mask(const Choosers& who, const VmobaRule& rule, const at::Tensor& log_NCU) {
  const at::Tensor log64 = log_NCU.to(at::kDouble).contiguous(), block_U = who.block_of.to(at::kLong);
  std::map<std::pair<int64_t, int64_t>, std::vector<Entry>> pools;
  at::Tensor mask = at::zeros(log64.sizes(), at::kBool);
  for (int64_t c = 0; c < log64.size(1); ++c)
    for (int64_t n = 0; n < log64.size(0); ++n)
      for (int64_t u = 0; u < log64.size(2); ++u) {
        const double tokens = who.tokens.defined() ? who.tokens[u].item<double>() : 1;
        std::pair<int64_t, int64_t> key = {0, 0};
        if (rule.pool == Pool::kQueryHead) key = {n, u};
        if (rule.pool == Pool::kBlock) key = {c, 0};
        if (rule.pool == Pool::kHeadGlobal) key = {n, 0};
        const bool own = block_U[u].item<int64_t>() == c;
        pools[key].push_back({n, c, u, std::exp(log64[n][c][u].item<double>()), tokens, own});
        if (own) mask[n][c][u] = true;
      }
  for (const auto& [key, pool] : pools) {
    double wanted = double(rule.topk - 1) * double(who.all_tokens);
    if (rule.pool == Pool::kOverall) wanted *= double(log64.size(0));
    if (rule.pool == Pool::kQueryHead) wanted = double(rule.topk - 1) * pool.front().tokens;
    for (const Entry& e : taken(pool, rule, wanted, rule.least_blocks)) mask[e.n][e.c][e.u] = true;
  }
  return mask;
}

}  // namespace

TEST_CASE("a block's share is what its sub-blocks' means get of the softmax over all means") {
  const at::Tensor q = 3 * normal_tensor("q", {kGrid.tokens(), kHeads, kHeadDim});
  const at::Tensor k = normal_tensor("k", {kGrid.tokens(), kHeads, kHeadDim});
  const std::vector<int64_t> block_of = test::oracle_block_of_token(kGrid, kChunk),
                             order = test::oracle_token_order(block_of);
  for (const bool fine : {false, true})
    for (const int64_t tile : {1, 5, 0}) {
      INFO("fine " << fine << ", tiles of " << tile);
      VmobaRule rule = share_rule(SelectMode::kThreshold, Pool::kQueryHead);
      if (fine) rule.gate_block = kCut;
      rule.query_tile = tile;
      const BlockProblem problem = problem_of(rule);
      const at::Tensor found = log_shares_NCU(problem, q, k).exp();
      const auto sub_of = fine ? test::oracle_block_of_token(kGrid, kNested) : block_of;
      CHECK(at::allclose(found.sum(1), at::ones({kHeads, found.size(2)}, at::kDouble), 1e-12, 1e-12));
      const at::Tensor order_S = at::tensor(order, at::kLong);
      for (int64_t n = 0; n < kHeads; ++n)
        for (int64_t u = 0; u < found.size(2); ++u) {
          const at::Tensor rows = problem.tiles ? (problem.tiles->tile_of_S == u).nonzero().view(-1) : at::tensor({u});
          const at::Tensor row_D = q.select(1, n).index_select(0, order_S.index_select(0, rows)).mean(0);
          const std::vector<double> expected = shares_of(row_D, k.select(1, n), sub_of, block_of);
          for (int64_t c = 0; c < 4; ++c) CHECK(found[n][c][u].item<double>() == Approx(expected[size_t(c)]));
        }
    }
}

TEST_CASE("selections on shares agree with loops, for every pool, tiles and a least number of blocks") {
  const at::Tensor q = 3 * normal_tensor("q", {kGrid.tokens(), kHeads, kHeadDim}, at::kFloat);
  const at::Tensor k = normal_tensor("k", {kGrid.tokens(), kHeads, kHeadDim}, at::kFloat);
  std::vector<VmobaRule> rules;
  for (const Pool pool : {Pool::kQueryHead, Pool::kBlock, Pool::kHeadGlobal, Pool::kOverall})
    for (const int64_t tile : {1, 5, 0})
      for (const int64_t least : {1, 2, 4}) {
        if (least > 1 && pool != Pool::kHeadGlobal && pool != Pool::kOverall) continue;
        const auto add = [&](VmobaRule rule) {
          rule.query_tile = tile;
          rule.least_blocks = least;
          rule.gate_block = kCut;
          rules.push_back(rule);
        };
        for (const double tau : {0.0, 0.3, 0.7, 0.95}) add(share_rule(SelectMode::kThreshold, pool, tau));
        for (const int64_t topk : {1, 2, 3}) {
          VmobaRule rule = share_rule(SelectMode::kTopk, pool);
          rule.topk = topk;
          if (pool != Pool::kBlock) add(rule);
        }
      }
  for (const VmobaRule& rule : rules) {
    INFO("pool " << int(rule.pool) << " select " << int(rule.select) << " tau " << rule.tau << " k " << rule.topk
                 << " tile " << rule.query_tile << " least " << rule.least_blocks);
    const BlockProblem problem = problem_of(rule);
    const Choosers who = choosers(problem);
    const at::Tensor log_NCU = log_shares_NCU(problem, q, k);
    CHECK(at::equal(select(who, rule, log_NCU), expected_mask(who, rule, log_NCU)));
  }
}

TEST_CASE("a least number of blocks holds for every query, inside the density that is asked for") {
  for (const Score score : {Score::kGate, Score::kShare})
    for (const int64_t least : {1, 2, 3}) {
      VmobaRule rule{SelectMode::kTopk, Pool::kOverall};
      rule.score = score;
      rule.least_blocks = least;
      rule.density = 0.5;  // 2 blocks of 4
      const at::Tensor q = 5 * normal_tensor("q", {2, kGrid.tokens(), kHeads, kHeadDim}, at::kFloat);
      const at::Tensor k = normal_tensor("k", {2, kGrid.tokens(), kHeads, kHeadDim}, at::kFloat);
      const BlockProblem problem = problem_of(rule);
      const at::Tensor blocks_BNS = attends_BNCS(problem, vmoba_method().select(problem, q, k, k, {})).sum(2);
      CHECK(blocks_BNS.min().item<int64_t>() >= least);
      if (least == 1) CHECK(blocks_BNS.min().item<int64_t>() == 1);  // the pool starves some
      const int64_t all = std::max<int64_t>(2, least) * kHeads * kGrid.tokens();
      CHECK(blocks_BNS.sum({1, 2}).eq(all).all().item<bool>());
    }
}

TEST_CASE("shares far below the range of fp32 keep their order") {
  VmobaRule rule = share_rule(SelectMode::kTopk, Pool::kQueryHead);
  rule.topk = 2;
  const BlockProblem problem = problem_of(rule);
  at::Tensor k = at::zeros({kGrid.tokens(), kHeads, kHeadDim}, at::kFloat);
  const auto block_of = test::oracle_block_of_token(kGrid, kChunk);
  for (int64_t s = 0; s < kGrid.tokens(); ++s) k[s].select(1, 0).fill_(double(block_of[size_t(s)]));
  const at::Tensor q = at::full(k.sizes(), 2000.0, k.options());  // scores 0, 707, 1414, 2121
  const at::Tensor mask = select(choosers(problem), rule, log_shares_NCU(problem, q, k));
  const at::Tensor own_last = problem.tables->block_of_S == 3;
  // Queries of the last block take the third as their second; all others the last.
  CHECK(mask[0][2].logical_or(own_last.logical_not()).all().item<bool>());
  CHECK(mask[0][3].all().item<bool>());
}
