#include "model/common/encoder_block.h"

#include <ATen/ATen.h>

#include "model/common/norm.h"

namespace vmoba::model {
namespace {

at::Tensor attention(const EncoderBlock& block, const at::Tensor& x_BSE, const EncoderBlockOptions& options) {
  const auto heads = [&](const Linear& map) {
    return linear(x_BSE, map).unflatten(-1, {options.heads, x_BSE.size(2) / options.heads}).transpose(1, 2);
  };
  const at::Tensor out_BNSD = at::scaled_dot_product_attention(heads(block.q), heads(block.k), heads(block.v), {},
                                                               /*dropout_p=*/0, options.causal);
  return linear(out_BNSD.transpose(1, 2).flatten(2), block.out);
}

}  // namespace

EncoderNorm read_encoder_norm(const NamedTensorSource& source, const std::string& name, int64_t width) {
  return {source(name + ".weight", {width}), source(name + ".bias", {width})};
}

EncoderBlock read_encoder_block(const NamedTensorSource& source, const std::string& name, int64_t width,
                                int64_t hidden) {
  const auto map = [&](const std::string& part, int64_t in, int64_t out) {
    return Linear{source(name + part + ".weight", {out, in}), source(name + part + ".bias", {out})};
  };
  EncoderBlock block;
  block.norm1 = read_encoder_norm(source, name + "layer_norm1", width);
  block.norm2 = read_encoder_norm(source, name + "layer_norm2", width);
  block.q = map("self_attn.q_proj", width, width);
  block.k = map("self_attn.k_proj", width, width);
  block.v = map("self_attn.v_proj", width, width);
  block.out = map("self_attn.out_proj", width, width);
  block.up = map("mlp.fc1", width, hidden);
  block.down = map("mlp.fc2", hidden, width);
  return block;
}

at::Tensor run_encoder_block(const EncoderBlock& block, const at::Tensor& x_BSE, const EncoderBlockOptions& options) {
  const auto normed = [&](const at::Tensor& x, const EncoderNorm& norm) {
    return layer_norm(x, norm.weight, norm.bias, options.eps);
  };
  const at::Tensor mixed_BSE = x_BSE + attention(block, normed(x_BSE, block.norm1), options);
  return mixed_BSE + linear(options.activation(linear(normed(mixed_BSE, block.norm2), block.up)), block.down);
}

at::Tensor quick_gelu(const at::Tensor& x) {
  return x * at::sigmoid(1.702 * x);
}

at::Tensor exact_gelu(const at::Tensor& x) {
  return at::gelu(x);
}

at::Tensor tanh_gelu(const at::Tensor& x) {
  return at::gelu(x, "tanh");
}

}  // namespace vmoba::model
