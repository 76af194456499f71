// Launch interface of the kernels that turn bf16 matrices into factors of fp8 products: values and what they are
// multiplied with. A matrix is read once for its rows and once for its transpose; what stands before the product (GELU,
// its derivative) and the sums for biases are part of the same pass.
//
// The rules of pointwise.h hold. A row's scale is the least power of two under which its largest magnitude is a number
// of the format, and at least kLeastScale; values are x / scale rounded to the nearest.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace vmoba::quantise {

enum class Format : int32_t { kE4m3, kE5m2 };
constexpr float kLargestE4m3 = 448, kLargestE5m2 = 57344;
constexpr float kLeastScale = 0x1p-100f;

// What is quantised of x: itself; GELU of it in its tanh form; x times GELU's derivative at `before`. The latter two
// are rounded to bf16 first.
enum class Operation : int32_t { kNone, kGelu, kGeluGradient };

constexpr int kMaxParts = 4;
constexpr int32_t kMaxWidth = 16384;
constexpr int64_t kMultiple = 16;  // of widths, and of the columns of a transpose

// Matrices [rows, width] side by side are one.
struct Part {
  const void* x = nullptr;  // bf16
  int32_t width = 0;        // a multiple of kMultiple; at most kMaxWidth in all
};

// Each row under a scale of its own.
struct Rows {
  Part parts[kMaxParts];
  int32_t part_count = 1;
  int64_t rows = 0;
  Format format = Format::kE4m3;
  Operation operation = Operation::kNone;
  const void* before = nullptr;  // of kGeluGradient, which has one part and sums
  void* values = nullptr;        // fp8 [rows, width in all]
  float* scale = nullptr;        // [rows]
  float* largest = nullptr;      // [1]: the largest scale
  float* sums = nullptr;         // [width in all]: what is quantised, summed over rows; null: none, as of kGelu
  void* workspace = nullptr;     // of sums: sums_workspace_bytes()
};
cudaError_t quantise_rows(const Rows& call, cudaStream_t stream);
size_t sums_workspace_bytes(int64_t rows, int64_t width);

// The transpose under one scale: values [width, padded] with zeros behind column `rows`; `padded` is the next multiple
// of kMultiple.
struct Transpose {
  int64_t rows = 0;
  int32_t width = 0;
  Format format = Format::kE4m3;
  const float* scale = nullptr;  // [1], of the result
  void* values = nullptr;
};
// Of a bf16 matrix.
cudaError_t quantise_transposed(const Transpose& call, const void* x, Operation operation, cudaStream_t stream);
// Of a matrix [rows, width] of the same format whose rows have the scales `of_rows`, none larger than that of the
// result.
cudaError_t transpose(const Transpose& call, const void* values, const float* of_rows, cudaStream_t stream);

}  // namespace vmoba::quantise
