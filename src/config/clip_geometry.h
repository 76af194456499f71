// What the configured codec, model and text encoder ask of each other and of the clips.
#pragma once
#include <cstdint>

#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba {

// What clips the configured codec and model take.
data::ClipGeometry clip_geometry(const RootConfig& config);

// Throws Error(kInput) where the configured codec and model cannot make videos of sample.frames, height and width.
void check_sampling(const RootConfig& config);

// Throws Error(kInput) where embeddings of this width do not fit the model.
void check_text_width(const RootConfig& config, int64_t width);

}  // namespace vmoba
