// The norm of a row, which a block of threads holds: alone in layer_norm.cu, behind a sum in sum_norm.cu.
#pragma once
#include "model/kernels/rows.cuh"

namespace vmoba::pointwise {

// y = (x - mean) rstd scale + shift, mean and rstd of a row to where `call` has them. x becomes y.
template <int V, typename Call>
__device__ __forceinline__ void normalise_row(const Call& call, const Place& place, int64_t row, Values (&x)[V],
                                              const Values (&scale)[V], const Values (&shift)[V], BlockSum<1>& sum) {
  const float inverse_width = 1.0f / float(place.width);
  float mean[1] = {0}, variance[1] = {0};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
#pragma unroll
    for (const float one : x[v].v) mean[0] += one;
  }
  sum(mean);
  mean[0] *= inverse_width;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
#pragma unroll
    for (float& one : x[v].v) {
      one -= mean[0];
      variance[0] += one * one;
    }
  }
  sum(variance);
  const float rstd = rsqrtf(variance[0] * inverse_width + call.eps);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) x[v].v[i] = x[v].v[i] * rstd * scale[v].v[i] + shift[v].v[i];
    store(call.y, row * place.width + place.column(v), x[v]);
  }
  if (threadIdx.x == 0) {
    call.mean[row] = mean[0];
    call.rstd[row] = rstd;
  }
}

// dx = rstd (g - mean(g) - n mean(g n)) with n = (x - mean) rstd and g = dy scale.
struct RowGradient {
  float rstd, inverse_width;
  float sums[2];  // over the row, of g and of g n

  __device__ __forceinline__ float operator()(float n, float g) const {
    return rstd * (g - (sums[0] + n * sums[1]) * inverse_width);
  }
};

// The gradient of row `row` of the norm whose means and rstds `call` has. x becomes n and dy becomes g; what the row
// adds to the gradients of scale and shift goes to the sums of columns.
template <int V, typename Call>
__device__ __forceinline__ RowGradient row_gradient(const Call& call, const Place& place, int64_t row, Values (&x)[V],
                                                    Values (&dy)[V], const Values (&scale)[V], Values (&scale_sum)[V],
                                                    Values (&shift_sum)[V], BlockSum<2>& sum) {
  const float mean = call.mean[row];
  RowGradient out{call.rstd[row], 1.0f / float(place.width), {0, 0}};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      float &n = x[v].v[i], &g = dy[v].v[i];
      n = (n - mean) * out.rstd;
      shift_sum[v].v[i] += g;
      scale_sum[v].v[i] += g * n;
      g *= scale[v].v[i];
      out.sums[0] += g;
      out.sums[1] += g * n;
    }
  }
  sum(out.sums);
  return out;
}

}  // namespace vmoba::pointwise
