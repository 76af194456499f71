// What a Wan transformer computes and keeps, from its configuration alone.
#pragma once
#include <vector>

#include "model/architecture.h"

namespace vmoba::model {

// See model::forward_work.
std::vector<ForwardWork> wan_forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                          const attention::Grid& grid, int64_t text_tokens, double density);

std::vector<BlockActivations> wan_activations(const ModelConfig& config);

}  // namespace vmoba::model
