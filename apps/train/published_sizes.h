// Sizes of Wan's published transformers (their config.json on Hugging Face), by the name of the repository in the path
// of weights that are not there yet: `vmoba-train --dry-run` forecasts a run before its download.
#pragma once
#include <string>

#include "model/dit.h"

namespace vmoba::apps {

// Fills in what config.missing_weights would state and forgets that it is missing. Returns the model's name, or ""
// where the path holds none that is known.
std::string take_published_sizes(model::ModelConfig& config);

}  // namespace vmoba::apps
