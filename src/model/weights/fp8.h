// Matrices in 8 bits: e4m3 values and a scale for each row.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

struct Fp8Matrix {
  at::Tensor values;  // float8_e4m3fn [out, in]
  at::Tensor scale;   // fp32 [out, 1]: the matrix is values * scale
};

// The largest magnitude of each row becomes 448, the largest e4m3 number.
Fp8Matrix quantise_fp8(const at::Tensor& matrix);

}  // namespace vmoba::model
