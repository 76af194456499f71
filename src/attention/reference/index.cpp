#include <ATen/ATen.h>

#include "attention/reference/reference.h"

namespace vmoba::attention::reference {

at::Tensor token_order_Z(const PartitionTables& tables, int64_t text_tokens) {
  const at::Tensor order_S = tables.token_of_S.to(at::kLong);
  if (text_tokens == 0) return order_S;
  return at::cat({order_S, at::arange(tables.tokens, tables.tokens + text_tokens, order_S.options())});
}

RowLists index_rows(const at::Tensor& mask_CS, int64_t text_tokens) {
  const int64_t blocks = mask_CS.size(0), tokens = mask_CS.size(1);
  at::Tensor mask_EZ = mask_CS;
  if (text_tokens > 0) {
    mask_EZ = at::ones({blocks + 1, tokens + text_tokens}, mask_CS.options());
    mask_EZ.slice(0, 0, blocks).slice(1, 0, tokens).copy_(mask_CS);
  }
  RowLists lists;
  lists.rows = mask_EZ.nonzero().select(1, 1).contiguous();
  lists.start.push_back(0);
  const at::Tensor lengths_E = mask_EZ.sum(1).cpu();
  for (int64_t e = 0; e < mask_EZ.size(0); ++e)
    lists.start.push_back(lists.start.back() + lengths_E.const_data_ptr<int64_t>()[e]);
  return lists;
}

}  // namespace vmoba::attention::reference
