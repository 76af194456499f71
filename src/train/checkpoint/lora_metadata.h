// What a LoRA file says of itself under the keys that other tools show: ss_* of kohya's sd-scripts and musubi-tuner,
// modelspec.* of the Stability model metadata standard. A function of configuration, clips and step alone, so that a
// resumed run writes the same bytes.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "config/epochs.h"
#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba::train {

std::map<std::string, std::string> lora_metadata(const RootConfig& config, const data::ClipPlan& training,
                                                 const Epochs& epochs, int64_t step);

}  // namespace vmoba::train
