// Factors of fp8 products (common/fp8_linear.h): values in fp8 and what they are multiplied with. On a GPU each is one
// pass of a kernel (model/kernels/quantise.h); on a CPU ATen's operations give the same values.
//
// Shape letters: R rows, K columns, P R rounded up to a multiple of 16.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/kernels/quantise.h"

namespace vmoba::model {

// Values [R, K] whose rows have scales [R, 1]: powers of two, the least under which a row's largest magnitude is a
// number of the format. `largest` [1, 1] is the largest of them.
struct Fp8Rows {
  at::Tensor values, scale, largest;
};
// Values [K, P], zeros behind column R, with one scale [1, 1].
struct Fp8Transposed {
  at::Tensor values, scale;
};

// Of matrices [R, K_i] side by side, or of GELU of them.
Fp8Rows fp8_rows(const std::vector<at::Tensor>& parts, at::ScalarType format,
                 quantise::Operation operation = quantise::Operation::kNone);
// The same with the sums over the rows, [K] in fp32.
Fp8Rows fp8_rows(const std::vector<at::Tensor>& parts, at::ScalarType format, at::Tensor& sums);
// Of the gradient of GELU's input: dy [R, K] times GELU's derivative at `before` [R, K].
Fp8Rows fp8_rows_through_gelu(const at::Tensor& dy, const at::Tensor& before, at::ScalarType format, at::Tensor& sums);

// Of x [R, K], or GELU of it, under a scale that fp8_rows() found to be the largest, in e4m3.
Fp8Transposed fp8_transposed(const at::Tensor& x, const at::Tensor& scale,
                             quantise::Operation operation = quantise::Operation::kNone);
// Of the values of `rows`, rounded once more, under the largest of its scales.
Fp8Transposed fp8_transposed(const Fp8Rows& rows);

}  // namespace vmoba::model
