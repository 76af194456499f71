// The encoder half of UMT5 (Chung et al. 2304.09151): pre-norm blocks with RMS norm, attention without scaling and with
// relative position biases of each layer's own, and a gated tanh-GELU feed-forward. Formulas as in transformers'
// modeling_umt5.py. Weights are plain tensors without gradients, owned here.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/weights/weight_files.h"

namespace vmoba::model {

// Sizes read off the weights. UMT5-XXL: 256384 words, width 4096, 64 heads of 64, feed-forward 10240, 24 layers.
struct Umt5Shape {
  int64_t vocabulary = 0, width = 0, inner = 0, ffn = 0, heads = 0, layers = 0, buckets = 0;
};

// transformers' names, which ComfyUI keeps and which are used here, and the original repository's.
const std::vector<Layout>& umt5_layouts();

class Umt5Encoder {
 public:
  // Copies the weights, opened with umt5_layouts(), to `device` as `dtype`. Throws
  // Error(kInput) naming what is missing, misshapen or unknown.
  Umt5Encoder(const WeightFiles& files, const std::string& path, at::ScalarType dtype, at::Device device);

  const Umt5Shape& shape() const { return shape_; }
  // Token ids of one prompt, without padding -> [L, E] in the weights' dtype, on their device.
  at::Tensor forward(const std::vector<int64_t>& ids) const;

 private:
  struct Block {
    at::Tensor norm1, q, k, v, o, position_bias, norm2, gate, up, down;
  };
  at::Tensor attention(const Block& block, const at::Tensor& x_LE, const at::Tensor& bucket_LL) const;
  at::Tensor feed_forward(const Block& block, const at::Tensor& x_LE) const;

  Umt5Shape shape_;
  at::Tensor embedding_, norm_;
  std::vector<Block> blocks_;
};

// Checks names and shapes without reading values.
Umt5Shape check_umt5(const WeightFiles& files, const std::string& path);

// Bucket of each pair (query, key) of L tokens, [L, L] int64 on the CPU (Raffel et al. 1910.10683, bidirectional).
at::Tensor umt5_position_buckets(int64_t tokens, int64_t buckets);

}  // namespace vmoba::model
