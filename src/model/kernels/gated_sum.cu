#include "model/kernels/rows.cuh"

namespace vmoba::pointwise {
namespace {

template <int V>
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(GatedSum call, Chunks chunks) {
  const Place place(chunks, call.rows.width);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    const Values gate = load_floats(call.gate + place.run * place.width + place.column(v));
#pragma unroll 4
    for (int64_t row = place.begin; row < place.end; ++row) {
      const int64_t at = row * place.width + place.column(v);
      Values x = widen(load(call.x, at));
      const Values branch = widen(load(call.branch, at));
#pragma unroll
      for (int i = 0; i < kLanes; ++i) x.v[i] += branch.v[i] * gate.v[i];
      store(call.y, at, x);
    }
  }
}

template <int V>
__global__ void __launch_bounds__(kMaxThreads)
    backward_kernel(GatedSumBackward call, Chunks chunks, float* dgate, float* dbias) {
  const Place place(chunks, call.rows.width);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    const Values gate = load_floats(call.gate + place.run * place.width + place.column(v));
    Values gate_sum = {}, bias_sum = {};
#pragma unroll 4
    for (int64_t row = place.begin; row < place.end; ++row) {
      const int64_t at = row * place.width + place.column(v);
      Values dy = widen(load(call.dy, at));
      const Values branch = widen(load(call.branch, at));
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        gate_sum.v[i] += dy.v[i] * branch.v[i];
        dy.v[i] *= gate.v[i];
        bias_sum.v[i] += dy.v[i];
      }
      store(call.dbranch, at, dy);
    }
    const int64_t at = int64_t(blockIdx.x) * place.width + place.column(v);
    if (dgate != nullptr) store_floats(dgate + at, gate_sum);
    if (dbias != nullptr) store_floats(dbias + at, bias_sum);
  }
}

constexpr int kColumns = 32, kRowThreads = 16;

__global__ void __launch_bounds__(kColumns* kRowThreads)
    partials_kernel(const float* partial, int width, int64_t column_blocks, int64_t chunks_per_run, float* out) {
  __shared__ float sums[kRowThreads][kColumns];
  const int64_t run = blockIdx.x / column_blocks;
  const int column = int(blockIdx.x % column_blocks) * kColumns + int(threadIdx.x);
  float sum = 0;
  if (column < width) {
    const float* of_run = partial + run * chunks_per_run * width + column;
#pragma unroll 4
    for (int64_t chunk = threadIdx.y; chunk < chunks_per_run; chunk += kRowThreads) sum += of_run[chunk * width];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int part = 1; part < kRowThreads; ++part) sum += sums[part][threadIdx.x];
  out[run * width + column] = sum;
}

}  // namespace

cudaError_t add_partials(const float* partial, const Rows& rows, int64_t chunks_per_run, float* out,
                         cudaStream_t stream) {
  const int64_t column_blocks = (rows.width + kColumns - 1) / kColumns;
  partials_kernel<<<unsigned(rows.runs * column_blocks), dim3(kColumns, kRowThreads), 0, stream>>>(
      partial, rows.width, column_blocks, chunks_per_run, out);
  return cudaGetLastError();
}

size_t column_workspace_bytes(const Rows& rows) {
  if (!valid(rows)) return 0;
  const Chunks chunks = backward_chunks(rows);
  return chunks.chunks_per_run == 1 ? 0 : 2 * size_t(chunks.blocks) * size_t(rows.width) * sizeof(float);
}

cudaError_t gated_sum(const GatedSum& call, cudaStream_t stream) {
  if (!valid(call.rows) || !aligned(call.x, call.branch, call.gate, call.y)) return cudaErrorInvalidValue;
  const Chunks chunks = forward_chunks(call.rows);
  const BlockShape shape = block_shape(call.rows.width);
  return with_vectors(shape.vectors, [&](auto vectors) {
    forward_kernel<vectors()><<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, chunks);
    return cudaGetLastError();
  });
}

cudaError_t gated_sum_backward(const GatedSumBackward& call, cudaStream_t stream) {
  if (!valid(call.rows) || !aligned(call.branch, call.dy, call.gate, call.dbranch)) return cudaErrorInvalidValue;
  const Chunks chunks = backward_chunks(call.rows);
  for (const float* columns : {call.dgate, call.dbias})
    if (columns != nullptr && !(aligned(columns) && ColumnSums::has_room(chunks, call.workspace)))
      return cudaErrorInvalidValue;
  const BlockShape shape = block_shape(call.rows.width);
  const ColumnSums gate(call.rows, chunks, 0, call.workspace, call.dgate);
  const ColumnSums bias(call.rows, chunks, 1, call.workspace, call.dbias);
  const cudaError_t error = with_vectors(shape.vectors, [&](auto vectors) {
    backward_kernel<vectors()>
        <<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, chunks, gate.partial, bias.partial);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  const cudaError_t finished = gate.finish(call.rows, chunks, stream);
  return finished != cudaSuccess ? finished : bias.finish(call.rows, chunks, stream);
}

}  // namespace vmoba::pointwise
