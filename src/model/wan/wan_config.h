// Wan's own keys of the `model:` group. Defaults are those of Wan2.1 T2V 1.3B.
#pragma once
#include <cstdint>
#include <string>

#include "model/architecture.h"

namespace vmoba::model {

struct WanConfig {
  int64_t ffn_dim = 8960;
  int64_t freq_dim = 256;
  int64_t image_pos_tokens = 0;  // image tokens with a learnt position (514 in Wan2.1 FLF2V); 0: none
  bool cross_attn_norm = true;
};

void visit_wan(ModelConfig& config, ConfigVisitor& v);

// Throws Error(kInput) where the widths do not fit a Wan transformer.
void validate_wan(const ModelConfig& config);

ImageInput wan_image_input(const ModelConfig& config);

// The published default (wan/configs of Wan-Video/Wan2.1 and Wan2.2, which agree).
std::string wan_negative_prompt(const ModelConfig& config);

}  // namespace vmoba::model
