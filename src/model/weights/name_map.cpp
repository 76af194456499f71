#include "model/weights/name_map.h"

#include <algorithm>

namespace vmoba::model {

WeightLayout detect_layout(const std::vector<std::string>& names) {
  const auto any = [&](const char* part) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return name.find(part) != std::string::npos; });
  };
  if (any("lora_A") || any("lora_down")) return WeightLayout::kLora;
  if (any("diffusion_model.")) return WeightLayout::kComfyUi;
  if (any(".self_attn.")) return WeightLayout::kWanOriginal;
  return WeightLayout::kDiffusers;
}

const char* layout_name(WeightLayout layout) {
  switch (layout) {
    case WeightLayout::kDiffusers:
      return "diffusers";
    case WeightLayout::kWanOriginal:
      return "original Wan";
    case WeightLayout::kComfyUi:
      return "ComfyUI";
    case WeightLayout::kLora:
      return "LoRA";
  }
  return "";
}

}  // namespace vmoba::model
