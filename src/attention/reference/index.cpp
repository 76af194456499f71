#include <ATen/ATen.h>

#include "attention/reference/reference.h"

namespace vmoba::attention::reference {

HeadRows index_rows(const at::Tensor& attends_EZ) {
  HeadRows lists;
  lists.rows = attends_EZ.nonzero().select(1, 1).contiguous();
  lists.start.push_back(0);
  const at::Tensor lengths_E = attends_EZ.sum(1).cpu();
  for (int64_t e = 0; e < attends_EZ.size(0); ++e)
    lists.start.push_back(lists.start.back() + lengths_E.const_data_ptr<int64_t>()[e]);
  return lists;
}

}  // namespace vmoba::attention::reference
