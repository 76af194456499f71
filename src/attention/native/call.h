// What every launch of the native kernels needs: views of tensors and tables, scratch memory, errors.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "attention/block/engine.h"
#include "attention/kernels/kernels.h"

namespace vmoba::attention::native {

// q, k or v as the kernels take it: rows of D contiguous, 16-byte aligned elements; head sizes without a kernel are
// filled up with zeros, which change no score and no output.
at::Tensor prepared(const at::Tensor& x_BZND);

// What prepared() filled up, taken off again.
at::Tensor trimmed(const at::Tensor& x_BZND, int64_t head_dim);

// 1 / sqrt(D) of tensors that are not filled up.
float softmax_scale(const at::Tensor& q_BZND);

// `sample`, `head`: the view begins there.
kernels::TensorView view(const at::Tensor& x_BZND, int64_t sample = 0, int64_t head = 0);

// Scratch memory on the device of `like`.
at::Tensor bytes(int64_t count, const at::Tensor& like);
// The same in `scratch`, which is kept where it has room.
void reserve(at::Tensor& scratch, int64_t count, const at::Tensor& like);

// Throws Error(kRuntime) naming the stage.
void check_launch(cudaError_t error, const char* stage);

// Shape and partition of a call whose prepared tensors are like `x`.
struct Call {
  kernels::Shape shape;
  kernels::PartitionView partition;

  Call(const BlockProblem& problem, const at::Tensor& x_BZND);
  // An int32 tensor [B, N, E, W] for a mask.
  at::Tensor empty_mask(const at::Tensor& like) const;
};

// (b, n) from `first` on of a call that go through the kernels together: what the stages take of contiguous [B, N, ...]
// tensors and of [B, Z, N, D] ones.
template <typename Shape>
struct Heads {
  Shape shape;  // of these
  int64_t sample = 0, head = 0, first = 0;

  kernels::TensorView view_of(const at::Tensor& x_BZND) const { return view(x_BZND, sample, head); }
  template <typename T>
  T* of(const at::Tensor& x_BN) const {
    return static_cast<T*>(x_BN.data_ptr()) + first * x_BN.stride(1);
  }
};

// Calls `function` with `count` heads of each sample after each other.
template <typename Shape, typename Function>
void for_each_heads(const Shape& all, int32_t count, const Function& function) {
  Heads<Shape> heads{all};
  heads.shape.batch = 1;
  for (heads.sample = 0; heads.sample < all.batch; ++heads.sample) {
    for (heads.head = 0; heads.head < all.heads; heads.head += count) {
      heads.shape.heads = int32_t(std::min<int64_t>(count, all.heads - heads.head));
      heads.first = heads.sample * all.heads + heads.head;
      function(heads);
    }
  }
}

}  // namespace vmoba::attention::native
