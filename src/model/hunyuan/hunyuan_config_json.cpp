#include "model/hunyuan/hunyuan_config_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"
#include "model/hunyuan/hunyuan_config.h"
#include "model/weights/stored_shapes.h"

namespace vmoba::model {
namespace {

using nlohmann::json;

// Keys of diffusers' 1.5 that say for which clips and task weights were made, not what they are; its converter states
// some of them wrongly.
constexpr const char* kUses[] = {"target_size", "task_type"};

json from_original(const json& original, const std::string& path) {
  json out = json::object();
  const auto take = [&](const char* from, const char* to) {
    if (original.contains(from)) out[to] = original[from];
  };
  take("heads_num", "num_attention_heads");
  take("mm_double_blocks_depth", "num_layers");
  take("mm_single_blocks_depth", "num_single_layers");
  take("mlp_width_ratio", "mlp_ratio");
  take("rope_dim_list", "rope_axes_dim");
  take("rope_theta", "rope_theta");
  take("text_states_dim", "text_embed_dim");
  take("guidance_embed", "guidance_embeds");
  take("use_meanflow", "use_meanflow");
  const auto whole = [&](const char* key) {
    VMOBA_CHECK_INPUT(original[key].is_number_unsigned() && original[key].get<int64_t>() > 0,
                      "expected a positive whole number {} in '{}', found {}", key, path, json_text(original[key]));
    return original[key].get<int64_t>();
  };
  if (original.contains("hidden_size") && original.contains("heads_num"))
    out["attention_head_dim"] = whole("hidden_size") / whole("heads_num");
  return out;
}

void read_rope(const json& beside, HunyuanConfig& hunyuan) {
  if (const json theta = beside.value("rope_theta", json()); theta.is_number())
    hunyuan.rope_theta = theta.get<double>();
  const json axes = beside.value("rope_axes_dim", json());
  const bool numbers = axes.is_array() && axes.size() == 3 &&
                       std::all_of(axes.begin(), axes.end(), [](const json& axis) { return axis.is_number_integer(); });
  if (numbers) hunyuan.rope_axes = axes.get<std::vector<int64_t>>();
}

// What config.json states of an image's condition; without it, a concatenated one shows in the channels.
void read_image_condition(const json& beside, const ModelConfig& config, HunyuanConfig& hunyuan) {
  if (config.in_channels == 2 * config.out_channels + 1) hunyuan.image_condition = "concat";
  if (!beside.contains("image_condition_type")) return;
  const json& kind = beside["image_condition_type"];
  if (kind.is_null()) hunyuan.image_condition = "none";
  if (kind == "token_replace") hunyuan.image_condition = "replace";
  if (kind == "latent_concat") hunyuan.image_condition = "concat";
}

json shared_config(const ModelConfig& config) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  return {{"_diffusers_version", "0.42.1"},
          {"attention_head_dim", config.head_dim},
          {"in_channels", config.in_channels},
          {"mlp_ratio", double(hunyuan.ffn_dim) / double(config.heads * config.head_dim)},
          {"num_attention_heads", config.heads},
          {"num_layers", config.layers},
          {"num_refiner_layers", hunyuan.refiner_layers},
          {"out_channels", config.out_channels},
          {"patch_size", config.patch_size[1]},
          {"patch_size_t", config.patch_size[0]},
          {"qk_norm", "rms_norm"},
          {"rope_axes_dim", hunyuan.rope_axes},
          {"rope_theta", hunyuan.rope_theta},
          {"text_embed_dim", config.text_dim}};
}

}  // namespace

json hunyuan_diffusers_config(const json& found, const std::string& path) {
  if (found.contains("heads_num")) return from_original(found, path);
  json out = found;
  for (const char* key : kUses) out.erase(key);
  return out;
}

void read_hunyuan_sizes(const WeightFiles& files, const json& beside, const std::set<std::string>&,
                        ModelConfig& config) {
  const StoredShapes shapes(files, "HunyuanVideo");
  const std::string patch = "x_embedder.proj.weight", pooled = "time_text_embed.text_embedder.linear_1.weight";
  const int64_t width = shapes.size(patch, 5, 0);
  const int64_t head_dim = shapes.size("transformer_blocks.0.attn.norm_q.weight", 1, 0);
  VMOBA_CHECK_INPUT(head_dim > 0 && width > 0 && width % head_dim == 0,
                    "expected a width that is a multiple of the head size {}, found {} in '{}'", head_dim, width,
                    files.folder());
  config.heads = width / head_dim;
  config.head_dim = head_dim;
  config.layers = shapes.stated_or(beside, "num_layers", shapes.blocks("transformer_blocks."), kMostBlocks);
  config.patch_size = {shapes.size(patch, 5, 2), shapes.size(patch, 5, 3), shapes.size(patch, 5, 4)};
  config.in_channels = shapes.size(patch, 5, 1);
  const int64_t patch_values = config.patch_size[0] * config.patch_size[1] * config.patch_size[2];
  config.out_channels = shapes.size("proj_out.weight", 2, 0) / std::max<int64_t>(1, patch_values);
  config.text_dim = shapes.size("context_embedder.proj_in.weight", 2, 1);
  HunyuanConfig& hunyuan = hunyuan_of(config);
  hunyuan.ffn_dim = shapes.size("transformer_blocks.0.ff.net.0.proj.weight", 2, 0);
  hunyuan.refiner_layers = shapes.stated_or(
      beside, "num_refiner_layers", shapes.blocks("context_embedder.token_refiner.refiner_blocks."), kMostBlocks);
  read_rope(beside, hunyuan);
  if (is_hunyuan_15(config)) {
    hunyuan.glyph_dim = shapes.size("context_embedder_2.norm.weight", 1, 0);
    hunyuan.glyph_hidden_dim = shapes.size("context_embedder_2.linear_1.weight", 2, 0);
    config.image_dim = shapes.size("image_embedder.norm_in.weight", 1, 0);
    hunyuan.meanflow = shapes.has_any("time_embed.timestep_embedder_r.");
    VMOBA_CHECK_INPUT(config.in_channels == 2 * config.out_channels + 1,
                      "expected a HunyuanVideo 1.5 transformer of {} input channels (noisy, condition, mask) in '{}', "
                      "found {}; those of super-resolution are not read",
                      2 * config.out_channels + 1, files.folder(), config.in_channels);
    return;
  }
  config.image_dim = 0;
  hunyuan.single_layers =
      shapes.stated_or(beside, "num_single_layers", shapes.blocks("single_transformer_blocks."), kMostBlocks);
  hunyuan.pooled_dim = shapes.size(pooled, 2, 1);
  hunyuan.guidance_embed = shapes.has_any("time_text_embed.guidance_embedder.");
  read_image_condition(beside, config, hunyuan);
}

std::string hunyuan_config_json(const ModelConfig& config) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  json out = shared_config(config);
  if (is_hunyuan_15(config)) {
    out.update({{"_class_name", "HunyuanVideo15Transformer3DModel"},
                {"image_embed_dim", config.image_dim},
                {"task_type", config.task == "t2v" ? "t2v" : "i2v"},
                {"text_embed_2_dim", hunyuan.glyph_dim},
                {"use_meanflow", hunyuan.meanflow}});
    return out.dump(2) + "\n";
  }
  const std::string& condition = hunyuan.image_condition;
  out.update({{"_class_name", "HunyuanVideoTransformer3DModel"},
              {"guidance_embeds", hunyuan.guidance_embed},
              {"image_condition_type", condition == "none"      ? json()
                                       : condition == "replace" ? json("token_replace")
                                                                : json("latent_concat")},
              {"num_single_layers", hunyuan.single_layers},
              {"pooled_projection_dim", hunyuan.pooled_dim}});
  return out.dump(2) + "\n";
}

std::string hunyuan_original_config_json(const ModelConfig& config) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  const bool first = !is_hunyuan_15(config);
  json out = {{"_class_name", first ? "HYVideoDiffusionTransformer" : "HunyuanVideo_1_5_DiffusionTransformer"},
              {"guidance_embed", hunyuan.guidance_embed},
              {"heads_num", config.heads},
              {"hidden_size", config.heads * config.head_dim},
              {"in_channels", first ? config.in_channels : config.out_channels},
              {"mlp_width_ratio", double(hunyuan.ffn_dim) / double(config.heads * config.head_dim)},
              {"mm_double_blocks_depth", config.layers},
              {"mm_single_blocks_depth", hunyuan.single_layers},
              {"out_channels", config.out_channels},
              {"patch_size", config.patch_size},
              {"rope_dim_list", hunyuan.rope_axes},
              {"rope_theta", hunyuan.rope_theta},
              {"text_states_dim", config.text_dim}};
  if (!first) out.update({{"concat_condition", true}, {"use_meanflow", hunyuan.meanflow}});
  return out.dump(2) + "\n";
}

}  // namespace vmoba::model
