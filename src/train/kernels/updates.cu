// A warp takes kScaleValues consecutive values, a lane kDrawValues of them: so a scale is a warp's maximum, and a lane
// makes one draw. Bound by memory: 10 bytes of traffic a value for bf16 weights with 8-bit moments, 28 for fp32.
#include <algorithm>

#include "train/kernels/update_arithmetic.h"

namespace vmoba::updates {
namespace {

constexpr int kWarps = 8;
constexpr int kRounds = 4;  // of a block, so that it loads its tables for many values
constexpr int64_t kBlockValues = kScaleValues * kWarps * kRounds;
constexpr int kTensors = 32;  // of a launch, whose arguments hold 4 KiB
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Batch {
  Tensor tensors[kTensors];
  int32_t first_block[kTensors + 1];
  int32_t count;
};
static_assert(sizeof(Batch) + sizeof(Step) + 64 <= 4096);

template <typename Value>
struct alignas(sizeof(Value) * kDrawValues < 16 ? 8 : 16) Run {
  Value v[kDrawValues];
};

// Values of a lane, zeros behind the last; in one access where the address allows it.
template <typename Value>
__device__ Run<Value> load_run(const void* values, int64_t at, int64_t count) {
  const Value* from = static_cast<const Value*>(values) + at;
  if (count >= kDrawValues && reinterpret_cast<uintptr_t>(from) % alignof(Run<Value>) == 0)
    return *reinterpret_cast<const Run<Value>*>(from);
  Run<Value> out;
#pragma unroll
  for (int i = 0; i < kDrawValues; ++i) out.v[i] = i < count ? from[i] : Value(0);
  return out;
}

template <typename Value>
__device__ void store_run(void* values, int64_t at, int64_t count, const Run<Value>& run) {
  Value* to = static_cast<Value*>(values) + at;
  if (count >= kDrawValues && reinterpret_cast<uintptr_t>(to) % alignof(Run<Value>) == 0) {
    *reinterpret_cast<Run<Value>*>(to) = run;
    return;
  }
#pragma unroll
  for (int i = 0; i < kDrawValues; ++i)
    if (i < count) to[i] = run.v[i];
}

__device__ float widened(float x) {
  return x;
}
__device__ float widened(uint16_t x) {
  return from_bfloat16(x);
}

__device__ void narrow(float value, uint32_t, float& out) {
  out = value;
}
__device__ void narrow(float value, uint32_t bits, uint16_t& out) {
  out = rounded(value, bits);
}

template <typename Weight>
__device__ Draws draws_of(int64_t place, uint64_t step, const uint32_t (&key)[2]) {
  if constexpr (sizeof(Weight) == 2) return draw(uint64_t(place / kDrawValues), step, key);
  return {};
}

__device__ float warp_max(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

// A lane's moments, which lie in memory as floats or as codes.
struct PlainMoments {
  static constexpr bool kCoded = false;
  __device__ static void load(const Tensor& t, int64_t at, int64_t count, const CodeTables*, Run<float>& first,
                              Run<float>& second) {
    first = load_run<float>(t.first, at, count);
    second = load_run<float>(t.second, at, count);
  }
  __device__ static void store(const Tensor& t, int64_t at, int64_t count, const CodeTables*, const Run<float>& first,
                               const Run<float>& second) {
    if (count <= 0) return;
    store_run(t.first, at, count, first);
    store_run(t.second, at, count, second);
  }
};

struct CodedMoments {
  static constexpr bool kCoded = true;
  __device__ static void load(const Tensor& t, int64_t at, int64_t count, const CodeTables* tables, Run<float>& first,
                              Run<float>& second) {
    const int64_t block = at / kScaleValues;
    const float first_scale = count > 0 ? t.first_scale[block] : 0,
                second_scale = count > 0 ? t.second_scale[block] : 0;
    const Run<uint8_t> codes = load_run<uint8_t>(t.first, at, count), squares = load_run<uint8_t>(t.second, at, count);
#pragma unroll
    for (int i = 0; i < kDrawValues; ++i) {
      first.v[i] = i < count ? tables->first.values[codes.v[i]] * first_scale : 0.0f;
      second.v[i] = i < count ? tables->second.values[squares.v[i]] * second_scale : 0.0f;
    }
  }
  // All lanes of the warp together.
  __device__ static void store(const Tensor& t, int64_t at, int64_t count, const CodeTables* tables,
                               const Run<float>& first, const Run<float>& second) {
    float first_scale = 0, second_scale = 0;
#pragma unroll
    for (int i = 0; i < kDrawValues; ++i) {
      if (i < count) first_scale = fmaxf(first_scale, fabsf(first.v[i]));
      if (i < count) second_scale = fmaxf(second_scale, second.v[i]);
    }
    first_scale = warp_max(first_scale);
    second_scale = warp_max(second_scale);
    if (count <= 0) return;
    Run<uint8_t> codes, squares;
#pragma unroll
    for (int i = 0; i < kDrawValues; ++i) {
      codes.v[i] = code_of(in_units(first.v[i], first_scale), tables->first.bounds);
      squares.v[i] = code_of(in_units(second.v[i], second_scale), tables->second.bounds);
    }
    store_run(t.first, at, count, codes);
    store_run(t.second, at, count, squares);
    if (at % kScaleValues != 0) return;
    t.first_scale[at / kScaleValues] = first_scale;
    t.second_scale[at / kScaleValues] = second_scale;
  }
};

__device__ int tensor_of_block(const Batch& batch, int block) {
  int tensor = 0;
  while (tensor + 1 < batch.count && batch.first_block[tensor + 1] <= block) ++tensor;
  return tensor;
}

template <typename Weight, typename Gradient, typename Moments>
__global__ void __launch_bounds__(32 * kWarps)
    adamw_kernel(const __grid_constant__ Batch batch, const Step step, const CodeTables* device_tables) {
  __shared__ CodeTables tables;
  if (step.skip != nullptr && *step.skip != 0) return;
  if constexpr (Moments::kCoded) {
    float* to = reinterpret_cast<float*>(&tables);
    const float* from = reinterpret_cast<const float*>(device_tables);
    for (int i = int(threadIdx.x); i < int(sizeof(CodeTables) / sizeof(float)); i += 32 * kWarps) to[i] = from[i];
    __syncthreads();
  }
  const float factor = step.factor != nullptr ? *step.factor : 1.0f;
  const int number = tensor_of_block(batch, int(blockIdx.x));
  const Tensor& t = batch.tensors[number];
  const int64_t block_begin = int64_t(int(blockIdx.x) - batch.first_block[number]) * kBlockValues;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = block_begin + int64_t(round) * kScaleValues * kWarps + int64_t(threadIdx.x) * kDrawValues;
    const int64_t count = t.values - at;  // left from here on; the warp stays together
    if (at / kScaleValues * kScaleValues >= t.values) return;
    Run<Weight> weight = load_run<Weight>(t.weight, at, count);
    const Run<Gradient> gradient = load_run<Gradient>(t.gradient, at, count);
    Run<float> first, second;
    Moments::load(t, at, count, &tables, first, second);
    const Draws draws = draws_of<Weight>(t.first_value + at, step.number, t.key);
#pragma unroll
    for (int i = 0; i < kDrawValues; ++i) {
      const float value = updated(widened(weight.v[i]), widened(gradient.v[i]) * factor, first.v[i], second.v[i], step);
      narrow(value, draws.of(i), weight.v[i]);
    }
    Moments::store(t, at, count, &tables, first, second);
    if (count > 0) store_run(t.weight, at, count, weight);
  }
}

template <typename Weight>
__global__ void __launch_bounds__(32 * kWarps) change_kernel(const Sum sum) {
  if (sum.skip != nullptr && *sum.skip != 0) return;
  const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kDrawValues, count = sum.values - at;
  if (count <= 0) return;
  Run<Weight> weight = load_run<Weight>(sum.weight, at, count);
  const Run<uint16_t> change = load_run<uint16_t>(sum.change, at, count);
  const Draws draws = draws_of<Weight>(sum.first_value + at, sum.number, sum.key);
#pragma unroll
  for (int i = 0; i < kDrawValues; ++i)
    narrow(changed(widened(weight.v[i]), widened(change.v[i]), sum), draws.of(i), weight.v[i]);
  store_run(sum.weight, at, count, weight);
}

using Launch = void (*)(const Batch&, const Step&, const CodeTables*, cudaStream_t);

template <typename Weight, typename Gradient, typename Moments>
void launch(const Batch& batch, const Step& step, const CodeTables* tables, cudaStream_t stream) {
  adamw_kernel<Weight, Gradient, Moments>
      <<<unsigned(batch.first_block[batch.count]), 32 * kWarps, 0, stream>>>(batch, step, tables);
}

// Tensors of one kind go together.
int kind_of(const Tensor& t) {
  return (t.weight_width == Width::kBfloat16 ? 4 : 0) + (t.gradient_width == Width::kBfloat16 ? 2 : 0) +
         (t.first_scale != nullptr ? 1 : 0);
}

constexpr Launch kLaunches[] = {
    launch<float, float, PlainMoments>,       launch<float, float, CodedMoments>,
    launch<float, uint16_t, PlainMoments>,    launch<float, uint16_t, CodedMoments>,
    launch<uint16_t, float, PlainMoments>,    launch<uint16_t, float, CodedMoments>,
    launch<uint16_t, uint16_t, PlainMoments>, launch<uint16_t, uint16_t, CodedMoments>,
};

}  // namespace

cudaError_t adamw(const Tensor* tensors, int64_t count, const Step& step, const CodeTables* tables,
                  cudaStream_t stream) {
  for (int kind = 0; kind < int(sizeof(kLaunches) / sizeof(Launch)); ++kind) {
    Batch batch{};
    const auto flush = [&] {
      if (batch.count == 0) return cudaSuccess;
      kLaunches[kind](batch, step, tables, stream);
      batch.count = 0;
      return cudaGetLastError();
    };
    for (int64_t i = 0; i < count; ++i) {
      const Tensor& t = tensors[i];
      if (kind_of(t) != kind || t.values == 0) continue;
      const bool drawn = t.weight_width == Width::kBfloat16, coded = t.first_scale != nullptr;
      if ((drawn && t.first_value % kDrawValues != 0) || (coded && tables == nullptr)) return cudaErrorInvalidValue;
      const int64_t blocks = (t.values + kBlockValues - 1) / kBlockValues;
      if (batch.count == kTensors)
        if (const cudaError_t error = flush(); error != cudaSuccess) return error;
      if (batch.count == 0) batch.first_block[0] = 0;
      batch.tensors[batch.count] = t;
      batch.first_block[batch.count + 1] = batch.first_block[batch.count] + int32_t(blocks);
      ++batch.count;
    }
    if (const cudaError_t error = flush(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t add_change(const Sum& sum, cudaStream_t stream) {
  if (sum.values == 0) return cudaSuccess;
  if (sum.weight_width == Width::kBfloat16 && sum.first_value % kDrawValues != 0) return cudaErrorInvalidValue;
  const int64_t lanes = (sum.values + kDrawValues - 1) / kDrawValues, threads = 32 * kWarps;
  const auto blocks = unsigned((lanes + threads - 1) / threads);
  if (sum.weight_width == Width::kFloat)
    change_kernel<float><<<blocks, unsigned(threads), 0, stream>>>(sum);
  else
    change_kernel<uint16_t><<<blocks, unsigned(threads), 0, stream>>>(sum);
  return cudaGetLastError();
}

}  // namespace vmoba::updates
