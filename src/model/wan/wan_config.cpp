#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/wan/wan_dit.h"

namespace vmoba::model {
namespace {

constexpr int64_t kClipTokens = 257;  // of one image: 16 x 16 patches and the class token of ViT-H/14

}  // namespace

void validate_wan(const ModelConfig& config) {
  VMOBA_CHECK_INPUT(config.head_dim % 2 == 0 && config.head_dim >= 6,
                    "expected model.head_dim to be even and at least 6 (rotary embedding over t, h, w), found {}",
                    config.head_dim);
  VMOBA_CHECK_INPUT(config.freq_dim % 2 == 0, "expected model.freq_dim to be even, found {}", config.freq_dim);
  VMOBA_CHECK_INPUT(config.image_dim > 0 || config.image_pos_tokens == 0,
                    "expected model.image_pos_tokens 0 for a model without image tokens (model.image_dim 0), found {}",
                    config.image_pos_tokens);
}

std::string wan_negative_prompt(const ModelConfig& config) {
  // Wan2.1's models with image tokens put words against a shaking camera and against cuts in front.
  const bool shakes = config.image_dim > 0, cuts = shakes && config.task == "flf2v";
  return std::string(cuts ? "镜头切换，" : "") + (shakes ? "镜头晃动，" : "") +
         "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩"
         "残留，"
         "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不"
         "动的画面，"
         "杂乱的背景，三条腿，背景人很多，倒着走";
}

std::string wan_config_json(const ModelConfig& config) {
  const auto or_null = [](int64_t value) { return value > 0 ? nlohmann::json(value) : nlohmann::json(); };
  const nlohmann::json json = {
      {"_class_name", "WanTransformer3DModel"},
      {"_diffusers_version", "0.42.1"},
      {"added_kv_proj_dim", or_null(config.image_dim > 0 ? config.heads * config.head_dim : 0)},
      {"attention_head_dim", config.head_dim},
      {"cross_attn_norm", config.cross_attn_norm},
      {"eps", config.eps},
      {"ffn_dim", config.ffn_dim},
      {"freq_dim", config.freq_dim},
      {"image_dim", or_null(config.image_dim)},
      {"in_channels", config.in_channels},
      {"num_attention_heads", config.heads},
      {"num_layers", config.layers},
      {"out_channels", config.out_channels},
      {"patch_size", config.patch_size},
      {"pos_embed_seq_len", or_null(config.image_pos_tokens)},
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
  const double image =
      config.image_dim == 0 ? 0 : double(config.image_pos_tokens ? config.image_pos_tokens : kClipTokens);
  double flops = 2 * tokens * patch * double(config.in_channels + config.out_channels) * width;
  flops += 2 * text * (double(config.text_dim) * width + width * width);
  flops += 2 * (double(config.freq_dim) * width + 7 * width * width);
  flops += 2 * image * double(config.image_dim) * (double(config.image_dim) + width);
  for (int64_t i = 0; i < config.layers; ++i) {
    const attention::LayerAttention layer = attention::layer_attention(attention, i, /*dense=*/false);
    flops += 8 * tokens * width * width;                                                  // self: q, k, v, o
    flops += 4 * tokens * width * width + 4 * (text + image) * width * (width + tokens);  // cross
    flops += 4 * tokens * width * ffn;
    flops += attention::attention_flops(grid.tokens(), config.heads, config.head_dim, layer.sparse ? density : 1.0,
                                        layer.sparse ? attention::block_count(grid, layer) : 0);
  }
  return flops;
}

}  // namespace vmoba::model
