// How the kernels of this folder go through rows: a block takes a chunk of consecutive rows of one run; each of its
// threads owns V vectors of 8 columns and keeps what belongs to columns (modulation, sums over rows) in registers.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "model/kernels/pointwise.h"

namespace vmoba::pointwise {

constexpr int kLanes = 8;  // columns of a vector: 16 bytes of bf16
constexpr int kMaxThreads = 512;

// Blocks of rows, for a launch.
struct Chunks {
  int64_t rows_per_run, rows_per_chunk, chunks_per_run;
  int64_t blocks;
};

inline Chunks chunks_of(const Rows& rows, int64_t rows_per_chunk) {
  Chunks out{};
  out.rows_per_run = rows.rows / rows.runs;
  out.rows_per_chunk = std::min(rows_per_chunk, out.rows_per_run);
  out.chunks_per_run = (out.rows_per_run + out.rows_per_chunk - 1) / out.rows_per_chunk;
  out.blocks = rows.runs * out.chunks_per_run;
  return out;
}
// Forward: enough blocks to balance. Backward: few partial sums, but enough blocks to fill a GPU.
inline Chunks forward_chunks(const Rows& rows) {
  return chunks_of(rows, 8);
}
inline Chunks backward_chunks(const Rows& rows) {
  return chunks_of(rows, std::max<int64_t>(16, (rows.rows + 1055) / 1056));
}

inline bool valid(const Rows& rows) {
  return rows.rows > 0 && rows.runs > 0 && rows.rows % rows.runs == 0 && rows.width > 0 && rows.width % kLanes == 0 &&
         rows.width <= kMaxWidth && forward_chunks(rows).blocks < (int64_t(1) << 31);
}

template <typename... Pointers>
bool aligned(const Pointers*... pointers) {
  return ((pointers != nullptr && reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Vectors per thread and threads of a block.
struct BlockShape {
  int vectors, threads;
};
inline BlockShape block_shape(int32_t width) {
  const int total = width / kLanes;
  const int vectors = total <= 256 ? 1 : total <= 2 * kMaxThreads ? 2 : 4;
  return {vectors, ((total + vectors - 1) / vectors + 31) / 32 * 32};
}

// Calls `launch` with the number of vectors as a constant.
template <typename Launch>
cudaError_t with_vectors(int vectors, Launch launch) {
  if (vectors == 1) return launch(std::integral_constant<int, 1>{});
  if (vectors == 2) return launch(std::integral_constant<int, 2>{});
  return launch(std::integral_constant<int, 4>{});
}

struct Values {
  float v[kLanes];
};

__device__ __forceinline__ uint4 load(const void* base, int64_t offset) {
  return __ldg(reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(base) + offset));
}
__device__ __forceinline__ Values widen(const uint4& packed) {
  Values out;
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.v[2 * i] = __uint_as_float(words[i] << 16);
    out.v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
  return out;
}
__device__ __forceinline__ void store(void* base, int64_t offset, const Values& x) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x.v[2 * i], x.v[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(base) + offset) =
      make_uint4(words[0], words[1], words[2], words[3]);
}
__device__ __forceinline__ float rounded(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}
__device__ __forceinline__ Values load_floats(const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ void store_floats(float* to, const Values& x) {
  *reinterpret_cast<float4*>(to) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

// A block's place: its rows and its columns.
struct Place {
  int64_t run, begin, end;  // rows
  int width;

  __device__ Place(const Chunks& chunks, int width) : width(width) {
    run = blockIdx.x / chunks.chunks_per_run;
    const int64_t first = (blockIdx.x % chunks.chunks_per_run) * chunks.rows_per_chunk;
    begin = run * chunks.rows_per_run + first;
    end = run * chunks.rows_per_run + min(first + chunks.rows_per_chunk, chunks.rows_per_run);
  }
  // First column of the thread's vector v, which it has where that is below the width.
  __device__ int column(int v) const { return (v * int(blockDim.x) + int(threadIdx.x)) * kLanes; }
  __device__ bool has(int v) const { return column(v) < width; }
};

// Goes through the block's rows in order: body(row, x) gets the row's vectors, x[i][v] of the i-th input, while those
// of the next row are on their way.
template <int V, int Inputs, typename Body>
__device__ __forceinline__ void for_each_row(const Place& place, const void* const (&inputs)[Inputs], Body body) {
  uint4 next[Inputs][V];
  const auto fetch = [&](int64_t row, int v) {
    const int64_t at = row * place.width + place.column(v);
#pragma unroll
    for (int i = 0; i < Inputs; ++i) next[i][v] = load(inputs[i], at);
  };
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (place.has(v)) fetch(place.begin, v);
  for (int64_t row = place.begin; row < place.end; ++row) {
    Values x[Inputs][V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!place.has(v)) continue;
#pragma unroll
      for (int i = 0; i < Inputs; ++i) x[i][v] = widen(next[i][v]);
      if (row + 1 < place.end) fetch(row + 1, v);
    }
    body(row, x);
  }
}

// Sums over the block of N values at once, each the same in every thread. Buffers alternate, so that one barrier for
// each call is enough.
template <int N>
class BlockSum {
 public:
  struct Storage {
    float partial[2][N][kMaxThreads / 32];
  };
  __device__ explicit BlockSum(Storage& storage) : storage_(storage) {}

  __device__ __forceinline__ void operator()(float (&values)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int lane = 16; lane > 0; lane /= 2) values[n] += __shfl_xor_sync(0xFFFFFFFFu, values[n], lane);
      if (threadIdx.x % 32 == 0) storage_.partial[turn_][n][threadIdx.x / 32] = values[n];
    }
    __syncthreads();
    const int warps = blockDim.x / 32;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = 0;
      for (int warp = 0; warp < warps; ++warp) values[n] += storage_.partial[turn_][n][warp];
    }
    turn_ ^= 1;
  }

 private:
  Storage& storage_;
  int turn_ = 0;
};

// out[run][column] = sum over the run's chunks of partial[run][chunk][column]. Blocks of 32 columns by 16 threads.
cudaError_t add_partials(const float* partial, const Rows& rows, int64_t chunks_per_run, float* out,
                         cudaStream_t stream);

// Where a backward kernel leaves its chunks' sums: the result itself where a run is one chunk.
struct ColumnSums {
  float* partial;
  float* out;

  ColumnSums(const Rows& rows, const Chunks& chunks, int which, void* workspace, float* out) : out(out) {
    const int64_t size = chunks.blocks * rows.width;
    partial = out == nullptr || chunks.chunks_per_run == 1 ? out : static_cast<float*>(workspace) + which * size;
  }
  static bool has_room(const Chunks& chunks, const void* workspace) {
    return chunks.chunks_per_run == 1 || aligned(workspace);
  }
  cudaError_t finish(const Rows& rows, const Chunks& chunks, cudaStream_t stream) const {
    return partial == out ? cudaSuccess : add_partials(partial, rows, chunks.chunks_per_run, out, stream);
  }
};

}  // namespace vmoba::pointwise
