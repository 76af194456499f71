// Sizes of published transformers (their config.json on Hugging Face) whose weights are not there: Wan's by a name,
// HunyuanVideo's by model.architecture. `vmoba-train --dry-run` forecasts a run before its download, `vmoba-bench step`
// times one with random weights.
#pragma once
#include <string>
#include <vector>

#include "model/dit.h"

namespace vmoba::apps {

// Fills in what config.missing_weights would state and forgets that it is missing. Returns whose sizes they are, in
// words, or "" where they are not known.
std::string take_published_sizes(model::ModelConfig& config);

// Names of text-to-video transformers: "1.3b", "5b" and "14b" are Wan's, others those of their architecture.
std::vector<std::string> published_names();
// `name` is one of them.
void set_published_sizes(const std::string& name, model::ModelConfig& config);

}  // namespace vmoba::apps
