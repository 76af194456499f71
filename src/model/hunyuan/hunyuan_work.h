// What a HunyuanVideo transformer computes and keeps, from its configuration alone.
#pragma once
#include <vector>

#include "model/architecture.h"

namespace vmoba::model {

// See model::forward_work. For 1.5 `text_tokens` are all tokens beside the video's.
std::vector<ForwardWork> hunyuan_forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                              const attention::Grid& grid, int64_t text_tokens, double density);

std::vector<BlockActivations> hunyuan_activations(const ModelConfig& config);

}  // namespace vmoba::model
