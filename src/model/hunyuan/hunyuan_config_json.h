// config.json of a HunyuanVideo transformer, diffusers' (HunyuanVideoTransformer3DModel,
// HunyuanVideo15Transformer3DModel) and the original repositories', in and out, and the sizes that weight files state.
// See model/architecture.h for the contracts.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>

#include "model/dit.h"

namespace vmoba::model {

class WeightFiles;

nlohmann::json hunyuan_diffusers_config(const nlohmann::json& found, const std::string& path);

void read_hunyuan_sizes(const WeightFiles& files, const nlohmann::json& beside, const std::set<std::string>& given,
                        ModelConfig& config);

std::string hunyuan_config_json(const ModelConfig& config);
std::string hunyuan_original_config_json(const ModelConfig& config);

}  // namespace vmoba::model
