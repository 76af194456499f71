#include "model/wan/wan_architecture.h"

#include <nlohmann/json.hpp>

#include "model/wan/wan_config.h"
#include "model/wan/wan_config_json.h"
#include "model/wan/wan_dit.h"
#include "model/wan/wan_names.h"
#include "model/wan/wan_parameters.h"
#include "model/wan/wan_work.h"

namespace vmoba::model {

Architecture wan_architecture() {
  return {
      .visit = visit_wan,
      .validate = validate_wan,
      .negative_prompt = wan_negative_prompt,
      .sampling = [](const ModelConfig&) { return PublishedSampling(); },
      .layers = [](const ModelConfig& config) { return config.layers; },
      .takes_guidance = [](const ModelConfig&) { return false; },
      .takes_next_timestep = [](const ModelConfig&) { return false; },
      .image_input = wan_image_input,
      .parameters = wan_parameter_specs,
      .blocks = {"blocks."},
      .published_weights =
          "the folder transformer/ of a Wan-AI/Wan2.1-...-Diffusers or Wan-AI/Wan2.2-...-Diffusers "
          "repository on Hugging Face (for example Wan-AI/Wan2.1-T2V-1.3B-Diffusers)",
      .layouts = wan_layouts(),
      .lora = wan_lora_names(),
      .sizes = {"layers", "heads", "head_dim", "in_channels", "out_channels", "text_dim", "image_dim", "patch_size",
                "ffn_dim", "freq_dim", "image_pos_tokens", "cross_attn_norm"},
      .read_sizes = read_wan_sizes,
      .diffusers_config = wan_diffusers_config,
      .config_json = wan_config_json,
      .original_config_json = wan_original_config_json,
      .forward_work = wan_forward_work,
      .activations = wan_activations,
      .make = make_wan_dit,
  };
}

}  // namespace vmoba::model
