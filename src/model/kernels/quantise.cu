#include "model/kernels/quantise.h"

#include <cuda_fp8.h>

#include "model/kernels/rows.cuh"

namespace vmoba::quantise {
namespace {

using pointwise::kLanes;
using pointwise::load;
using pointwise::Values;
using pointwise::widen;

// Threads of a block that goes through rows, with so many vectors of a row for each, and blocks at a time on a
// multiprocessor: what registers suffice for. Two vectors hold the widths of most feed-forwards.
constexpr int max_threads(int vectors) {
  return vectors == 1 ? 256 : vectors == 2 ? 576 : kMaxWidth / (4 * kLanes);
}
constexpr int at_a_time(int vectors, bool with_sums) {
  return vectors == 2 && !with_sums ? 2 : 1;
}
constexpr int kMaxThreads = max_threads(2);
static_assert(kMaxThreads >= max_threads(4));

// Both formats' largest numbers are 1.75 times a power of two.
static_assert(kLargestE4m3 == 1.75f * 256 && kLargestE5m2 == 1.75f * 32768);

// The least power of two that is not below largest / the format's largest number: that of a largest magnitude whose
// fraction is at most 0.75 has its exponent, less the format's.
__device__ float scale_of(float largest, Format format) {
  constexpr uint32_t kQuarter = 0x200000;
  const float power = __uint_as_float((__float_as_uint(largest) + kQuarter - 1) & 0xFF800000u);
  return fmaxf(power * (format == Format::kE4m3 ? 1.0f / 256 : 1.0f / 32768), kLeastScale);
}
// Of a power of two.
__device__ float inverse(float scale) {
  return __uint_as_float(0x7F000000u - __float_as_uint(scale));
}

__device__ uint32_t narrow_pair(float low, float high, Format format) {
  return format == Format::kE4m3 ? __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3)
                                 : __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E5M2);
}
__device__ uint2 narrow(const Values& x, float factor, Format format) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = narrow_pair(x.v[2 * i] * factor, x.v[2 * i + 1] * factor, format);
  return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// GELU in its tanh form is x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3). So written nothing cancels, and an
// exponential and a reciprocal suffice.
constexpr float kTwiceBeta = 1.5957691216057308f, kKappa = 0.044715f;

__device__ float sigmoid_of_gelu(float x, float square) {
  return __fdividef(1.0f, 1.0f + __expf(-kTwiceBeta * (x + kKappa * square * x)));
}
__device__ float gelu(float x) {
  return x * sigmoid_of_gelu(x, x * x);
}
__device__ float gelu_derivative(float x) {
  const float square = x * x, s = sigmoid_of_gelu(x, square);
  return s + x * s * (1.0f - s) * kTwiceBeta * (1.0f + 3.0f * kKappa * square);
}

__device__ uint4 packed(const Values& x) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x.v[2 * i], x.v[2 * i + 1]);
    memcpy(&words[i], &pair, sizeof pair);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// What is quantised, in bf16.
template <Operation operation>
__device__ uint4 operated(const uint4& x, const uint4& before) {
  if constexpr (operation == Operation::kNone) return x;
  Values values = widen(x);
  if constexpr (operation == Operation::kGelu) {
#pragma unroll
    for (float& one : values.v) one = gelu(one);
  } else if constexpr (operation == Operation::kGeluGradient) {
    const Values at = widen(before);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values.v[i] *= gelu_derivative(at.v[i]);
  }
  return packed(values);
}

__device__ void raise(__nv_bfloat162& largest, const uint4& x) {
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (const uint32_t word : words) {
    __nv_bfloat162 pair;
    memcpy(&pair, &word, sizeof pair);
    largest = __hmax2(largest, __habs2(pair));
  }
}

// Magnitudes are not negative, and such floats compare as their bits do.
__device__ void raise(float* largest, float x) {
  atomicMax(reinterpret_cast<unsigned int*>(largest), __float_as_uint(x));
}

// The largest of a block's values, in every thread. Buffers alternate, so that one barrier for each call is enough.
class BlockMax {
 public:
  struct Storage {
    float of_warp[2][kMaxThreads / 32];
  };
  __device__ explicit BlockMax(Storage& storage) : storage_(storage) {}

  __device__ float operator()(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, lanes));
    if (threadIdx.x % 32 == 0) storage_.of_warp[turn_][threadIdx.x / 32] = x;
    __syncthreads();
    const int warps = int(blockDim.x) / 32;
    x = storage_.of_warp[turn_][0];
    for (int warp = 1; warp < warps; ++warp) x = fmaxf(x, storage_.of_warp[turn_][warp]);
    turn_ ^= 1;
    return x;
  }

 private:
  Storage& storage_;
  int turn_ = 0;
};

// A thread's vector of 8 columns of the joint matrix, within its part.
struct Source {
  const void* x = nullptr;
  int64_t stride = 0, column = 0;
};
__device__ Source source_of(const Rows& call, int column) {
  for (int part = 0; part < call.part_count; ++part) {
    if (column < call.parts[part].width) return {call.parts[part].x, call.parts[part].width, column};
    column -= call.parts[part].width;
  }
  return {};
}

// A block takes a chunk of rows, V vectors of each for a thread; the next row is on its way meanwhile.
template <int V, Operation operation, bool with_sums>
__global__ void __launch_bounds__(max_threads(V), at_a_time(V, with_sums))
    rows_kernel(Rows call, int64_t width, int64_t per_block, float* partial) {
  constexpr bool kBefore = operation == Operation::kGeluGradient;
  __shared__ BlockMax::Storage storage;
  BlockMax block_max(storage);
  const int64_t begin = int64_t(blockIdx.x) * per_block, end = min(begin + per_block, call.rows);
  Source sources[V];
  uint4 next[V] = {}, next_before[kBefore ? V : 1] = {};
  Values sums[with_sums ? V : 1] = {};
  const auto column = [&](int v) { return (v * int(blockDim.x) + int(threadIdx.x)) * kLanes; };
  const auto fetch = [&](int64_t row, int v) {
    next[v] = load(sources[v].x, row * sources[v].stride + sources[v].column);
    if constexpr (kBefore) next_before[v] = load(call.before, row * sources[v].stride + sources[v].column);
  };
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sources[v] = source_of(call, column(v));
    if (sources[v].x != nullptr) fetch(begin, v);
  }
  float most = 0;
  for (int64_t row = begin; row < end; ++row) {
    uint4 x[V];
    __nv_bfloat162 pair = __float2bfloat162_rn(0.0f);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (sources[v].x == nullptr) continue;
      x[v] = operated<operation>(next[v], next_before[kBefore ? v : 0]);
      if (row + 1 < end) fetch(row + 1, v);
      raise(pair, x[v]);
      if constexpr (with_sums) {
        const Values values = widen(x[v]);
#pragma unroll
        for (int i = 0; i < kLanes; ++i) sums[v].v[i] += values.v[i];
      }
    }
    const float largest = fmaxf(__low2float(pair), __high2float(pair));
    const float scale = scale_of(block_max(largest), call.format), factor = inverse(scale);
    most = fmaxf(most, scale);
    if (threadIdx.x == 0) call.scale[row] = scale;
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (sources[v].x != nullptr)
        *reinterpret_cast<uint2*>(static_cast<uint8_t*>(call.values) + row * width + column(v)) =
            narrow(widen(x[v]), factor, call.format);
  }
  if (threadIdx.x == 0) raise(call.largest, most);
  if constexpr (with_sums) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (sources[v].x != nullptr) pointwise::store_floats(partial + int64_t(blockIdx.x) * width + column(v), sums[v]);
  }
}

// Tiles of rows and columns on their way through shared memory: words of four rows of a column, kWords of them in a
// column. Words of neighbouring column groups lie in other banks.
constexpr int kThreads = 256, kTileRows = 128, kWords = kTileRows / 4, kGroups = 8;

__device__ int word_of(int group, int word) {
  return word ^ (4 * group);
}

// words[row] holds four columns; afterwards words[column] holds four rows.
__device__ void transpose_words(uint32_t (&words)[4]) {
  const uint32_t ab_low = __byte_perm(words[0], words[1], 0x5140), cd_low = __byte_perm(words[2], words[3], 0x5140);
  const uint32_t ab_high = __byte_perm(words[0], words[1], 0x7362), cd_high = __byte_perm(words[2], words[3], 0x7362);
  words[0] = __byte_perm(ab_low, cd_low, 0x5410);
  words[1] = __byte_perm(ab_low, cd_low, 0x7632);
  words[2] = __byte_perm(ab_high, cd_high, 0x5410);
  words[3] = __byte_perm(ab_high, cd_high, 0x7632);
}

// Stores the tile: a column's rows lie together in memory.
template <int columns>
__device__ void store_tile(const uint32_t (&tile)[columns][kWords], const Transpose& call, int64_t padded,
                           int64_t first_row, int first_column) {
  constexpr int kVectors = kWords / 4;  // of 16 rows
  __syncthreads();
  for (int i = int(threadIdx.x); i < columns * kVectors; i += kThreads) {
    const int column = i / kVectors, vector = i % kVectors;
    const int64_t row = first_row + 16 * vector;
    if (first_column + column >= call.width || row >= padded) continue;
    *reinterpret_cast<uint4*>(static_cast<uint8_t*>(call.values) + (first_column + column) * padded + row) =
        *reinterpret_cast<const uint4*>(&tile[column][word_of(column / (columns / kGroups), 4 * vector)]);
  }
}

// A thread takes four rows of a group of columns.
template <Operation operation>
__global__ void __launch_bounds__(kThreads) transposed_kernel(Transpose call, const void* x, int64_t padded) {
  constexpr int kColumns = kGroups * kLanes;
  __shared__ alignas(16) uint32_t tile[kColumns][kWords];
  const int64_t first_row = int64_t(blockIdx.x) * kTileRows;
  const int first_column = int(blockIdx.y) * kColumns;
  const int group = int(threadIdx.x) % kGroups, word = int(threadIdx.x) / kGroups;
  const int column = first_column + group * kLanes;
  const float factor = inverse(*call.scale);
  uint4 rows[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_row + 4 * word + i;
    if (row < call.rows && column < call.width) rows[i] = load(x, row * call.width + column);
  }
  uint32_t low[4], high[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 bytes = narrow(widen(operated<operation>(rows[i], {})), factor, call.format);
    low[i] = bytes.x, high[i] = bytes.y;
  }
  transpose_words(low);
  transpose_words(high);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    tile[group * kLanes + i][word_of(group, word)] = low[i];
    tile[group * kLanes + 4 + i][word_of(group, word)] = high[i];
  }
  store_tile(tile, call, padded, first_row, first_column);
}
static_assert(kThreads == kGroups * kWords);

// The four fp8 values of a word times `factor`.
__device__ uint32_t rescaled(uint32_t word, float factor, Format format) {
  uint32_t out = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto pair = __nv_fp8x2_storage_t(word >> (16 * half));
    const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(pair, format == Format::kE4m3 ? __NV_E4M3 : __NV_E5M2);
    const float2 values = __half22float2(__half2(halves));
    out |= narrow_pair(values.x * factor, values.y * factor, format) << (16 * half);
  }
  return out;
}

__global__ void __launch_bounds__(kThreads)
    transpose_kernel(Transpose call, const uint8_t* values, const float* of_rows, int64_t padded) {
  constexpr int kBytes = 16, kColumns = kGroups * kBytes;
  __shared__ alignas(16) uint32_t tile[kColumns][kWords];
  const int64_t first_row = int64_t(blockIdx.x) * kTileRows;
  const int first_column = int(blockIdx.y) * kColumns;
  const int group = int(threadIdx.x) % kGroups, word = int(threadIdx.x) / kGroups;
  const int column = first_column + group * kBytes;
  const float of_all = inverse(*call.scale);
  uint32_t rows[4][4] = {};  // [row][word of four columns]
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_row + 4 * word + i;
    if (row >= call.rows || column >= call.width) continue;
    const uint4 packed = __ldg(reinterpret_cast<const uint4*>(values + row * call.width + column));
    rows[i][0] = packed.x, rows[i][1] = packed.y, rows[i][2] = packed.z, rows[i][3] = packed.w;
    const float factor = __ldg(of_rows + row) * of_all;
    if (factor == 1) continue;
#pragma unroll
    for (uint32_t& four : rows[i]) four = rescaled(four, factor, call.format);
  }
#pragma unroll
  for (int four = 0; four < 4; ++four) {
    uint32_t words[4] = {rows[0][four], rows[1][four], rows[2][four], rows[3][four]};
    transpose_words(words);
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[group * kBytes + 4 * four + i][word_of(group, word)] = words[i];
  }
  store_tile(tile, call, padded, first_row, first_column);
}

int64_t width_of(const Rows& call) {
  int64_t width = 0;
  for (int part = 0; part < call.part_count; ++part) width += call.parts[part].width;
  return width;
}

bool valid(const Rows& call, int64_t width) {
  if (call.part_count < 1 || call.part_count > kMaxParts || call.rows <= 0 || width > kMaxWidth) return false;
  for (int part = 0; part < call.part_count; ++part)
    if (call.parts[part].width <= 0 || call.parts[part].width % kMultiple != 0 ||
        !pointwise::aligned(call.parts[part].x))
      return false;
  if ((call.operation == Operation::kGeluGradient) != (call.before != nullptr)) return false;
  if (call.before != nullptr && (call.part_count != 1 || call.sums == nullptr || !pointwise::aligned(call.before)))
    return false;
  if (call.operation == Operation::kGelu && call.sums != nullptr) return false;
  if (call.sums != nullptr && !pointwise::aligned(call.sums, call.workspace)) return false;
  return pointwise::aligned(call.values) && call.scale != nullptr && call.largest != nullptr;
}

// Rows that a block takes. For sums: few partial ones, but enough blocks to fill a GPU. Else few, but of wide rows
// enough that their first is not most of what it waits for.
pointwise::Chunks chunks_for_sums(int64_t rows) {
  return pointwise::backward_chunks({rows, 1, 1});
}
pointwise::Chunks chunks_of(int64_t rows, int vectors) {
  const int64_t per_block = vectors == 1 ? 8 : std::clamp<int64_t>(rows / 528, 8, 32);
  return pointwise::chunks_of({rows, 1, 1}, per_block);
}

pointwise::BlockShape shape_of(int64_t width) {
  const int total = int(width / kLanes);
  const int vectors = total <= max_threads(1) ? 1 : total <= 2 * max_threads(2) ? 2 : 4;
  return {vectors, ((total + vectors - 1) / vectors + 31) / 32 * 32};
}

template <Operation operation, bool with_sums>
cudaError_t launch_rows(const Rows& call, int64_t width, cudaStream_t stream) {
  const pointwise::BlockShape shape = shape_of(width);
  const pointwise::Chunks chunks = with_sums ? chunks_for_sums(call.rows) : chunks_of(call.rows, shape.vectors);
  auto* partial = static_cast<float*>(call.workspace);
  const cudaError_t error = pointwise::with_vectors(shape.vectors, [&](auto vectors) {
    rows_kernel<vectors(), operation, with_sums>
        <<<unsigned(chunks.blocks), shape.threads, 0, stream>>>(call, width, chunks.rows_per_chunk, partial);
    return cudaGetLastError();
  });
  if (error != cudaSuccess || !with_sums) return error;
  return pointwise::add_partials(partial, {call.rows, 1, int32_t(width)}, chunks.chunks_per_run, call.sums, stream);
}

bool valid(const Transpose& call, const void* x) {
  return call.rows > 0 && call.width > 0 && call.width % kMultiple == 0 && call.scale != nullptr &&
         pointwise::aligned(x, call.values);
}
int64_t padded_of(const Transpose& call) {
  return (call.rows + kMultiple - 1) / kMultiple * kMultiple;
}
dim3 tiles_of(const Transpose& call, int columns) {
  return dim3(unsigned((padded_of(call) + kTileRows - 1) / kTileRows), unsigned((call.width + columns - 1) / columns));
}

}  // namespace

size_t sums_workspace_bytes(int64_t rows, int64_t width) {
  return size_t(chunks_for_sums(rows).blocks) * size_t(width) * sizeof(float);
}

cudaError_t quantise_rows(const Rows& call, cudaStream_t stream) {
  const int64_t width = width_of(call);
  if (!valid(call, width)) return cudaErrorInvalidValue;
  if (const cudaError_t error = cudaMemsetAsync(call.largest, 0, sizeof(float), stream); error != cudaSuccess)
    return error;
  if (call.operation == Operation::kGelu) return launch_rows<Operation::kGelu, false>(call, width, stream);
  if (call.operation == Operation::kGeluGradient)
    return launch_rows<Operation::kGeluGradient, true>(call, width, stream);
  return call.sums == nullptr ? launch_rows<Operation::kNone, false>(call, width, stream)
                              : launch_rows<Operation::kNone, true>(call, width, stream);
}

cudaError_t quantise_transposed(const Transpose& call, const void* x, Operation operation, cudaStream_t stream) {
  if (!valid(call, x) || operation == Operation::kGeluGradient) return cudaErrorInvalidValue;
  const dim3 tiles = tiles_of(call, kGroups * kLanes);
  if (operation == Operation::kGelu)
    transposed_kernel<Operation::kGelu><<<tiles, kThreads, 0, stream>>>(call, x, padded_of(call));
  else
    transposed_kernel<Operation::kNone><<<tiles, kThreads, 0, stream>>>(call, x, padded_of(call));
  return cudaGetLastError();
}

cudaError_t transpose(const Transpose& call, const void* values, const float* of_rows, cudaStream_t stream) {
  if (!valid(call, values) || of_rows == nullptr) return cudaErrorInvalidValue;
  transpose_kernel<<<tiles_of(call, 16 * kGroups), kThreads, 0, stream>>>(call, static_cast<const uint8_t*>(values),
                                                                          of_rows, padded_of(call));
  return cudaGetLastError();
}

}  // namespace vmoba::quantise
