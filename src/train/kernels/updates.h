// Launch interface of the optimisers' kernels: AdamW over many tensors in one pass over memory, moments in fp32 or in
// blocks of 8-bit codes, and the sum that ends a step of Muon. Weights are fp32, or bf16 rounded stochastically.
//
// Plain structs of pointers; the caller owns all memory. Calls on a GPU are asynchronous on their stream, never
// synchronise, allocate or print, and return the first cudaError_t they met. The functions for the CPU compute the same
// numbers, bit for bit: both are made of update_arithmetic.h. No torch here: src/train/optim/tensor_updates.cpp binds
// these to tensors.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace vmoba::updates {

// Consecutive values that share the scale of their 8-bit moments: bitsandbytes' blocks.
constexpr int64_t kScaleValues = 256;
// Consecutive values whose rounding one block of Philox decides. A part of a parameter begins at a multiple of it.
constexpr int64_t kDrawValues = 8;

// The 256 values of an 8-bit code in rising order, and the 255 bounds between them: `x` takes the first code whose
// upper bound is not below it, so that it takes the nearest value.
struct CodeTable {
  float values[256];
  float bounds[256];  // the last is unused
};
// For first moments (signed) and second ones (unsigned).
struct CodeTables {
  CodeTable first, second;
};

enum class Width : int32_t { kFloat, kBfloat16 };

// What all tensors of a step share. The device pointers hold one fp32 number each, and may be null.
struct Step {
  float beta1 = 0, beta2 = 0;
  float rest1 = 0, rest2 = 0;  // 1 - beta
  float eps = 0;
  float decay = 1;                // of weights: 1 - lr * weight_decay
  float step_size = 0;            // lr / (1 - beta1^t)
  float root = 1;                 // sqrt(1 - beta2^t)
  uint64_t number = 0;            // of the step, for draws
  const float* factor = nullptr;  // of gradients; null: 1
  const float* skip = nullptr;    // other than 0: nothing is written; null: 0
};

// One tensor, or this rank's part of it. Moments in 8 bits where `first_scale` is there.
struct Tensor {
  void* weight = nullptr;
  const void* gradient = nullptr;
  void *first = nullptr, *second = nullptr;               // float, or uint8_t codes
  float *first_scale = nullptr, *second_scale = nullptr;  // of each kScaleValues values
  int64_t values = 0;
  int64_t first_value = 0;   // its place in the whole parameter
  uint32_t key[2] = {0, 0};  // of its draws
  Width weight_width = Width::kFloat, gradient_width = Width::kFloat;
};

// Any number of tensors. `tables` lies on the device; null where no moments are in 8 bits.
cudaError_t adamw(const Tensor* tensors, int64_t count, const Step& step, const CodeTables* tables,
                  cudaStream_t stream);
// Values [begin, end) of one tensor; `begin` is a multiple of kScaleValues.
void adamw_on_cpu(const Tensor& tensor, int64_t begin, int64_t end, const Step& step, const CodeTables* tables);

// weight = decay * weight - size * change, for a change in bf16.
struct Sum {
  void* weight = nullptr;
  const void* change = nullptr;
  int64_t values = 0, first_value = 0;
  uint32_t key[2] = {0, 0};
  Width weight_width = Width::kFloat;
  float decay = 1, size = 0;
  uint64_t number = 0;
  const float* skip = nullptr;
};
cudaError_t add_change(const Sum& sum, cudaStream_t stream);
void add_change_on_cpu(const Sum& sum, int64_t begin, int64_t end);

}  // namespace vmoba::updates
