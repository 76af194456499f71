#include "model/wan/wan_config.h"

#include "core/check.h"

namespace vmoba::model {

void visit_wan(ModelConfig& config, ConfigVisitor& v) {
  WanConfig& wan = config.own<WanConfig>();
  v.field("ffn_dim", wan.ffn_dim, "Hidden width of the feed-forward.", at_least(1));
  v.field("freq_dim", wan.freq_dim, "Width of the sinusoidal timestep embedding; even.", at_least(2));
  v.field("image_pos_tokens", wan.image_pos_tokens,
          "Image tokens with a learnt position: 514 for Wan2.1 FLF2V, 0 for every other model.", at_least(0));
  v.field("cross_attn_norm", wan.cross_attn_norm, "Layer norm before cross attention.");
}

void validate_wan(const ModelConfig& config) {
  const WanConfig& wan = config.own<WanConfig>();
  VMOBA_CHECK_INPUT(config.head_dim % 2 == 0 && config.head_dim >= 6,
                    "model.head_dim: expected an even number of at least 6 (rotary embedding over t, h, w), found {}",
                    config.head_dim);
  VMOBA_CHECK_INPUT(config.image_dim == 0 || config.task == "i2v" || config.task == "flf2v",
                    "model.task: expected i2v or flf2v for a model with image tokens (model.image_dim {}), found {}",
                    config.image_dim, config.task);
  VMOBA_CHECK_INPUT(wan.freq_dim % 2 == 0, "model.freq_dim: expected an even number, found {}", wan.freq_dim);
  VMOBA_CHECK_INPUT(config.image_dim > 0 || wan.image_pos_tokens == 0,
                    "model.image_pos_tokens: expected 0 for a model without image tokens (model.image_dim 0), found {}",
                    wan.image_pos_tokens);
}

ImageInput wan_image_input(const ModelConfig& config) {
  if (config.task == "ti2v") return ImageInput::kFirstFrame;
  return config.task == "t2v" ? ImageInput::kNone : ImageInput::kMaskAndClip;
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

}  // namespace vmoba::model
