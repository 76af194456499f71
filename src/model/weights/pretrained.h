// Loads a model's parameters from a diffusers folder (one file or an index of shards, also one level up, where the
// transformer/ folder lies) or from a single safetensors file.
#pragma once
#include <string>
#include <vector>

#include "model/common/parameters.h"
#include "model/dit.h"

namespace vmoba::model {

// Reads headers only. Throws Error(kInput) naming missing, extra and misshapen tensors. `config_json` is what the
// model's own config.json would say; a config.json beside the weights must agree with it.
void check_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs, const std::string& config_json);

// Checks, then loads: fp32 leaf tensors on `device`, in the order of `specs`, whatever floating-point type the file has.
std::vector<Parameter> load_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs,
                                       const std::string& config_json, at::Device device);

}  // namespace vmoba::model
