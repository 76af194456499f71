#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/wan/wan_dit.h"
#include "model/wan/wan_parameters.h"

namespace vmoba::model {
namespace {

constexpr int64_t kClipTokens = 257;  // of one image: 16 x 16 patches and the class token of ViT-H/14

// How often the maps of a sample are applied.
struct WorkRows {
  double tokens, text, image;
};

// A linear map's weight adds its work; other parameters have none.
void add_map(const ParameterSpec& spec, const WorkRows& rows, std::vector<ForwardWork>& out) {
  if (!spec.name.ends_with(".weight") || spec.shape.size() < 2) return;
  const auto is_of = [&](std::initializer_list<const char*> parts) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](const char* part) { return spec.name.find(part) != std::string::npos; });
  };
  ForwardWork work;
  work.module = spec.name.substr(0, spec.name.rfind('.'));
  if (is_of({"time_embedder.", "time_proj."})) {
    work.rows = 1;
  } else if (is_of({"text_embedder.", "attn2.to_k.", "attn2.to_v."})) {
    work.rows = rows.text;
  } else if (is_of({"image_embedder.", "attn2.add_"})) {
    work.rows = rows.image;
  } else {
    work.rows = rows.tokens;
    work.on_tokens = !is_of({"patch_embedding."});
  }
  work.flops = 2 * work.rows * double(spec.numel());
  out.push_back(std::move(work));
}

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

std::vector<ForwardWork> wan_forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                          const attention::Grid& grid, int64_t text_tokens, double density) {
  const double tokens = double(grid.tokens()), text = double(text_tokens);
  const double width = double(config.heads * config.head_dim);
  const double image =
      config.image_dim == 0 ? 0 : double(config.image_pos_tokens ? config.image_pos_tokens : kClipTokens);
  const WorkRows rows{tokens, text, image};
  std::vector<ForwardWork> out, last;
  for (const ParameterSpec& spec : wan_outer_specs(config))
    add_map(spec, rows, spec.name.starts_with("proj_out") ? last : out);
  for (int64_t i = 0; i < config.layers; ++i) {
    const attention::LayerAttention layer = attention::layer_attention(attention, i, /*dense=*/false);
    const double self = attention::layer_flops(layer, grid, config.heads, config.head_dim, density);
    for (const ParameterSpec& spec : wan_block_specs(config, i)) {
      if (spec.name.ends_with("attn1.to_out.0.weight")) out.push_back({"", self, tokens, true});
      if (spec.name.ends_with("attn2.to_out.0.weight"))
        out.push_back({"", 4 * (text + image) * tokens * width, tokens, true});
      add_map(spec, rows, out);
    }
  }
  out.insert(out.end(), last.begin(), last.end());
  return out;
}

}  // namespace vmoba::model
