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

double wan_forward_flops(const ModelConfig& config, const attention::AttentionConfig& attention,
                         const attention::Grid& grid, int64_t text_tokens, double density) {
  const double tokens = double(grid.tokens()), text = double(text_tokens);
  const double width = double(config.heads * config.head_dim), ffn = double(config.ffn_dim);
  const double patch = double(config.patch_size[0] * config.patch_size[1] * config.patch_size[2]);
  double flops = 2 * tokens * patch * double(config.in_channels + config.out_channels) * width;
  flops += 2 * text * (double(config.text_dim) * width + width * width);
  flops += 2 * (double(config.freq_dim) * width + 7 * width * width);
  for (int64_t i = 0; i < config.layers; ++i) {
    const attention::LayerAttention layer = attention::layer_attention(attention, i, /*dense=*/false);
    flops += 8 * tokens * width * width;                                                         // self: q, k, v, o
    flops += 4 * tokens * width * width + 4 * text * width * width + 4 * tokens * text * width;  // cross
    flops += 4 * tokens * width * ffn;
    flops += attention::attention_flops(grid.tokens(), config.heads, config.head_dim, layer.sparse ? density : 1.0,
                                        layer.sparse ? attention::block_count(grid, layer) : 0);
  }
  return flops;
}

}  // namespace vmoba::model
