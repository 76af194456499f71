// Sizes of published transformers (their config.json on Hugging Face) whose weights are not there yet: Wan's by the name
// of the repository in the path, HunyuanVideo's by model.architecture. `vmoba-train --dry-run` forecasts a run before its
// download.
#pragma once
#include <string>

#include "model/dit.h"

namespace vmoba::apps {

// Fills in what config.missing_weights would state and forgets that it is missing. Returns whose sizes they are, in
// words, or "" where they are not known.
std::string take_published_sizes(model::ModelConfig& config);

}  // namespace vmoba::apps
