#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/wan/wan_dit.h"

namespace vmoba::model {

void validate_wan(const ModelConfig& config) {
  VMOBA_CHECK_INPUT(config.head_dim % 2 == 0 && config.head_dim >= 6,
                    "expected model.head_dim to be even and at least 6 (rotary embedding over t, h, w), found {}",
                    config.head_dim);
  VMOBA_CHECK_INPUT(config.freq_dim % 2 == 0, "expected model.freq_dim to be even, found {}", config.freq_dim);
}

std::string wan_config_json(const ModelConfig& config) {
  const nlohmann::json json = {{"_class_name", "WanTransformer3DModel"},
                               {"_diffusers_version", "0.42.1"},
                               {"added_kv_proj_dim", nullptr},
                               {"attention_head_dim", config.head_dim},
                               {"cross_attn_norm", config.cross_attn_norm},
                               {"eps", config.eps},
                               {"ffn_dim", config.ffn_dim},
                               {"freq_dim", config.freq_dim},
                               {"image_dim", nullptr},
                               {"in_channels", config.in_channels},
                               {"num_attention_heads", config.heads},
                               {"num_layers", config.layers},
                               {"out_channels", config.out_channels},
                               {"patch_size", config.patch_size},
                               {"pos_embed_seq_len", nullptr},
                               {"qk_norm", "rms_norm_across_heads"},
                               {"rope_max_seq_len", 1024},
                               {"text_dim", config.text_dim}};
  return json.dump(2) + "\n";
}

}  // namespace vmoba::model
