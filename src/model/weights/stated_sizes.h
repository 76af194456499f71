// The sizes of a model out of its weight files, so that nobody types what the file states.
#pragma once
#include <set>
#include <string>

#include "model/dit.h"

namespace vmoba::model {

// Sets the sizes (Architecture::sizes) of `config` to what the headers of the files at `weights`, and a config.json
// beside them, state. `given`: keys of the `model:` group that the user wrote. Throws Error(kInput) with both values
// and the file where one of them contradicts the weights, and where the weights are another architecture's. Where
// `weights` is empty nothing changes; where it is missing and the sizes are not all given, it becomes
// config.missing_weights.
void take_stated_sizes(ModelConfig& config, const std::string& weights, const std::set<std::string>& given);

}  // namespace vmoba::model
