#include "model/kernels/row_norm.cuh"

namespace vmoba::pointwise {
namespace {

// Blocks: those of one vector of each input for a thread, narrow ones and others, and of two.
template <int vectors, int threads>
struct Shape {
  static constexpr int kVectors = vectors, kThreads = threads;
};
using Narrow = Shape<1, 192>;
using Medium = Shape<1, 256>;
using Wide = Shape<2, 256>;
static_assert(Wide::kVectors * Wide::kThreads * kLanes == kMaxSumNormWidth);

template <typename Launch>
cudaError_t with_shape(int32_t width, Launch launch) {
  const BlockShape shape = block_shape(width);
  if (shape.vectors == 2) return launch(Wide{}, shape.threads);
  return shape.threads <= Narrow::kThreads ? launch(Narrow{}, shape.threads) : launch(Medium{}, shape.threads);
}

// Backward: as many blocks as a multiprocessor's registers suffice for at a time, and few partial sums: one round of
// blocks of one vector on 132 multiprocessors.
constexpr int at_a_time(int vectors, int threads, bool gated) {
  return vectors == 2 ? 1 : threads > Narrow::kThreads || gated ? 2 : 3;
}
Chunks sum_chunks(const Rows& rows, bool gated) {
  const int64_t blocks = 132 * at_a_time(1, Narrow::kThreads, gated);
  return chunks_of(rows, std::max<int64_t>(16, (rows.rows + blocks - 1) / blocks));
}

template <int V>
__device__ void load_columns(const float* from, const Place& place, float offset, Values (&out)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    out[v] = {};
    if (place.has(v) && from != nullptr) out[v] = load_floats(from + place.run * place.width + place.column(v));
#pragma unroll
    for (float& one : out[v].v) one += offset;
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads) forward_kernel(SumNorm call, Chunks chunks) {
  constexpr int V = S::kVectors;
  __shared__ BlockSum<1>::Storage storage;
  BlockSum<1> sum(storage);
  const Place place(chunks, call.rows.width);
  Values gate[V], scale[V], shift[V];
  load_columns(call.gate, place, call.gate == nullptr ? 1.0f : 0.0f, gate);
  load_columns(call.scale, place, call.offset, scale);
  load_columns(call.shift, place, 0.0f, shift);
  for_each_row<V>(place, {call.x, call.branch}, [&](int64_t row, Values(&rows)[2][V]) {
    Values(&x)[V] = rows[0], (&branch)[V] = rows[1];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) x[v].v[i] = rounded(x[v].v[i] + branch[v].v[i] * gate[v].v[i]);
      store(call.sum, row * place.width + place.column(v), x[v]);
    }
    normalise_row(call, place, row, x, scale, shift, sum);
  });
}

// What a thread adds up over its rows, in the order of SumNormBackward::columns.
template <int V>
struct Sums {
  Values scale[V] = {}, shift[V] = {}, bias[V] = {}, gate[V] = {};
};

// The norm's gradient, to which that of the sum's other uses is added.
template <typename S, bool gated>
__global__ void __launch_bounds__(S::kThreads, at_a_time(S::kVectors, S::kThreads, gated))
    backward_kernel(SumNormBackward call, Chunks chunks, float* partial) {
  constexpr int V = S::kVectors;
  constexpr int kInputs = gated ? 4 : 3;
  __shared__ BlockSum<2>::Storage storage;
  BlockSum<2> sum(storage);
  const Place place(chunks, call.rows.width);
  Values gate[V], scale[V];
  load_columns(call.gate, place, gated ? 0.0f : 1.0f, gate);
  load_columns(call.scale, place, call.offset, scale);
  Sums<V> columns;
  const void* const all[4] = {call.sum, call.dy, call.dsum, call.branch};
  const void* inputs[kInputs];
#pragma unroll
  for (int i = 0; i < kInputs; ++i) inputs[i] = all[i];
  const void* const(&read)[kInputs] = inputs;
  for_each_row<V>(place, read, [&](int64_t row, Values(&rows)[kInputs][V]) {
    Values(&n)[V] = rows[0], (&g)[V] = rows[1], (&total)[V] = rows[2];
    const RowGradient gradient = row_gradient(call, place, row, n, g, scale, columns.scale, columns.shift, sum);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
      const int64_t at = row * place.width + place.column(v);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        float& one = total[v].v[i];
        one = rounded(one + gradient(n[v].v[i], g[v].v[i]));
        columns.bias[v].v[i] += one;
        if constexpr (gated) columns.gate[v].v[i] += one * rows[3][v].v[i];
      }
      store(call.dx, at, total[v]);
      if constexpr (gated) {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) total[v].v[i] *= gate[v].v[i];
        store(call.dbranch, at, total[v]);
      }
    }
  });
  const int64_t kind = chunks.blocks * place.width;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!place.has(v)) continue;
    float* to = partial + int64_t(blockIdx.x) * place.width + place.column(v);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) columns.bias[v].v[i] *= gate[v].v[i];
    store_floats(to, columns.scale[v]);
    store_floats(to + kind, columns.shift[v]);
    store_floats(to + 2 * kind, columns.bias[v]);
    if constexpr (gated) store_floats(to + 3 * kind, columns.gate[v]);
  }
}

bool fits(const Rows& rows) {
  return valid(rows) && rows.width <= kMaxSumNormWidth;
}

int kinds_of(const SumNormBackward& call) {
  return call.gate == nullptr ? 3 : 4;
}

}  // namespace

size_t sum_norm_workspace_bytes(const Rows& rows) {
  return fits(rows) ? 4 * size_t(sum_chunks(rows, /*gated=*/false).blocks) * size_t(rows.width) * sizeof(float) : 0;
}

cudaError_t sum_norm(const SumNorm& call, cudaStream_t stream) {
  if (!fits(call.rows) ||
      !aligned(call.x, call.branch, call.scale, call.shift, call.sum, call.y, call.mean, call.rstd) ||
      (call.gate != nullptr && !aligned(call.gate)))
    return cudaErrorInvalidValue;
  const Chunks chunks = forward_chunks(call.rows);
  return with_shape(call.rows.width, [&](auto shape, int threads) {
    forward_kernel<decltype(shape)><<<unsigned(chunks.blocks), threads, 0, stream>>>(call, chunks);
    return cudaGetLastError();
  });
}

cudaError_t sum_norm_backward(const SumNormBackward& call, cudaStream_t stream) {
  const bool gated = call.gate != nullptr;
  if (!fits(call.rows) ||
      !aligned(call.sum, call.dsum, call.dy, call.scale, call.mean, call.rstd, call.dx, call.columns, call.workspace))
    return cudaErrorInvalidValue;
  if (gated && !aligned(call.gate, call.branch, call.dbranch)) return cudaErrorInvalidValue;
  const Chunks chunks = sum_chunks(call.rows, gated);
  auto* partial = static_cast<float*>(call.workspace);
  const cudaError_t error = with_shape(call.rows.width, [&](auto shape, int threads) {
    const auto blocks = unsigned(chunks.blocks);
    if (gated)
      backward_kernel<decltype(shape), true><<<blocks, threads, 0, stream>>>(call, chunks, partial);
    else
      backward_kernel<decltype(shape), false><<<blocks, threads, 0, stream>>>(call, chunks, partial);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  // The kinds of sums lie one behind the other, as runs do.
  const Rows kinds{call.rows.rows, kinds_of(call) * call.rows.runs, call.rows.width};
  return add_partials(partial, kinds, chunks.chunks_per_run, call.columns, stream);
}

}  // namespace vmoba::pointwise
