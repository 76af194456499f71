// The encoder half of T5 (Raffel et al. 1910.10683): pre-norm blocks with RMS norm, attention without scaling and with
// relative position biases, and a gated tanh-GELU feed-forward. In UMT5 (Chung et al. 2304.09151) each layer has biases
// of its own, in ByT5 (Xue et al. 2105.13626) the first layer's are everybody's. Formulas as in transformers'
// modeling_t5.py and modeling_umt5.py. Weights are plain tensors without gradients, owned here.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/weights/weight_files.h"

namespace vmoba::model {

// Sizes read off the weights. UMT5-XXL: 256384 words, width 4096, 64 heads of 64, feed-forward 10240, 24 layers.
// ByT5-small of Glyph-SDXL-v2: 1510, 1472, 6 heads of 64, 3584, 12 layers.
struct T5Shape {
  int64_t vocabulary = 0, width = 0, inner = 0, ffn = 0, heads = 0, layers = 0, buckets = 0;
};

struct T5Kind {
  std::string title;                          // in messages
  std::string key;                            // what the user sets
  bool shared_bias = false;                   // position biases of the first layer only
  bool alone = true;                          // the files hold nothing but the encoder
  std::vector<std::string> passed_over = {};  // and these tensors
};
const T5Kind& umt5_kind();
const T5Kind& byt5_kind();

// transformers' names, which ComfyUI keeps and which are used here, and those of the original repositories.
const std::vector<Layout>& umt5_layouts();
const std::vector<Layout>& byt5_layouts();

class T5Encoder {
 public:
  // Copies the weights, opened with the kind's layouts, to `device` as `dtype`. Throws Error(kInput) naming what is
  // missing, misshapen or unknown.
  T5Encoder(const WeightFiles& files, const std::string& path, const T5Kind& kind, at::ScalarType dtype,
            at::Device device);

  const T5Shape& shape() const { return shape_; }
  // Token ids of one prompt, without padding -> [L, E] in the weights' dtype, on their device.
  at::Tensor forward(const std::vector<int64_t>& ids) const;

 private:
  struct Block {
    at::Tensor norm1, q, k, v, o, position_bias, norm2, gate, up, down;
  };
  at::Tensor attention(const Block& block, const at::Tensor& x_LE, const at::Tensor& bucket_LL) const;
  at::Tensor feed_forward(const Block& block, const at::Tensor& x_LE) const;

  T5Shape shape_;
  at::Tensor embedding_, norm_;
  std::vector<Block> blocks_;
};

// Checks names and shapes without reading values.
T5Shape check_t5(const WeightFiles& files, const std::string& path, const T5Kind& kind);

// Bucket of each pair (query, key) of L tokens, [L, L] int64 on the CPU (Raffel et al. 1910.10683, bidirectional).
at::Tensor t5_position_buckets(int64_t tokens, int64_t buckets);

}  // namespace vmoba::model
