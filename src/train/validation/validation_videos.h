// Videos made from prompts while training stands still: with the averaged weights where there are any.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "model/codec.h"
#include "model/image_encoder.h"
#include "model/text_encoder.h"
#include "train/expert.h"
#include "train/report/callback.h"

namespace vmoba::train {

// Borrowed. `image` is null for models without image tokens.
struct ValidationParts {
  const RootConfig& config;
  const data::ClipPlan& plan;
  const std::vector<Expert>& experts;
  const model::Codec& codec;
  const model::TextEncoder& text;
  const model::ImageEncoder* image;
  at::Device device;
  // Told what is done, between steps of sampling; what it throws ends the validation. May be empty.
  std::function<void(const std::string& what)> on_sampling = {};
};

// One video for each of sample.prompts, or for the first two captions; written below run.dir/samples where `write`.
// The weights are as before when it returns or throws. Collective over ranks that hold the model together.
std::vector<ValidationVideo> make_validation_videos(const ValidationParts& parts, int64_t step, bool write);

}  // namespace vmoba::train
