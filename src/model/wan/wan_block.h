// One layer of the Wan transformer: a pure function of its inputs and weights, so that it can be recomputed.
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/attention.h"
#include "model/dit.h"
#include "model/sequence_parallel.h"
#include "model/wan/wan_parameters.h"

namespace vmoba::model {

struct WanBlockInput {
  at::Tensor x_BSE;      // this rank's tokens (TokenShare), in the compute dtype
  at::Tensor text_BLE;   // embedded text, in the compute dtype
  at::Tensor time_BG6E;  // modulation of the timestep of each of G equal runs of tokens, precise
  at::Tensor image_BIE;  // embedded image tokens, in the compute dtype; undefined where the model takes none
};

// What a block needs besides differentiable tensors.
struct WanBlockContext {
  const ModelConfig& config;
  at::Tensor rope_SP;  // of this rank's tokens
  attention::Grid grid;
  attention::LayerAttention layer;
  attention::AttentionStats* stats;  // may be null
  TokenShare share;
};

// What can be kept of a first run is named as the modules that compute it ("attn1.to_q", "attn1" for attention itself;
// wan_forward_work).
at::Tensor wan_block(const WanBlockInput& input, const WanBlockWeights& weights, const WanBlockContext& context,
                     Kept& kept);

}  // namespace vmoba::model
