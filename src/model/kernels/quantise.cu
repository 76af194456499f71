#include "model/kernels/quantise.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace vmoba::quantise {
namespace {

constexpr int kThreads = 256, kLanes = 8;  // values of a vector of 16 bytes
constexpr int kTile = 64;                  // rows and columns of a block that transposes
constexpr int64_t kRowsPerChunk = 512;     // of a block that looks for the largest

struct Values {
  float v[kLanes];
};

__device__ Values load(const void* x, int64_t at) {
  const uint4 packed = __ldg(reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(x) + at));
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
  Values out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.v[2 * i] = __uint_as_float(words[i] << 16);
    out.v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
  return out;
}

__device__ float largest_of(Format format) {
  return format == Format::kE4m3 ? kLargestE4m3 : kLargestE5m2;
}
__device__ float scale_of(float largest, Format format) {
  return largest > 0 ? largest / largest_of(format) : 1.0f;
}
__device__ float factor_of(float largest, Format format) {
  return largest > 0 ? largest_of(format) / largest : 1.0f;
}
__device__ uint8_t narrow(float x, Format format) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, format == Format::kE4m3 ? __NV_E4M3 : __NV_E5M2);
}

__device__ uint2 narrow(const Values& x, float factor, Format format) {
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kLanes; ++i) words[i / 4] |= uint32_t(narrow(x.v[i] * factor, format)) << (8 * (i % 4));
  return make_uint2(words[0], words[1]);
}

__device__ float block_max(float x) {
  __shared__ float of_warp[kThreads / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, lanes));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) x = fmaxf(x, of_warp[warp]);
  return x;
}

// Magnitudes are not negative, and such floats compare as their bits do.
__device__ void raise(float* largest, float x) {
  atomicMax(reinterpret_cast<unsigned int*>(largest), __float_as_uint(x));
}

// A block takes a row; V vectors of it for each thread.
template <int V>
__global__ void __launch_bounds__(kThreads) rows_kernel(Matrix call) {
  const int64_t begin = int64_t(blockIdx.x) * call.width;
  Values x[V];
  float largest = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int column = (v * kThreads + int(threadIdx.x)) * kLanes;
    if (column >= call.width) continue;
    x[v] = load(call.x, begin + column);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) largest = fmaxf(largest, fabsf(x[v].v[i]));
  }
  largest = block_max(largest);
  const float factor = factor_of(largest, call.format);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int column = (v * kThreads + int(threadIdx.x)) * kLanes;
    if (column >= call.width) continue;
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(call.values) + begin + column) = narrow(x[v], factor, call.format);
  }
  if (threadIdx.x == 0) call.scale[blockIdx.x] = scale_of(largest, call.format);
}

// Of each column, or of all values.
__global__ void __launch_bounds__(kThreads) largest_kernel(Matrix call, bool of_columns) {
  const int column = (int(blockIdx.y) * kThreads + int(threadIdx.x)) * kLanes;
  const int64_t begin = int64_t(blockIdx.x) * kRowsPerChunk, end = min(begin + kRowsPerChunk, call.rows);
  float largest[kLanes] = {};
  if (column < call.width) {
    for (int64_t row = begin; row < end; ++row) {
      const Values x = load(call.x, row * call.width + column);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) largest[i] = fmaxf(largest[i], fabsf(x.v[i]));
    }
  }
  if (of_columns) {
    if (column >= call.width) return;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) raise(call.largest + column + i, largest[i]);
    return;
  }
  float most = 0;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) most = fmaxf(most, largest[i]);
  most = block_max(most);
  if (threadIdx.x == 0) raise(call.largest, most);
}

__global__ void __launch_bounds__(kThreads) scales_kernel(Matrix call, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) call.scale[i] = scale_of(call.largest[i], call.format);
}

// By the one largest magnitude.
__global__ void __launch_bounds__(kThreads) tensor_kernel(Matrix call) {
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  if (at >= call.rows * call.width) return;
  const float factor = factor_of(*call.largest, call.format);
  *reinterpret_cast<uint2*>(static_cast<uint8_t*>(call.values) + at) = narrow(load(call.x, at), factor, call.format);
}

__global__ void __launch_bounds__(kThreads) transpose_kernel(Matrix call, int64_t padded) {
  // Rows of the tile are 16 bytes longer than it, so that 16 of them fall into all banks.
  __shared__ alignas(16) uint8_t tile[kTile][kTile + 16];
  const int64_t first_row = int64_t(blockIdx.x) * kTile;
  const int first_column = int(blockIdx.y) * kTile;
  for (int part = int(threadIdx.x); part < kTile * kTile / kLanes; part += kThreads) {
    const int row = part / (kTile / kLanes), column = part % (kTile / kLanes) * kLanes;
    Values x = {};
    const bool inside = first_row + row < call.rows && first_column + column < call.width;
    if (inside) x = load(call.x, (first_row + row) * call.width + first_column + column);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float largest = inside ? call.largest[call.by_row ? first_column + column + i : 0] : 0;
      tile[column + i][row] = narrow(x.v[i] * factor_of(largest, call.format), call.format);
    }
  }
  __syncthreads();
  const int column = int(threadIdx.x) / (kTile / 16), row = int(threadIdx.x) % (kTile / 16) * 16;
  if (first_column + column >= call.width || first_row + row >= padded) return;
  *reinterpret_cast<uint4*>(static_cast<uint8_t*>(call.values) + (first_column + column) * padded + first_row + row) =
      *reinterpret_cast<const uint4*>(&tile[column][row]);
}
static_assert(kTile * kTile / 16 == kThreads);

bool valid(const Matrix& m) {
  return m.rows > 0 && m.width > 0 && m.width % 16 == 0 && m.width <= kThreads * kLanes * 8 && m.x != nullptr &&
         m.values != nullptr && m.scale != nullptr && reinterpret_cast<uintptr_t>(m.x) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(m.values) % 16 == 0;
}

// Leaves scales and largest magnitudes, `count` of each.
cudaError_t find_scales(const Matrix& call, bool of_columns, cudaStream_t stream) {
  const int64_t count = of_columns ? call.width : 1, vectors = call.width / kLanes;
  if (call.largest == nullptr) return cudaErrorInvalidValue;
  if (const cudaError_t error = cudaMemsetAsync(call.largest, 0, size_t(count) * sizeof(float), stream);
      error != cudaSuccess)
    return error;
  const dim3 blocks(unsigned((call.rows + kRowsPerChunk - 1) / kRowsPerChunk),
                    unsigned((vectors + kThreads - 1) / kThreads));
  largest_kernel<<<blocks, kThreads, 0, stream>>>(call, of_columns);
  scales_kernel<<<unsigned((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(call, count);
  return cudaGetLastError();
}

}  // namespace

cudaError_t quantise(const Matrix& call, cudaStream_t stream) {
  if (!valid(call)) return cudaErrorInvalidValue;
  if (!call.by_row) {
    if (const cudaError_t error = find_scales(call, /*of_columns=*/false, stream); error != cudaSuccess) return error;
    const int64_t vectors = call.rows * call.width / kLanes;
    tensor_kernel<<<unsigned((vectors + kThreads - 1) / kThreads), kThreads, 0, stream>>>(call);
    return cudaGetLastError();
  }
  const int vectors = (call.width / kLanes + kThreads - 1) / kThreads;
  const auto blocks = unsigned(call.rows);
  if (vectors == 1)
    rows_kernel<1><<<blocks, kThreads, 0, stream>>>(call);
  else if (vectors == 2)
    rows_kernel<2><<<blocks, kThreads, 0, stream>>>(call);
  else if (vectors <= 4)
    rows_kernel<4><<<blocks, kThreads, 0, stream>>>(call);
  else
    rows_kernel<8><<<blocks, kThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

cudaError_t quantise_transposed(const Matrix& call, cudaStream_t stream) {
  if (!valid(call)) return cudaErrorInvalidValue;
  if (const cudaError_t error = find_scales(call, call.by_row, stream); error != cudaSuccess) return error;
  const int64_t padded = (call.rows + 15) / 16 * 16;
  const dim3 blocks(unsigned((padded + kTile - 1) / kTile), unsigned((call.width + kTile - 1) / kTile));
  transpose_kernel<<<blocks, kThreads, 0, stream>>>(call, padded);
  return cudaGetLastError();
}

}  // namespace vmoba::quantise
