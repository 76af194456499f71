#include "support/attention_oracle.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace vmoba::test {

using attention::Pool;
using attention::SelectMode;

namespace {

// Block of coordinate i: the first (length mod blocks) blocks are one longer than the others.
int64_t block_of_coordinate(int64_t i, int64_t length, int64_t chunk) {
  if (chunk == 0) return 0;
  const int64_t blocks = (length + chunk - 1) / chunk, small = length / blocks, longer = length % blocks;
  const int64_t in_longer = longer * (small + 1);
  return i < in_longer ? i / (small + 1) : longer + (i - in_longer) / small;
}

struct Entry {
  int64_t n, c, s;
  double gate;
  bool own;
};

std::vector<Entry> chosen(const std::vector<Entry>& pool, const attention::VmobaRule& rule, size_t topk_take) {
  std::vector<Entry> others;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const Entry& e : pool) {
    low = std::min(low, e.gate);
    high = std::max(high, e.gate);
    if (!e.own) others.push_back(e);
  }
  std::stable_sort(others.begin(), others.end(), [](const Entry& a, const Entry& b) { return a.gate > b.gate; });
  if (rule.select == SelectMode::kTopk) {
    others.resize(std::min(others.size(), topk_take));
    return others;
  }
  const double range = high - low <= 1e-6 ? 1.0 : high - low;
  double total = 0, own = 0;
  for (const Entry& e : pool) {
    total += (e.gate - low) / range;
    if (e.own) own += (e.gate - low) / range;
  }
  const double rest = std::max(0.0, rule.tau - own / (total + 1e-6));
  double sum = 0;
  for (size_t k = 0; k < others.size(); ++k) {
    sum += (others[k].gate - low) / range;
    if (sum / (total + 1e-6) >= rest) {
      others.resize(k + 1);
      break;
    }
  }
  return others;
}

}  // namespace

std::vector<int64_t> oracle_block_of_token(const attention::Grid& grid, const std::array<int64_t, 3>& chunk) {
  const auto blocks = [](int64_t length, int64_t c) { return c == 0 ? 1 : (length + c - 1) / c; };
  std::vector<int64_t> block;
  for (int64_t t = 0; t < grid.t; ++t)
    for (int64_t h = 0; h < grid.h; ++h)
      for (int64_t w = 0; w < grid.w; ++w)
        block.push_back((block_of_coordinate(t, grid.t, chunk[0]) * blocks(grid.h, chunk[1]) +
                         block_of_coordinate(h, grid.h, chunk[1])) *
                            blocks(grid.w, chunk[2]) +
                        block_of_coordinate(w, grid.w, chunk[2]));
  return block;
}

std::vector<int64_t> oracle_token_order(const std::vector<int64_t>& block_of_token) {
  std::vector<int64_t> order(block_of_token.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return block_of_token[a] < block_of_token[b]; });
  return order;
}

at::Tensor oracle_gate(const at::Tensor& q_SND, const at::Tensor& k_SND, const std::vector<int64_t>& block_of_token) {
  const int64_t blocks = 1 + *std::max_element(block_of_token.begin(), block_of_token.end());
  const at::Tensor block_S = at::tensor(block_of_token, at::kLong);
  std::vector<at::Tensor> gates;
  for (int64_t c = 0; c < blocks; ++c) {
    const at::Tensor mean_ND = k_SND.to(at::kDouble).index_select(0, (block_S == c).nonzero().view(-1)).mean(0);
    gates.push_back((q_SND.to(at::kDouble) * mean_ND).sum(2).t());
  }
  return at::stack(gates, 1).index_select(2, at::tensor(oracle_token_order(block_of_token), at::kLong));
}

at::Tensor oracle_select(const at::Tensor& gate_NCS, const std::vector<int64_t>& block_of_token,
                         const attention::VmobaRule& rule) {
  const int64_t heads = gate_NCS.size(0), blocks = gate_NCS.size(1), tokens = gate_NCS.size(2);
  const std::vector<int64_t> order = oracle_token_order(block_of_token);
  const at::Tensor gate = gate_NCS.to(at::kDouble).contiguous();
  at::Tensor mask_NCS = at::zeros(gate.sizes(), at::kBool);
  auto mask = mask_NCS.accessor<bool, 3>();
  const auto g = gate.accessor<double, 3>();
  std::map<std::pair<int64_t, int64_t>, std::vector<Entry>> pools;
  for (int64_t c = 0; c < blocks; ++c)
    for (int64_t n = 0; n < heads; ++n)
      for (int64_t s = 0; s < tokens; ++s) {
        const bool own = block_of_token[order[s]] == c;
        mask[n][c][s] = own || (rule.select == SelectMode::kThreshold && rule.tau >= 1);
        std::pair<int64_t, int64_t> key = {0, 0};
        if (rule.pool == Pool::kQueryHead) key = {n, s};
        if (rule.pool == Pool::kBlock) key = {c, 0};
        if (rule.pool == Pool::kHeadGlobal) key = {n, 0};
        pools[key].push_back({n, c, s, g[n][c][s], own});
      }
  const int64_t rows = rule.pool == Pool::kQueryHead ? 1 : rule.pool == Pool::kHeadGlobal ? tokens : heads * tokens;
  for (const auto& [key, pool] : pools)
    for (const Entry& e : chosen(pool, rule, static_cast<size_t>((rule.topk - 1) * rows))) mask[e.n][e.c][e.s] = true;
  return mask_NCS;
}

at::Tensor oracle_allowed(const at::Tensor& mask_BNCS, const std::vector<int64_t>& block_of_token, int64_t tokens) {
  const std::vector<int64_t> order = oracle_token_order(block_of_token);
  const int64_t video = static_cast<int64_t>(order.size());
  at::Tensor allowed = at::ones({mask_BNCS.size(0), mask_BNCS.size(1), tokens, tokens}, at::kBool);
  auto out = allowed.accessor<bool, 4>();
  const auto mask = mask_BNCS.accessor<bool, 4>();
  for (int64_t b = 0; b < mask_BNCS.size(0); ++b)
    for (int64_t n = 0; n < mask_BNCS.size(1); ++n)
      for (int64_t s = 0; s < video; ++s)
        for (int64_t j = 0; j < video; ++j) out[b][n][order[s]][j] = mask[b][n][block_of_token[j]][s];
  return allowed;
}

at::Tensor oracle_attention(const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                            const at::Tensor& mask_BNCS, const std::vector<int64_t>& block_of_token,
                            const std::vector<int64_t>& text_lengths) {
  const int64_t tokens = q_BZND.size(1), video = static_cast<int64_t>(block_of_token.size());
  at::Tensor allowed = oracle_allowed(mask_BNCS, block_of_token, tokens);
  at::Tensor counts = at::ones({q_BZND.size(0), tokens, 1, 1}, q_BZND.options());
  for (size_t b = 0; b < text_lengths.size(); ++b)
    for (int64_t i = video + text_lengths[b]; i < tokens; ++i) {
      counts[int64_t(b)][i] = 0;
      allowed[int64_t(b)].select(2, i) = false;
    }
  const double scale = 1.0 / std::sqrt(static_cast<double>(q_BZND.size(3)));
  const at::Tensor scores = at::einsum("bind,bjnd->bnij", {q_BZND, k_BZND}) * scale;
  const at::Tensor p = scores.masked_fill(allowed.logical_not(), -std::numeric_limits<double>::infinity()).softmax(-1);
  return at::einsum("bnij,bjnd->bind", {p, v_BZND}) * counts;
}

}  // namespace vmoba::test
