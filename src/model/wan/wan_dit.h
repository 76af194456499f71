// Wan's video transformer (Wan Team, arXiv 2503.20314; Wan-Video/Wan2.1 and Wan2.2, wan/modules/model.py; diffusers'
// WanTransformer3DModel) with VMoBA or full self-attention in every layer: text to video; image to video by channels
// of the condition and CLIP tokens (2.1 I2V and FLF2V); a timestep of its own for each latent frame (2.2 TI2V-5B).
#pragma once
#include <memory>
#include <vector>

#include "model/dit.h"

namespace vmoba::model {

// Throws Error(kInput) where the widths do not fit a Wan transformer.
void validate_wan(const ModelConfig& config);

// `shards` may be null.
std::unique_ptr<Dit> make_wan_dit(const ModelConfig& config, const attention::AttentionConfig& attention, uint64_t seed,
                                  at::Device device, WeightShards* shards);

// See model::forward_work.
std::vector<ForwardWork> wan_forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                          const attention::Grid& grid, int64_t text_tokens, double density);

// The published default (wan/configs of Wan-Video/Wan2.1 and Wan2.2, which agree).
std::string wan_negative_prompt(const ModelConfig& config);

// diffusers' transformer/config.json.
std::string wan_config_json(const ModelConfig& config);

}  // namespace vmoba::model
