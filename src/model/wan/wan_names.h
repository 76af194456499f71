// The names of Wan's tensors in the layouts that people have: diffusers', the original repositories', and ComfyUI's,
// which keeps the original names behind a prefix. See diffusers' scripts/convert_wan_to_diffusers.py and
// Wan-Video/Wan2.1 wan/modules/model.py.
#pragma once
#include <vector>

#include "model/architecture.h"

namespace vmoba::model {

std::vector<Layout> wan_layouts();
LoraNames wan_lora_names();

}  // namespace vmoba::model
