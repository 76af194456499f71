// What HunyuanVideo makes of its conditions before the first block: the vector that modulates every block, and the text
// tokens that video tokens attend to. Nothing of a prompt's padding takes part.
//
// Shape letters: B samples, G runs of video tokens with a timestep each, L text rows, E width.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/dit.h"
#include "model/hunyuan/hunyuan_parameters.h"

namespace vmoba::model {

// Text rows of the model's width. Behind a sample's length they mean nothing and must not be attended.
struct HunyuanText {
  at::Tensor rows_BLE;  // in the compute dtype
  std::vector<int64_t> lengths;
};

// Tokens of each sample: `length_B`, or where it is undefined all that `tokens_BLE` has.
std::vector<int64_t> lengths_of(const at::Tensor& tokens_BLE, const at::Tensor& length_B);

// [B, G, E] in the precise dtype. `timestep_BG` in fp32.
at::Tensor hunyuan_vector(const at::Tensor& timestep_BG, const Conditions& conditions,
                          const HunyuanOuterWeights& weights, const ModelConfig& config, at::ScalarType dtype);

// The refined text; for 1.5 the image's tokens and those of glyphs before it. `timestep_B` in fp32.
HunyuanText hunyuan_text(const at::Tensor& timestep_B, const Conditions& conditions, const HunyuanOuterWeights& weights,
                         const ModelConfig& config, at::ScalarType dtype);

}  // namespace vmoba::model
