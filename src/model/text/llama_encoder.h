// A language model of LLaMA's kind (Touvron et al. 2302.13971) as a text encoder: the hidden states before its last two
// layers, as HunyuanVideo's pipelines take them (`hidden_states[-3]`), without the final norm. Pre-norm blocks with RMS
// norm, causal attention of grouped queries, rotary positions that turn the halves of a head, and a SwiGLU
// feed-forward. Formulas as in transformers' modeling_llama.py and modeling_qwen2_5_vl.py, whose three position axes
// coincide for text. Weights are plain tensors without gradients, owned here.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/weights/weight_files.h"

namespace vmoba::model {

// What belongs to the kind and not to the shapes. A config.json beside the weights goes before these values.
struct LlamaKind {
  std::string title;
  double rope_theta = 0;
  double eps = 0;
  bool biases = false;  // of the maps to queries, keys and values
};
LlamaKind llama3_kind();
LlamaKind qwen25_vl_kind();

// LLaMA-3-8B: 128320 words, width 4096, 32 and 8 heads of 128, feed-forward 14336, 32 layers. Qwen2.5-VL-7B: 152064,
// 3584, 28 and 4 heads of 128, 18944, 28.
struct LlamaShape {
  int64_t vocabulary = 0, width = 0, heads = 0, key_heads = 0, head_dim = 0, ffn = 0;
  int64_t layers = 0;  // of the weights; the last two are not read
};

// transformers' names, with what stands before them in the files of vision-language models.
const std::vector<Layout>& llama_layouts();

// Checks names and shapes without reading values. Throws Error(kInput) naming what is missing or misshapen. Tensors
// beside the language model (vision tower, lm_head) are passed over.
LlamaShape check_llama(const WeightFiles& files, const std::string& path, const LlamaKind& kind);

class LlamaEncoder {
 public:
  // Copies the weights, opened with llama_layouts(), to `device` as `dtype`; throws as check_llama.
  LlamaEncoder(const WeightFiles& files, const std::string& path, LlamaKind kind, at::ScalarType dtype,
               at::Device device);

  const LlamaShape& shape() const { return shape_; }
  // Token ids of one prompt, without padding -> [L, E] in the weights' dtype, on their device. `picture_IE`, where it
  // is defined, stands for the token `place`, whose I - 1 further rows the result has there.
  at::Tensor forward(const std::vector<int64_t>& ids, const at::Tensor& picture_IE = {}, int64_t place = 0) const;

 private:
  struct Block {
    at::Tensor norm1, q, k, v, q_bias, k_bias, v_bias, o, norm2, gate, up, down;
  };
  struct Rotation {
    at::Tensor cos_LD, sin_LD;
  };
  Rotation rotation(int64_t tokens) const;
  at::Tensor attention(const Block& block, const at::Tensor& x_LE, const Rotation& rotation) const;

  LlamaKind kind_;
  LlamaShape shape_;
  at::Tensor embedding_;
  std::vector<Block> blocks_;
};

}  // namespace vmoba::model
