// The transformer block of CLIP's and SigLIP's encoders: layer norm before attention and before a feed-forward of two
// maps, biases everywhere. Tensors are shared with whoever gives them.
//
// Shape letters: B samples, S tokens, E width.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/common/linear.h"

namespace vmoba::model {

struct EncoderNorm {
  at::Tensor weight, bias;
};

struct EncoderBlock {
  EncoderNorm norm1, norm2;
  Linear q, k, v, out, up, down;
};

struct EncoderBlockOptions {
  int64_t heads = 0;
  double eps = 1e-5;
  at::Tensor (*activation)(const at::Tensor& x) = nullptr;
  bool causal = false;
};

// Gives the tensor of this name, which must have this shape.
using NamedTensorSource = std::function<at::Tensor(const std::string& name, const std::vector<int64_t>& shape)>;

EncoderNorm read_encoder_norm(const NamedTensorSource& source, const std::string& name, int64_t width);
// `name`, for example "encoder.layers.3.", stands before transformers' names of the block's parts.
EncoderBlock read_encoder_block(const NamedTensorSource& source, const std::string& name, int64_t width,
                                int64_t hidden);

// x [B, S, E] -> the same shape; fp32.
at::Tensor run_encoder_block(const EncoderBlock& block, const at::Tensor& x_BSE, const EncoderBlockOptions& options);

// x * sigmoid(1.702 x)
at::Tensor quick_gelu(const at::Tensor& x);
at::Tensor exact_gelu(const at::Tensor& x);
at::Tensor tanh_gelu(const at::Tensor& x);

}  // namespace vmoba::model
