// What parameters a Wan transformer has, in diffusers' names and a fixed order, and the weights of one block picked out
// of that order.
//
// Initial values follow `init_weights` of the original repository (Wan-Video/Wan2.1, wan/modules/model.py).
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/common/linear.h"
#include "model/common/parameters.h"
#include "model/common/weight_bank.h"
#include "model/dit.h"

namespace vmoba::model {

struct WanAttentionWeights {
  Linear to_q, to_k, to_v, to_out;
  at::Tensor norm_q, norm_k;
  Linear add_k, add_v;  // keys and values of the image tokens; undefined without model.image_dim
  at::Tensor norm_added_k;
};

struct WanBlockWeights {
  at::Tensor scale_shift_table;  // [1, 6, E]
  WanAttentionWeights attn1, attn2;
  at::Tensor norm2_weight, norm2_bias;  // undefined without model.cross_attn_norm
  Linear ffn_up, ffn_down;
  std::vector<at::Tensor> learnt;  // by attn1, of ModelConfig::learnt
};

struct WanImageWeights {
  at::Tensor position;  // [1, I, M]; undefined without model.image_pos_tokens
  at::Tensor norm1_weight, norm1_bias;
  Linear up, down;
  at::Tensor norm2_weight, norm2_bias;
};

struct WanOuterWeights {
  at::Tensor scale_shift_table;  // [1, 2, E]
  Linear patch_embedding;
  Linear time_up, time_down, time_proj;
  Linear text_up, text_down;
  WanImageWeights image;  // undefined without model.image_dim
  Linear proj_out;
};

std::vector<ParameterSpec> wan_outer_specs(const ModelConfig& config);
std::vector<ParameterSpec> wan_block_specs(const ModelConfig& config, int64_t layer);
// Outer parameters, then those of each block.
std::vector<ParameterSpec> wan_parameter_specs(const ModelConfig& config);

// Weights in the order of wan_outer_specs and of wan_block_specs.
WanOuterWeights wan_outer_weights(const std::vector<Weight>& weights, const ModelConfig& config);
WanBlockWeights wan_block_weights(const std::vector<Weight>& weights, const ModelConfig& config);

}  // namespace vmoba::model
