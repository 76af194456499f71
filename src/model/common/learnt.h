// What attention learns in a layer (attention::LearntParameter) among the parameters of a model: it stands behind a
// block's own, and pretrained files lack it.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "attention/attention.h"
#include "model/common/spec_list.h"
#include "model/dit.h"

namespace vmoba::model {

// Adds "<module>.<name>" of every tensor of ModelConfig::learnt in the layer.
void learnt_specs(SpecList& specs, const std::string& module, const ModelConfig& config, int64_t layer);

// The tensors that self_attention() asks for in this layer, for the heads of the call's q. `held`: those of
// ModelConfig::learnt, whole. A layer that asks for others, under another attention than the model's own, gets
// their first values.
std::vector<at::Tensor> learnt_for(const attention::LayerAttention& layer, const ModelConfig& config,
                                   const std::vector<at::Tensor>& held, const at::Tensor& q_BSND);

}  // namespace vmoba::model
