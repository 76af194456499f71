#include "model/kernels/rows.cuh"

namespace vmoba::pointwise {
namespace {

// Rotates neighbouring pairs of a vector that begins at `column`; `turn` 1 forward, -1 back.
template <typename Call>
__device__ __forceinline__ void rotate(const Call& call, int64_t row, int column, float turn, Values& x) {
  const int64_t at = (row / call.rows_per_place % call.table_rows) * (call.head_dim / 2) + (column % call.head_dim) / 2;
  const float4* table = reinterpret_cast<const float4*>(call.table + at);
#pragma unroll
  for (int two = 0; two < 2; ++two) {
    const float4 e = __ldg(table + two);
    float* v = x.v + 4 * two;
    const float a = v[0], b = v[1], c = v[2], d = v[3];
    v[0] = a * e.x - b * (turn * e.y);
    v[1] = a * (turn * e.y) + b * e.x;
    v[2] = c * e.z - d * (turn * e.w);
    v[3] = c * (turn * e.w) + d * e.z;
  }
}

template <int V>
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(RmsNorm call, Chunks chunks) {
  __shared__ BlockSum<1>::Storage storage;
  BlockSum<1> sum(storage);
  const Place place(chunks, call.rows.width);
  const float inverse_width = 1.0f / float(place.width);
  Values weight[V];
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (place.has(v)) weight[v] = load_floats(call.weight + place.column(v));
  for_each_row<V>(place, {call.x}, [&](int64_t row, Values(&rows)[1][V]) {
    Values(&x)[V] = rows[0];
    float square[1] = {0};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
#pragma unroll
      for (const float one : x[v].v) square[0] += one * one;
    }
    sum(square);
    const float rstd = rsqrtf(square[0] * inverse_width + call.eps);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) x[v].v[i] = x[v].v[i] * rstd * weight[v].v[i];
      if (call.table != nullptr) {
#pragma unroll
        for (float& one : x[v].v) one = rounded(one);
        rotate(call, row, place.column(v), 1.0f, x[v]);
      }
      store(call.y, row * place.width + place.column(v), x[v]);
    }
    if (threadIdx.x == 0) call.rstd[row] = rstd;
  });
}

// dx = rstd (g - n mean(g n)) with n = x rstd and g = dn weight, dn the gradient before the rotation.
template <int V>
__global__ void __launch_bounds__(kMaxThreads)
    backward_kernel(RmsNormBackward call, Chunks chunks, float* dweight, float* dbias) {
  __shared__ BlockSum<1>::Storage storage;
  BlockSum<1> sum(storage);
  const Place place(chunks, call.rows.width);
  const float inverse_width = 1.0f / float(place.width);
  Values weight[V], weight_sum[V] = {}, bias_sum[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (place.has(v)) weight[v] = load_floats(call.weight + place.column(v));
  for_each_row<V>(place, {call.x, call.dy}, [&](int64_t row, Values(&rows)[2][V]) {
    const float rstd = call.rstd[row];
    Values(&n)[V] = rows[0], (&g)[V] = rows[1];
    float product[1] = {0};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
      if (call.table != nullptr) {
        rotate(call, row, place.column(v), -1.0f, g[v]);
#pragma unroll
        for (float& one : g[v].v) one = rounded(one);
      }
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        n[v].v[i] *= rstd;
        weight_sum[v].v[i] += g[v].v[i] * n[v].v[i];
        g[v].v[i] *= weight[v].v[i];
        product[0] += g[v].v[i] * n[v].v[i];
      }
    }
    sum(product);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        g[v].v[i] = rstd * (g[v].v[i] - n[v].v[i] * (product[0] * inverse_width));
        bias_sum[v].v[i] += g[v].v[i];
      }
      store(call.dx, row * place.width + place.column(v), g[v]);
    }
  });
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    const int64_t at = int64_t(blockIdx.x) * place.width + place.column(v);
    if (dweight != nullptr) store_floats(dweight + at, weight_sum[v]);
    if (dbias != nullptr) store_floats(dbias + at, bias_sum[v]);
  }
}

template <typename Call>
bool valid_rotation(const Call& call) {
  if (call.table == nullptr) return true;
  return aligned(call.table) && call.table_rows > 0 && call.rows_per_place > 0 && call.head_dim > 0 &&
         call.head_dim % kLanes == 0 && call.rows.width % call.head_dim == 0;
}

}  // namespace

cudaError_t rms_norm(const RmsNorm& call, cudaStream_t stream) {
  if (!valid(call.rows) || call.rows.runs != 1 || !valid_rotation(call) ||
      !aligned(call.x, call.weight, call.y, call.rstd))
    return cudaErrorInvalidValue;
  const Chunks chunks = forward_chunks(call.rows);
  const BlockShape shape = block_shape(call.rows.width);
  return with_vectors(shape.vectors, [&](auto vectors) {
    forward_kernel<vectors()><<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, chunks);
    return cudaGetLastError();
  });
}

cudaError_t rms_norm_backward(const RmsNormBackward& call, cudaStream_t stream) {
  if (!valid(call.rows) || call.rows.runs != 1 || !valid_rotation(call) ||
      !aligned(call.x, call.dy, call.weight, call.rstd, call.dx))
    return cudaErrorInvalidValue;
  const Chunks chunks = backward_chunks(call.rows);
  for (const float* columns : {call.dweight, call.dbias})
    if (columns != nullptr && !(aligned(columns) && ColumnSums::has_room(chunks, call.workspace)))
      return cudaErrorInvalidValue;
  const BlockShape shape = block_shape(call.rows.width);
  const ColumnSums weight(call.rows, chunks, 0, call.workspace, call.dweight);
  const ColumnSums bias(call.rows, chunks, 1, call.workspace, call.dbias);
  const cudaError_t error = with_vectors(shape.vectors, [&](auto vectors) {
    backward_kernel<vectors()>
        <<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, chunks, weight.partial, bias.partial);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  const cudaError_t finished = weight.finish(call.rows, chunks, stream);
  return finished != cudaSuccess ? finished : bias.finish(call.rows, chunks, stream);
}

}  // namespace vmoba::pointwise
