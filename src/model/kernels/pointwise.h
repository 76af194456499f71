// Launch interface of the kernels for what stands between a transformer's matrix products: layer norm with modulation,
// RMS norm with rotation, gated residuals. One pass over memory each, forward and backward.
//
// Plain structs of device pointers; the caller owns all memory, asks column_workspace_bytes() for scratch, and passes
// a stream. Every call is asynchronous on that stream, never synchronises, allocates or prints, and returns the first
// cudaError_t it met (cudaErrorInvalidValue for arguments out of range). No torch here: src/model/common/pointwise.cpp
// binds these to tensors.
//
// Activations are bf16 [rows, width], row after row; statistics, modulation, weights and their gradients fp32; sums are
// taken in fp32. Where the plain operations round to bf16 between two steps, so do these, in registers. Rows stand in
// `runs` equal runs: row r belongs to run r / (rows / runs), and modulation is [runs, width]. Pointers are aligned to
// 16 bytes. Sums over rows are added in an order that depends on the sizes alone: every run of a kernel gives the same
// bits.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace vmoba::pointwise {

constexpr int32_t kMaxWidth = 16384;

struct Rows {
  int64_t rows = 0;
  int64_t runs = 1;   // a divisor of rows
  int32_t width = 0;  // a multiple of 8, at most kMaxWidth
};

// Scratch of the backward calls below that are asked for a gradient of modulation, weight, bias or gate.
size_t column_workspace_bytes(const Rows& rows);

// y = (x - mean) / sqrt(variance + eps) * (scale + offset) + shift. Modulation (adaLN, arXiv 2212.09748) has offset 1;
// weight and bias of a plain layer norm are one run with offset 0.
struct LayerNorm {
  Rows rows;
  float eps = 1e-6f, offset = 1;
  const void* x = nullptr;
  const float *scale = nullptr, *shift = nullptr;
  void* y = nullptr;
  float *mean = nullptr, *rstd = nullptr;  // [rows], for backward
};
cudaError_t layer_norm(const LayerNorm& call, cudaStream_t stream);

struct LayerNormBackward {
  Rows rows;
  float offset = 1;
  const void *x = nullptr, *dy = nullptr;
  const float *scale = nullptr, *mean = nullptr, *rstd = nullptr;
  void* dx = nullptr;
  float *dscale = nullptr, *dshift = nullptr;  // both or none
  void* workspace = nullptr;
};
cudaError_t layer_norm_backward(const LayerNormBackward& call, cudaStream_t stream);

// A residual and the norm of what comes of it: sum = x + branch * gate, y = layer_norm(sum). Both have one number of
// runs.
constexpr int32_t kMaxSumNormWidth = 4096;
struct SumNorm {
  Rows rows;  // of at most kMaxSumNormWidth columns
  float eps = 1e-6f, offset = 1;
  const void *x = nullptr, *branch = nullptr;
  const float* gate = nullptr;  // null: 1
  const float *scale = nullptr, *shift = nullptr;
  void *sum = nullptr, *y = nullptr;
  float *mean = nullptr, *rstd = nullptr;  // [rows], for backward
};
cudaError_t sum_norm(const SumNorm& call, cudaStream_t stream);

struct SumNormBackward {
  Rows rows;
  float offset = 1;
  const void *sum = nullptr, *dsum = nullptr, *dy = nullptr;  // dsum: of the sum's uses beside the norm
  const void* branch = nullptr;                               // read where there is a gate
  const float *gate = nullptr, *scale = nullptr, *mean = nullptr, *rstd = nullptr;
  void* dx = nullptr;
  void* dbranch = nullptr;   // written where there is a gate; else it is dx
  float* columns = nullptr;  // [4, runs, width]: of scale, of shift, dbranch summed over rows, of the gate (if any)
  void* workspace = nullptr;
};
size_t sum_norm_workspace_bytes(const Rows& rows);
cudaError_t sum_norm_backward(const SumNormBackward& call, cudaStream_t stream);

// n = bf16(x / sqrt(mean(x^2) + eps) * weight) over the whole row; with a table, neighbouring columns are then rotated:
// y = (a + ib) * e, where pair p of a head of row r takes e = table[(r / rows_per_place) % table_rows][p]. One run.
struct RmsNorm {
  Rows rows;
  float eps = 1e-6f;
  const void* x = nullptr;
  const float* weight = nullptr;  // [width]
  const float2* table = nullptr;  // [table_rows, head_dim / 2], cosine and sine; null: no rotation
  int64_t table_rows = 0;
  int32_t head_dim = 0;  // a multiple of 8 and a divisor of width, where there is a table
  void* y = nullptr;
  float* rstd = nullptr;  // [rows], for backward
  int64_t rows_per_place = 1;
};
cudaError_t rms_norm(const RmsNorm& call, cudaStream_t stream);

struct RmsNormBackward {
  Rows rows;
  const void *x = nullptr, *dy = nullptr;
  const float *weight = nullptr, *rstd = nullptr;
  const float2* table = nullptr;
  int64_t table_rows = 0;
  int32_t head_dim = 0;
  void* dx = nullptr;
  float* dweight = nullptr;  // may be null
  void* workspace = nullptr;
  int64_t rows_per_place = 1;
  float* dbias = nullptr;  // [width]: dx summed over rows; may be null
};
cudaError_t rms_norm_backward(const RmsNormBackward& call, cudaStream_t stream);

// y = x + branch * gate.
struct GatedSum {
  Rows rows;
  const void *x = nullptr, *branch = nullptr;
  const float* gate = nullptr;
  void* y = nullptr;
};
cudaError_t gated_sum(const GatedSum& call, cudaStream_t stream);

// The gradient of x is dy itself.
struct GatedSumBackward {
  Rows rows;
  const void *branch = nullptr, *dy = nullptr;
  const float* gate = nullptr;
  void* dbranch = nullptr;
  float* dgate = nullptr;  // may be null
  void* workspace = nullptr;
  float* dbias = nullptr;  // [runs, width]: dbranch summed over a run's rows; may be null
};
cudaError_t gated_sum_backward(const GatedSumBackward& call, cudaStream_t stream);

}  // namespace vmoba::pointwise
