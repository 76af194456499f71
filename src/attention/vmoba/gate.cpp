#include <ATen/ATen.h>

#include "attention/reference/reference.h"
#include "attention/reference/tasks.h"
#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {

at::Tensor gate_NCS(const PartitionTables& tables, const at::Tensor& q_ZND, const at::Tensor& k_ZND) {
  const at::ScalarType type = reference::compute_type(q_ZND);
  const int64_t heads = q_ZND.size(1);
  const at::Tensor order_S = tables.token_of_S.to(at::kLong);
  at::Tensor gate_NCS = at::empty({heads, tables.blocks, tables.tokens}, q_ZND.options().dtype(type));
  reference::for_each_task(heads, q_ZND.is_cpu(), [&](int64_t n) {
    const at::Tensor q_SD = q_ZND.select(1, n).index_select(0, order_S).to(type);
    const at::Tensor k_SD = k_ZND.select(1, n).index_select(0, order_S);
    at::Tensor mean_CD = at::empty({tables.blocks, q_SD.size(1)}, q_SD.options());
    for (int64_t c = 0; c < tables.blocks; ++c) {
      const at::Tensor k_LD = k_SD.slice(0, tables.block_start[c], tables.block_start[c + 1]);
      mean_CD[c].copy_(k_LD.mean(0, false, at::kDouble));
    }
    at::Tensor gate_CS = gate_NCS[n];
    at::mm_out(gate_CS, mean_CD, q_SD.t());
  });
  return gate_NCS;
}

}  // namespace vmoba::attention
