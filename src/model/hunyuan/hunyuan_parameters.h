// What parameters HunyuanVideo 1.0 and 1.5 have, in diffusers' names and a fixed order, and the weights of a unit
// picked out of that order.
//
// Initial values follow the original repositories (hyvideo/modules): Xavier, normal 0.02 in embedders, zeros in
// modulation and head, so that an untrained block changes nothing.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/common/linear.h"
#include "model/common/parameters.h"
#include "model/common/weight_bank.h"
#include "model/dit.h"

namespace vmoba::model {

// Attention and feed-forward of one stream of tokens. `norm_q`, `norm_k` [D]: undefined in the refiner.
struct StreamWeights {
  Linear to_q, to_k, to_v, to_out;
  at::Tensor norm_q, norm_k;
  Linear up, down;
};

struct DoubleBlockWeights {
  Linear video_modulation, text_modulation;  // [6E, E]
  StreamWeights video, text;
  std::vector<at::Tensor> learnt;  // of ModelConfig::learnt
};

struct SingleBlockWeights {
  Linear modulation;  // [3E, E]
  Linear to_q, to_k, to_v;
  at::Tensor norm_q, norm_k;
  Linear up, out;  // out: of attention's result and the activated `up`, side by side
  std::vector<at::Tensor> learnt;
};

struct NormWeights {
  at::Tensor weight, bias;
};

struct RefinerBlockWeights {
  Linear gates;  // [2E, E]
  NormWeights norm1, norm2;
  StreamWeights stream;
};

// Two maps with an activation between them; undefined where the model does not have them.
struct EmbedderWeights {
  Linear up, down;
};

struct GlyphWeights {
  NormWeights norm;
  Linear up, middle, down;
};

struct ImageTokenWeights {
  NormWeights norm_in;
  Linear up, down;
  NormWeights norm_out;
};

struct HunyuanOuterWeights {
  Linear patch_embedding;
  EmbedderWeights time, next_time, guidance, pooled;
  EmbedderWeights refiner_time, refiner_text;
  Linear refiner_in;
  std::vector<RefinerBlockWeights> refiner;
  GlyphWeights glyphs;      // 1.5
  ImageTokenWeights image;  // 1.5
  at::Tensor kinds;         // 1.5: [3, E], rows added to text, glyph and image tokens
  Linear head_modulation;   // [2E, E]: scale, shift
  Linear head;
};

std::vector<ParameterSpec> hunyuan_outer_specs(const ModelConfig& config);
// Of layer 0 .. layer_count - 1: double blocks, then single ones.
std::vector<ParameterSpec> hunyuan_block_specs(const ModelConfig& config, int64_t layer);
// Outer parameters, then those of each block.
std::vector<ParameterSpec> hunyuan_parameter_specs(const ModelConfig& config);

// "transformer_blocks.3.", "single_transformer_blocks.0."
std::string hunyuan_block_prefix(const ModelConfig& config, int64_t layer);

// Weights in the order of the specifications.
HunyuanOuterWeights hunyuan_outer_weights(const std::vector<Weight>& weights, const ModelConfig& config);
DoubleBlockWeights double_block_weights(const std::vector<Weight>& weights);
SingleBlockWeights single_block_weights(const std::vector<Weight>& weights);

}  // namespace vmoba::model
