// Full attention of many queries over few keys (cross attention), in runs of queries. A GPU's backward kernels share
// their work out by blocks of keys: 512 keys of 12 heads make 48 blocks for 132 multiprocessors. Runs are samples of
// their own to the kernel, and the gradients of keys and values are added up over them.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "attention/attention.h"

namespace vmoba::attention {

// Runs of equal length that fill a GPU; 1 where there are none. From sizes alone: a forward that is computed again
// makes the same runs.
int64_t query_runs(int64_t samples, int64_t queries, int64_t heads, int64_t keys);

// full_attention() in so many runs, which divide the queries.
at::Tensor attend_in_runs(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND, int64_t runs,
                          ResultTape* tape);

}  // namespace vmoba::attention
