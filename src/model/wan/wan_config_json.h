// A Wan transformer's config.json, diffusers' (WanTransformer3DModel) and the original repositories' (WanModel), in and
// out, and the sizes that weight files state. See model/architecture.h for the contracts.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>

#include "model/dit.h"

namespace vmoba::model {

class WeightFiles;

nlohmann::json wan_diffusers_config(const nlohmann::json& found, const std::string& path);

void read_wan_sizes(const WeightFiles& files, const nlohmann::json& beside, const std::set<std::string>& given,
                    ModelConfig& config);

std::string wan_config_json(const ModelConfig& config);
std::string wan_original_config_json(const ModelConfig& config);

}  // namespace vmoba::model
