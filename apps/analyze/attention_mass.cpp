#include "apps/analyze/attention_mass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace vmoba::apps {
namespace {

constexpr int64_t kSortedQueries = 512;  // of a head: sorting all keys of all queries would take longer than the rest

// Block of each token, original order.
at::Tensor block_of_token_S(const attention::PartitionTables& tables) {
  at::Tensor out = at::empty({tables.tokens}, tables.block_of_S.options().dtype(at::kLong));
  return out.index_copy_(0, tables.token_of_S.to(at::kLong), tables.block_of_S.to(at::kLong));
}

at::Tensor keys_for_most(const at::Tensor& share_RS) {
  const at::Tensor sorted_RS = std::get<0>(share_RS.sort(1, /*descending=*/true));
  return (sorted_RS.cumsum(1) < 0.9).sum(1) + 1;
}

}  // namespace

HeadMass attention_mass(const at::Tensor& q_SD, const at::Tensor& k_SD,
                        const std::vector<const attention::PartitionTables*>& partitions, int64_t scores) {
  const int64_t tokens = q_SD.size(0), rows = std::clamp<int64_t>(scores / tokens, 1, tokens);
  const int64_t apart = std::max<int64_t>(1, tokens / kSortedQueries);
  const at::Tensor q = q_SD.to(at::kFloat) / std::sqrt(double(q_SD.size(1))), k_DS = k_SD.to(at::kFloat).t();
  HeadMass out;
  std::vector<at::Tensor> block_of;
  for (const attention::PartitionTables* tables : partitions) {
    block_of.push_back(block_of_token_S(*tables));
    out.mass_CS.push_back(at::zeros({tables->blocks, tokens}, q.options()));
  }
  out.entropy_S = at::empty({tokens}, q.options());
  std::vector<at::Tensor> keys;
  for (int64_t begin = 0; begin < tokens; begin += rows) {
    const int64_t end = std::min(begin + rows, tokens);
    const at::Tensor score_RS = at::matmul(q.slice(0, begin, end), k_DS);
    const at::Tensor lse_R1 = score_RS.logsumexp({1}, /*keepdim=*/true), share_RS = (score_RS - lse_R1).exp();
    out.entropy_S.slice(0, begin, end).copy_(lse_R1.squeeze(1) - (share_RS * score_RS).sum(1));
    for (size_t p = 0; p < partitions.size(); ++p)
      out.mass_CS[p].slice(1, begin, end).index_add_(0, block_of[p], share_RS.t());
    const int64_t first = (apart - begin % apart) % apart;
    if (first < end - begin) keys.push_back(keys_for_most(share_RS.slice(0, first, end - begin, apart)));
  }
  out.keys_R = at::cat(keys);
  return out;
}

}  // namespace vmoba::apps
