#include "attention/full/query_runs.h"

#include "attention/full/full.h"

namespace vmoba::attention {

int64_t query_runs(int64_t samples, int64_t queries, int64_t heads, int64_t keys) {
  constexpr int64_t kKeysOfBlock = 128, kBlocks = 2 * 132, kLeastQueries = 1024;
  const int64_t blocks = samples * heads * ((keys + kKeysOfBlock - 1) / kKeysOfBlock);
  if (blocks == 0) return 1;
  const int64_t wanted = (kBlocks + blocks - 1) / blocks;
  for (int64_t runs = wanted; runs > 1 && runs < 2 * wanted; ++runs)
    if (queries % runs == 0 && queries / runs >= kLeastQueries) return runs;
  return 1;
}

at::Tensor attend_in_runs(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND, int64_t runs,
                          ResultTape* tape) {
  const auto for_each = [runs](const at::Tensor& x_BLND) {
    const at::Tensor many = x_BLND.unsqueeze(1).expand({-1, runs, -1, -1, -1});
    return many.contiguous().flatten(0, 1);
  };
  const at::Tensor q = q_BSND.unflatten(1, {runs, -1}).flatten(0, 1);
  const at::Tensor out = full_attention(q, for_each(k_BLND), for_each(v_BLND), tape);
  return out.unflatten(0, {-1, runs}).flatten(1, 2);
}

}  // namespace vmoba::attention
