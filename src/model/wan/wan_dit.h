// Wan's video transformer (Wan Team, arXiv 2503.20314; Wan-Video/Wan2.1 and Wan2.2, wan/modules/model.py; diffusers'
// WanTransformer3DModel) with VMoBA or full self-attention in every layer: text to video; image to video by channels
// of the condition and CLIP tokens (2.1 I2V and FLF2V); a timestep of its own for each latent frame (2.2 TI2V-5B).
#pragma once
#include <memory>

#include "model/dit.h"

namespace vmoba::model {

// `store` may be null.
std::unique_ptr<Dit> make_wan_dit(const ModelConfig& config, const attention::AttentionConfig& attention, uint64_t seed,
                                  at::Device device, WeightStore* store);

}  // namespace vmoba::model
