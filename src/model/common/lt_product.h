// A product of bf16 matrices on a GPU with what follows it in the same kernel (a cuBLASLt epilogue), where all sizes
// are multiples of 8, else in two. Matrices are contiguous. Launches on the current stream; the workspace comes from
// torch's allocator.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

// (dy [R, O] weight [O, I]) * gelu'(before [R, I]) -> [R, I], GELU in its tanh form. In one kernel the product stays in
// fp32 until it has been multiplied.
at::Tensor product_through_gelu(const at::Tensor& dy_RO, const at::Tensor& weight_OI, const at::Tensor& before_RI);

}  // namespace vmoba::model
