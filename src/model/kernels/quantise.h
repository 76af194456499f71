// Launch interface of the kernels that turn bf16 matrices into factors of fp8 products: values and what they are
// multiplied with. One or two passes over memory each.
//
// The rules of pointwise.h hold. A scale is the largest magnitude of its values over the format's largest number, 1
// where all are zero; values are x / scale rounded to the nearest.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace vmoba::quantise {

enum class Format : int32_t { kE4m3, kE5m2 };
constexpr float kLargestE4m3 = 448, kLargestE5m2 = 57344;

struct Matrix {
  const void* x = nullptr;  // bf16 [rows, width]
  int64_t rows = 0;
  int32_t width = 0;  // a multiple of 16, at most 16384
  Format format = Format::kE4m3;
  bool by_row = true;        // of the result: a scale for each of its rows; else one
  void* values = nullptr;    // the result, fp8
  float* scale = nullptr;    // [rows of the result] or [1]
  float* largest = nullptr;  // scratch: as many floats
};

// The result is [rows, width].
cudaError_t quantise(const Matrix& call, cudaStream_t stream);
// The result is [width, padded]: the transpose, zeros behind column `rows`; `padded` is the next multiple of 16.
cudaError_t quantise_transposed(const Matrix& call, cudaStream_t stream);

}  // namespace vmoba::quantise
