// The parameters of a model: from pretrained weights in any layout of its architecture, or drawn from a seed; kept in
// the types that the configuration asks for.
#pragma once
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "model/common/parameters.h"
#include "model/dit.h"

namespace vmoba::model {

// What a parameter is kept in: fp32, or where config.weights_dtype is bf16 or fp8, bf16 for matrices and fp8 for those
// of the blocks.
at::ScalarType kept_dtype(const ParameterSpec& spec, const ModelConfig& config);

// The config.json in `folder`, in diffusers' keys whichever it has; {} without one. Throws Error(kInput).
nlohmann::json config_beside(const std::string& folder, const Architecture& architecture);

// Throws Error(kInput) naming tensors of the configured model that `files`, at `path`, lack, have in another shape, or
// have too many; `cure` ends the message.
void check_tensors(const ModelConfig& config, const WeightFiles& files, const std::string& path,
                   const std::string& cure);

// Reads headers of config.weights only. Throws Error(kInput) naming missing, extra and misshapen tensors, and keys in
// which a config.json beside the weights disagrees with the configuration.
void check_pretrained(const ModelConfig& config);

// What of config.weights stays packed in memory (model.weights_dtype packed), read from the files' headers; nothing
// where they are missing.
std::map<std::string, Packing> packed_parameters(const ModelConfig& config);

// Checks, then loads config.weights: leaf tensors on `device` in the architecture's order, each copied once, straight
// to its kept_dtype; fp32 ones require grad. Random values from `seed` where config.weights is empty. With `store`
// (may be null), this rank's parts: one whole parameter exists at a time.
std::vector<Parameter> make_parameters(const ModelConfig& config, uint64_t seed, at::Device device,
                                       WeightStore* store = nullptr);

}  // namespace vmoba::model
