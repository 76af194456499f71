// The parameters of a model: from pretrained weights in any layout of weight_files.h, or drawn from a seed; kept in the
// types that the configuration asks for.
#pragma once
#include <string>
#include <vector>

#include "model/common/parameters.h"
#include "model/dit.h"

namespace vmoba::model {

// What a parameter is kept in: fp32, or where `weights_dtype` (ModelConfig's) is bf16 or fp8, bf16 for matrices and fp8
// for those of the blocks.
at::ScalarType kept_dtype(const ParameterSpec& spec, const std::string& weights_dtype);

// Reads headers only. Throws Error(kInput) naming missing, extra and misshapen tensors. `config_json` is what the
// model's own config.json would say; a config.json beside the weights must agree with it.
void check_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs, const std::string& config_json);

// Checks, then loads: leaf tensors on `device` in the order of `specs`, each copied once, straight to its
// kept_dtype. fp32 ones require grad.
std::vector<Parameter> load_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs,
                                       const std::string& config_json, at::Device device,
                                       const std::string& weights_dtype = "fp32", WeightShards* shards = nullptr);

// The same of config.weights, or random values from `seed` where it is empty. With `shards` (may be null), this rank's
// parts: one whole parameter exists at a time.
std::vector<Parameter> make_parameters(const ModelConfig& config, const std::vector<ParameterSpec>& specs,
                                       const std::string& config_json, uint64_t seed, at::Device device,
                                       WeightShards* shards = nullptr);

}  // namespace vmoba::model
