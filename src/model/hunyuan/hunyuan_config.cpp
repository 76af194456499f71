#include "model/hunyuan/hunyuan_config.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::model {
namespace {

void visit_shared(HunyuanConfig& hunyuan, ConfigVisitor& v) {
  v.field("ffn_dim", hunyuan.ffn_dim, "Hidden width of the feed-forward.", at_least(1));
  v.field("refiner_layers", hunyuan.refiner_layers, "Blocks that refine the text.", at_least(1));
  v.field("rope_theta", hunyuan.rope_theta, "Base of the rotary embedding's wavelengths.", above(1));
  v.field("rope_axes", hunyuan.rope_axes, "Channels of a head that turn with (t, h, w); even, head_dim in all.",
          list_of(3, 2));
}

}  // namespace

const HunyuanConfig& hunyuan_of(const ModelConfig& config) {
  if (is_hunyuan_15(config)) return config.own<Hunyuan15Config>();
  return config.own<HunyuanConfig>();
}

HunyuanConfig& hunyuan_of(ModelConfig& config) {
  if (is_hunyuan_15(config)) return config.own<Hunyuan15Config>();
  return config.own<HunyuanConfig>();
}

bool is_hunyuan_15(const ModelConfig& config) {
  return config.architecture == kHunyuan15;
}

RopeAxes rope_axes_of(const HunyuanConfig& hunyuan) {
  return {hunyuan.rope_axes[0], hunyuan.rope_axes[1], hunyuan.rope_axes[2], hunyuan.rope_theta};
}

void visit_hunyuan(ModelConfig& config, ConfigVisitor& v) {
  HunyuanConfig& hunyuan = config.own<HunyuanConfig>();
  visit_shared(hunyuan, v);
  v.field("single_layers", hunyuan.single_layers, "Blocks with one stream, behind those with two.", at_least(0));
  v.field("pooled_dim", hunyuan.pooled_dim, "Width of the pooled text; that of CLIP.", at_least(1));
  v.field("guidance_embed", hunyuan.guidance_embed,
          "Whether the model takes a guidance scale as an input (train.flow.embedded_guidance, "
          "sample.embedded_guidance).");
  v.field("image_condition", hunyuan.image_condition,
          "What task i2v means. `replace`: the first latent frame is given clean. `concat`: the image's latents and a "
          "mask stand behind the latents.",
          one_of({"none", "replace", "concat"}));
}

void visit_hunyuan_15(ModelConfig& config, ConfigVisitor& v) {
  Hunyuan15Config& hunyuan = config.own<Hunyuan15Config>();
  visit_shared(hunyuan, v);
  v.field("glyph_dim", hunyuan.glyph_dim, "Width of the glyph tokens; that of ByT5.", at_least(1));
  v.field("glyph_hidden_dim", hunyuan.glyph_hidden_dim, "Hidden width of the map of glyph tokens.", at_least(1));
  v.field("meanflow", hunyuan.meanflow,
          "Whether the model is told the timestep that a step leads to: step-distilled weights. Training tells it the "
          "sample's own.");
}

void validate_hunyuan(const ModelConfig& config) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  const std::vector<int64_t>& axes = hunyuan.rope_axes;
  VMOBA_CHECK_INPUT(axes.size() == 3 && axes[0] + axes[1] + axes[2] == config.head_dim &&
                        std::all_of(axes.begin(), axes.end(), [](int64_t axis) { return axis > 0 && axis % 2 == 0; }),
                    "model.rope_axes: expected three even numbers with the sum {} (model.head_dim), found {}",
                    config.head_dim, fmt::join(axes, ", "));
  VMOBA_CHECK_INPUT(config.patch_size[1] == config.patch_size[2],
                    "model.patch_size: expected [t, p, p] for HunyuanVideo, found [{}]",
                    fmt::join(config.patch_size, ", "));
  const bool first = is_hunyuan_15(config);
  const bool image = config.task == "i2v" || (first && config.task == "ti2v");
  VMOBA_CHECK_INPUT(config.task == "t2v" || image, "model.task: expected t2v, i2v{} for {}, found {}",
                    first ? " or ti2v" : "", config.architecture, config.task);
  VMOBA_CHECK_INPUT(first || image == (hunyuan.image_condition != "none"),
                    "model.image_condition: expected {} for model.task {}, found {}",
                    image ? "replace or concat" : "none", config.task, hunyuan.image_condition);
  if (!config.missing_weights.empty()) return;  // they would state the width
  VMOBA_CHECK_INPUT(first == (config.image_dim > 0), "model.image_dim: expected {} for {}, found {}",
                    first ? "the width of the image tokens (1152)" : "0", config.architecture, config.image_dim);
}

ImageInput hunyuan_image_input(const ModelConfig& config) {
  const std::string& condition = hunyuan_of(config).image_condition;
  if (condition == "replace") return ImageInput::kFirstFrame;
  return condition == "concat" ? ImageInput::kLatentAndMask : ImageInput::kNone;
}

}  // namespace vmoba::model
