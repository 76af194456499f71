// A transformer's config.json: diffusers' (WanTransformer3DModel), the original repositories' (WanModel), and what the
// tensors themselves tell.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "model/weights/weight_files.h"

namespace vmoba::model {

// Diffusers' keys, whichever of the two the file has; keys that the file does not settle are absent.
nlohmann::json read_transformer_config(const std::string& path);

// Diffusers' config.json of a Wan transformer: from a config.json beside the weights, completed by the tensors' shapes.
// `head_dim` 0: what that file says, else 128, as every published Wan has. Throws Error(kInput) where the shapes are
// not those of a Wan transformer.
nlohmann::json transformer_config_of(const WeightFiles& files, int64_t head_dim);

// The original repository's config.json from diffusers'.
nlohmann::json original_config(const nlohmann::json& diffusers);

}  // namespace vmoba::model
