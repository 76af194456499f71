#include "model/weights/stated_sizes.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/architecture.h"
#include "model/weights/pretrained.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

bool are_there(const std::string& weights) {
  try {
    find_weight_files(weights);
  } catch (const Error&) {  // check_weights tells the user
    return false;
  }
  return true;
}

std::map<std::string, std::string> values_of(ModelConfig config) {
  return config_values([&](ConfigVisitor& v) { config.visit(v); });
}

}  // namespace

void take_stated_sizes(ModelConfig& config, const std::string& weights, const std::set<std::string>& given) {
  if (weights.empty()) return;
  const Architecture& architecture = architecture_of(config);
  if (!are_there(weights)) {
    const bool written = std::all_of(architecture.sizes.begin(), architecture.sizes.end(),
                                     [&](const std::string& key) { return given.contains(key); });
    config.missing_weights = written ? "" : weights;
    return;
  }
  const std::string found = recognised_architecture(stored_names(weights));
  VMOBA_CHECK_INPUT(found.empty() || found == config.architecture,
                    "model.architecture: expected {}, as '{}' has, found {}; set it to {}, or name other weights",
                    found, weights, config.architecture, found);
  const WeightFiles files(weights, architecture.layouts);
  ModelConfig stated = config;
  architecture.read_sizes(files, config_beside(files.folder(), architecture), given, stated);
  const auto written = values_of(config), stated_values = values_of(stated);
  for (const auto& [key, value] : written) {
    VMOBA_CHECK_INPUT(!given.contains(key) || stated_values.at(key) == value,
                      "model.{}: expected {}, as the weights '{}' state, found {}; leave the key out to take what they "
                      "state, or name the weights that it belongs to",
                      key, stated_values.at(key), weights, value);
  }
  config = std::move(stated);
}

}  // namespace vmoba::model
