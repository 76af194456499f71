// The names of HunyuanVideo's tensors in the layouts that people have: diffusers', the original repositories', and
// ComfyUI's, which renames modules behind a prefix. See diffusers' scripts/convert_hunyuan_video_to_diffusers.py and
// convert_hunyuan_video1_5_to_diffusers.py, and ComfyUI's supported_models.py.
#pragma once
#include <vector>

#include "model/architecture.h"

namespace vmoba::model {

std::vector<Layout> hunyuan_layouts();
LoraNames hunyuan_lora_names();
std::vector<Layout> hunyuan_15_layouts();
LoraNames hunyuan_15_lora_names();

}  // namespace vmoba::model
