// The names that Wan's tensors carry in the layouts that people have, and an exact map between them. Parameters here
// carry diffusers' names; see diffusers' scripts/convert_wan_to_diffusers.py and Wan-Video/Wan2.1 wan/modules/model.py.
#pragma once
#include <optional>
#include <string>
#include <vector>

namespace vmoba::model {

enum class WeightLayout {
  kDiffusers,  // blocks.0.attn1.to_q.weight
  kOriginal,   // blocks.0.self_attn.q.weight (Wan-AI's own repositories)
  kComfyUi,    // the original names behind model.diffusion_model. or diffusion_model.
  kLora,       // ...lora_A.weight, ...lora_down.weight: no whole model
};

WeightLayout detect_layout(const std::vector<std::string>& names);
const char* layout_name(WeightLayout layout);

// "model.diffusion_model.x" and "diffusion_model.x" -> "x"; other names unchanged.
std::string without_comfyui_prefix(const std::string& name);

// Names of tensors or of modules, with or without ".weight" and the like behind them. Nothing where the layout's Wan
// has no such module.
std::optional<std::string> original_to_diffusers(const std::string& name);
std::optional<std::string> diffusers_to_original(const std::string& name);

// A module's name with '_' for '.', as kohya's files have it ("blocks_0_self_attn_q", "_blocks_0_attn1_to_q"), to
// diffusers' name.
std::optional<std::string> flattened_to_diffusers(const std::string& name);

}  // namespace vmoba::model
