// Which naming layout a weight file uses. Parameters here carry diffusers' names; a layout that can be renamed to
// them gets its map in this file.
#pragma once
#include <string>
#include <vector>

namespace vmoba::model {

enum class WeightLayout {
  kDiffusers,    // blocks.0.attn1.to_q.weight
  kWanOriginal,  // blocks.0.self_attn.q.weight
  kComfyUi,      // model.diffusion_model.blocks.0.self_attn.q.weight
  kLora,         // ...lora_A.weight, ...lora_down.weight
};

WeightLayout detect_layout(const std::vector<std::string>& names);
const char* layout_name(WeightLayout layout);

}  // namespace vmoba::model
