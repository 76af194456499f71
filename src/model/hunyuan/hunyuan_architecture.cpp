#include "model/hunyuan/hunyuan_architecture.h"

#include <nlohmann/json.hpp>

#include "model/hunyuan/hunyuan_config.h"
#include "model/hunyuan/hunyuan_config_json.h"
#include "model/hunyuan/hunyuan_dit.h"
#include "model/hunyuan/hunyuan_names.h"
#include "model/hunyuan/hunyuan_parameters.h"
#include "model/hunyuan/hunyuan_work.h"

namespace vmoba::model {
namespace {

// What both have.
Architecture shared_row() {
  Architecture out;
  out.validate = validate_hunyuan;
  out.negative_prompt = [](const ModelConfig&) { return std::string(); };
  out.layers = [](const ModelConfig& config) { return config.layers + hunyuan_of(config).single_layers; };
  out.takes_guidance = [](const ModelConfig& config) { return hunyuan_of(config).guidance_embed; };
  out.takes_next_timestep = [](const ModelConfig& config) { return hunyuan_of(config).meanflow; };
  out.image_input = hunyuan_image_input;
  out.parameters = hunyuan_parameter_specs;
  out.sizes = {"layers",     "heads",   "head_dim",       "in_channels", "out_channels", "text_dim",
               "patch_size", "ffn_dim", "refiner_layers", "rope_theta",  "rope_axes"};
  out.read_sizes = read_hunyuan_sizes;
  out.diffusers_config = hunyuan_diffusers_config;
  out.config_json = hunyuan_config_json;
  out.original_config_json = hunyuan_original_config_json;
  out.forward_work = hunyuan_forward_work;
  out.activations = hunyuan_activations;
  out.make = make_hunyuan_dit;
  return out;
}

PublishedSampling sampling_of_first(const ModelConfig&) {
  return {.guidance = 1, .shift = 7, .fps = 24, .scheduler = "even_euler"};
}

// Of the weights for 480p.
PublishedSampling sampling_of_15(const ModelConfig& config) {
  if (hunyuan_of(config).meanflow)
    return {.steps = 12, .guidance = 1, .shift = 7, .fps = 24, .scheduler = "even_euler"};
  return {.guidance = 6, .shift = 5, .fps = 24, .scheduler = "even_euler"};
}

void add_sizes(Architecture& row, const std::vector<std::string>& keys) {
  row.sizes.insert(row.sizes.end(), keys.begin(), keys.end());
}

}  // namespace

Architecture hunyuan_architecture() {
  Architecture out = shared_row();
  out.visit = visit_hunyuan;
  out.sampling = sampling_of_first;
  out.blocks = {"transformer_blocks.", "single_transformer_blocks."};
  out.published_weights =
      "the folder transformer/ of hunyuanvideo-community/HunyuanVideo (or -I2V) on Hugging Face, or ComfyUI's single "
      "file of it";
  out.layouts = hunyuan_layouts();
  out.lora = hunyuan_lora_names();
  add_sizes(out, {"single_layers", "pooled_dim", "guidance_embed", "image_condition"});
  return out;
}

Architecture hunyuan_15_architecture() {
  Architecture out = shared_row();
  out.visit = visit_hunyuan_15;
  out.sampling = sampling_of_15;
  out.blocks = {"transformer_blocks."};
  out.published_weights =
      "the folder transformer/ of a hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-... repository on Hugging Face, "
      "or a folder transformer/<version>/ of tencent/HunyuanVideo-1.5";
  out.layouts = hunyuan_15_layouts();
  out.lora = hunyuan_15_lora_names();
  add_sizes(out, {"image_dim", "glyph_dim", "glyph_hidden_dim", "meanflow"});
  return out;
}

}  // namespace vmoba::model
