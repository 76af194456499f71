// Full attention: its row is declared in attention/attention.h, the call that torch's kernels compute here.
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/method.h"

namespace vmoba::attention {

// q [B, S, N, D] over k, v [B, L, N, D] -> [B, S, N, D]; differentiable. On a GPU cuDNN's kernels come first. `tape`
// may be null; where torch chooses a kernel whose results it cannot take, they are computed again.
at::Tensor full_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND,
                          ResultTape* tape = nullptr);

}  // namespace vmoba::attention
