#include "model/kernels/row_norm.cuh"

namespace vmoba::pointwise {
namespace {

template <int V>
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(LayerNorm call, Chunks chunks) {
  __shared__ BlockSum<1>::Storage storage;
  BlockSum<1> sum(storage);
  const Place place(chunks, call.rows.width);
  Values scale[V], shift[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    const int64_t at = place.run * place.width + place.column(v);
    scale[v] = load_floats(call.scale + at);
    shift[v] = load_floats(call.shift + at);
#pragma unroll
    for (float& one : scale[v].v) one += call.offset;
  }
  for_each_row<V>(place, {call.x}, [&](int64_t row, Values(&rows)[1][V]) {
    normalise_row(call, place, row, rows[0], scale, shift, sum);
  });
}

template <int V>
__global__ void __launch_bounds__(kMaxThreads)
    backward_kernel(LayerNormBackward call, Chunks chunks, float* dscale, float* dshift) {
  __shared__ BlockSum<2>::Storage storage;
  BlockSum<2> sum(storage);
  const Place place(chunks, call.rows.width);
  Values scale[V], scale_sum[V] = {}, shift_sum[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    scale[v] = load_floats(call.scale + place.run * place.width + place.column(v));
#pragma unroll
    for (float& one : scale[v].v) one += call.offset;
  }
  for_each_row<V>(place, {call.x, call.dy}, [&](int64_t row, Values(&rows)[2][V]) {
    Values(&n)[V] = rows[0], (&g)[V] = rows[1];
    const RowGradient gradient = row_gradient(call, place, row, n, g, scale, scale_sum, shift_sum, sum);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) g[v].v[i] = gradient(n[v].v[i], g[v].v[i]);
      store(call.dx, row * place.width + place.column(v), g[v]);
    }
  });
  if (dscale == nullptr) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    const int64_t at = int64_t(blockIdx.x) * place.width + place.column(v);
    store_floats(dscale + at, scale_sum[v]);
    store_floats(dshift + at, shift_sum[v]);
  }
}

}  // namespace

cudaError_t layer_norm(const LayerNorm& call, cudaStream_t stream) {
  if (!valid(call.rows) || !aligned(call.x, call.scale, call.shift, call.y, call.mean, call.rstd))
    return cudaErrorInvalidValue;
  const Chunks chunks = forward_chunks(call.rows);
  const BlockShape shape = block_shape(call.rows.width);
  return with_vectors(shape.vectors, [&](auto vectors) {
    forward_kernel<vectors()><<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, chunks);
    return cudaGetLastError();
  });
}

cudaError_t layer_norm_backward(const LayerNormBackward& call, cudaStream_t stream) {
  const bool columns = call.dscale != nullptr;
  if (!valid(call.rows) || !aligned(call.x, call.dy, call.scale, call.mean, call.rstd, call.dx))
    return cudaErrorInvalidValue;
  const Chunks chunks = backward_chunks(call.rows);
  if (columns != (call.dshift != nullptr) ||
      (columns && !(aligned(call.dscale, call.dshift) && ColumnSums::has_room(chunks, call.workspace))))
    return cudaErrorInvalidValue;
  const BlockShape shape = block_shape(call.rows.width);
  const ColumnSums scale(call.rows, chunks, 0, call.workspace, call.dscale);
  const ColumnSums shift(call.rows, chunks, 1, call.workspace, call.dshift);
  const cudaError_t error = with_vectors(shape.vectors, [&](auto vectors) {
    backward_kernel<vectors()>
        <<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, chunks, scale.partial, shift.partial);
    return cudaGetLastError();
  });
  if (error != cudaSuccess || !columns) return error;
  const cudaError_t finished = scale.finish(call.rows, chunks, stream);
  return finished != cudaSuccess ? finished : shift.finish(call.rows, chunks, stream);
}

}  // namespace vmoba::pointwise
