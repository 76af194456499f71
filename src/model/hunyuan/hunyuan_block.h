// The layers of HunyuanVideo's transformer: video and text tokens in one state, in double blocks with maps of their
// own, in single blocks with the same. Pure functions of their inputs and weights, so that they can be recomputed.
//
// Shape letters: B samples, Z rows of the state (this rank's video tokens, then its text tokens), G runs of video
// tokens with a timestep each, E width.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "attention/attention.h"
#include "model/common/joint_share.h"
#include "model/common/recompute.h"
#include "model/dit.h"
#include "model/hunyuan/hunyuan_parameters.h"

namespace vmoba::model {

struct HunyuanBlockInput {
  at::Tensor x_BZE;    // in the compute dtype
  at::Tensor vec_BGE;  // conditions of the runs, precise; the last one is the text's
};

// What a block needs besides differentiable tensors.
struct HunyuanBlockContext {
  const ModelConfig& config;
  at::Tensor rope_ZP;  // of the own rows; text rows do not turn
  attention::Grid grid;
  attention::LayerAttention layer;
  attention::AttentionStats* stats;  // may be null
  const JointShare& share;
  const std::vector<int64_t>& text_lengths;  // of each sample
};

// What can be kept of a first run is named as the modules that compute it ("attn.to_q", "attn" for attention itself;
// hunyuan_forward_work).
at::Tensor hunyuan_double_block(const HunyuanBlockInput& input, const DoubleBlockWeights& weights,
                                const HunyuanBlockContext& context, Kept& kept);
at::Tensor hunyuan_single_block(const HunyuanBlockInput& input, const SingleBlockWeights& weights,
                                const HunyuanBlockContext& context, Kept& kept);

}  // namespace vmoba::model
