#include "attention/native/call.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace vmoba::attention::native {
namespace {

at::Tensor aligned(const at::Tensor& x_BZND) {
  const bool rows = x_BZND.stride(3) == 1 && x_BZND.stride(0) % 8 == 0 && x_BZND.stride(1) % 8 == 0 &&
                    x_BZND.stride(2) % 8 == 0 && reinterpret_cast<uintptr_t>(x_BZND.data_ptr()) % 16 == 0;
  return rows ? x_BZND : x_BZND.contiguous();
}

int64_t kernel_head_dim(int64_t head_dim) {
  return head_dim <= 64 ? 64 : 128;
}

}  // namespace

at::Tensor prepared(const at::Tensor& x_BZND) {
  const int64_t missing = kernel_head_dim(x_BZND.size(3)) - x_BZND.size(3);
  return missing > 0 ? at::constant_pad_nd(x_BZND, {0, missing}) : aligned(x_BZND);
}

at::Tensor trimmed(const at::Tensor& x_BZND, int64_t head_dim) {
  return x_BZND.size(3) == head_dim ? x_BZND : x_BZND.narrow(3, 0, head_dim).contiguous();
}

float softmax_scale(const at::Tensor& q_BZND) {
  return float(1 / std::sqrt(double(q_BZND.size(3))));
}

kernels::TensorView view(const at::Tensor& x_BZND, int64_t sample, int64_t head) {
  const int64_t first = sample * x_BZND.stride(0) + head * x_BZND.stride(2);
  return {static_cast<char*>(x_BZND.data_ptr()) + first * x_BZND.element_size(), x_BZND.stride(0), x_BZND.stride(1),
          x_BZND.stride(2)};
}

at::Tensor bytes(int64_t count, const at::Tensor& like) {
  return at::empty({std::max<int64_t>(count, 1)}, like.options().dtype(at::kByte));
}

void reserve(at::Tensor& scratch, int64_t count, const at::Tensor& like) {
  if (!scratch.defined() || scratch.size(0) < count) scratch = bytes(count, like);
}

void check_launch(cudaError_t error, const char* stage) {
  VMOBA_CHECK(error == cudaSuccess,
              "attention: the native {} stage failed: {}; attention.implementation=reference "
              "runs without these kernels",
              stage, cudaGetErrorString(error));
}

Call::Call(const BlockProblem& problem, const at::Tensor& x_BZND) {
  const PartitionTables& tables = *problem.tables;
  shape.batch = int32_t(x_BZND.size(0));
  shape.heads = int32_t(x_BZND.size(2));
  shape.head_dim = int32_t(x_BZND.size(3));
  shape.video_tokens = int32_t(tables.tokens);
  shape.text_tokens = int32_t(problem.text_tokens);
  shape.blocks = int32_t(tables.blocks);
  partition.token_of = tables.token_of_S.const_data_ptr<int32_t>();
  partition.block_of = tables.block_of_S.const_data_ptr<int32_t>();
  partition.block_start = tables.block_start_C1.const_data_ptr<int32_t>();
  partition.max_block_tokens = int32_t(tables.max_block_tokens);
  partition.identity = tables.identity;
}

at::Tensor Call::empty_mask(const at::Tensor& like) const {
  return at::empty({shape.batch, shape.heads, shape.block_count(), shape.mask_words()}, like.options().dtype(at::kInt));
}

}  // namespace vmoba::attention::native
