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
    at::Tensor gate_CS = gate_NCS[n];
    at::mm_out(gate_CS, means_of_runs_RD(k_SD, tables.block_start), q_SD.t());
  });
  return gate_NCS;
}

at::Tensor tile_gate_NCU(const PartitionTables& tables, const TileTables& tiles, const at::Tensor& q_ZND,
                         const at::Tensor& k_ZND) {
  const int64_t heads = q_ZND.size(1);
  const at::Tensor order_S = tables.token_of_S.to(at::kLong);
  at::Tensor gate_NCU =
      at::empty({heads, tables.blocks, tiles.tiles}, q_ZND.options().dtype(reference::compute_type(q_ZND)));
  reference::for_each_task(heads, q_ZND.is_cpu(), [&](int64_t n) {
    const auto means = [&](const at::Tensor& x_ZND, const std::vector<int64_t>& start) {
      return means_of_runs_RD(x_ZND.select(1, n).index_select(0, order_S), start);
    };
    at::Tensor gate_CU = gate_NCU[n];
    at::mm_out(gate_CU, means(k_ZND, tables.block_start), means(q_ZND, tiles.start).t());
  });
  return gate_NCU;
}

}  // namespace vmoba::attention
