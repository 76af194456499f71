#include "model/weights/pretrained.h"

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/file.h"
#include "model/weight_shards.h"
#include "model/weights/fp8.h"
#include "model/weights/tensor_mismatch.h"
#include "model/weights/transformer_config.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Keys that both have must have equal values; keys that begin with '_' are bookkeeping.
void check_config(const fs::path& folder, const std::string& config_json) {
  const fs::path file = folder / "config.json";
  if (!fs::exists(file)) return;
  const json found = read_transformer_config(file.string());
  const json expected = json::parse(config_json);
  for (const auto& [key, value] : expected.items()) {
    if (key.starts_with('_') || !found.contains(key) || found[key] == value) continue;
    throw_input(
        "expected {} {} as the model: group of the configuration says, found {} in '{}'; make the group agree "
        "with the weights",
        key, value.dump(), found[key].dump(), file.string());
  }
}

void check_tensors(const std::string& path, const WeightFiles& files, const std::vector<ParameterSpec>& specs) {
  TensorMismatch mismatch;
  std::set<std::string> known;
  for (const ParameterSpec& spec : specs) {
    known.insert(spec.name);
    const auto found = files.entries().find(spec.name);
    if (found == files.entries().end()) {
      const auto original = diffusers_to_original(spec.name);
      mismatch.missing.push_back(files.layout() == WeightLayout::kDiffusers ? spec.name : original.value_or(spec.name));
      continue;
    }
    mismatch.compare(found->second.stored_name, spec.shape, files.info(spec.name));
  }
  for (const auto& [name, entry] : files.entries()) {
    if (!known.contains(name)) mismatch.unknown.push_back(entry.stored_name);
  }
  VMOBA_CHECK_INPUT(mismatch.none(),
                    "expected '{}' ({} layout) to hold the {} tensors of the configured model, found {}; make the "
                    "model: group agree with the weights",
                    path, layout_name(files.layout()), specs.size(), mismatch.text());
}

WeightFiles open_checked(const std::string& path, const std::vector<ParameterSpec>& specs,
                         const std::string& config_json) {
  WeightFiles files(path);
  check_config(files.folder(), config_json);
  check_tensors(path, files, specs);
  return files;
}

bool is_fp8(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn || dtype == at::kFloat8_e5m2;
}

Parameter load_one(const WeightFiles& files, const ParameterSpec& spec, at::ScalarType dtype, at::Device device) {
  if (!is_fp8(dtype)) return {spec.name, files.read(spec.name, dtype, device)};
  if (is_fp8(files.info(spec.name).dtype)) {
    WeightFiles::Scaled stored = files.read_stored(spec.name, device);
    return {spec.name, std::move(stored.tensor), std::move(stored.scale)};
  }
  auto [quantised, scale] = quantise_fp8(files.read(spec.name, at::kFloat, at::kCPU));
  return {spec.name, quantised.to(device), scale.to(device)};
}

Parameter draw_one(const ParameterSpec& spec, at::ScalarType dtype, uint64_t seed, at::Device device) {
  const at::Tensor drawn = draw_parameter(spec, seed, device).detach();
  if (!is_fp8(dtype)) return {spec.name, drawn.to(dtype)};
  auto [quantised, scale] = quantise_fp8(drawn);
  return {spec.name, std::move(quantised), std::move(scale)};
}

// As the model holds it: cut to this rank's part; fp32 values can be trained.
Parameter kept(Parameter parameter, WeightShards* shards) {
  if (shards != nullptr) {
    parameter.whole_shape = parameter.tensor.sizes().vec();
    parameter.tensor = shards->own_part(parameter.tensor);
  }
  if (parameter.tensor.scalar_type() == at::kFloat) parameter.tensor.requires_grad_(true);
  return parameter;
}

}  // namespace

at::ScalarType kept_dtype(const ParameterSpec& spec, const std::string& weights_dtype) {
  // Matrices alone are worth shrinking.
  const bool matrix = spec.shape.size() >= 2 && spec.name.ends_with(".weight");
  if (!matrix || weights_dtype == "fp32") return at::kFloat;
  const bool of_block = spec.shape.size() == 2 && spec.name.starts_with("blocks.");
  return weights_dtype == "fp8" && of_block ? at::kFloat8_e4m3fn : at::kBFloat16;
}

void check_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs,
                      const std::string& config_json) {
  open_checked(path, specs, config_json);
}

std::vector<Parameter> load_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs,
                                       const std::string& config_json, at::Device device,
                                       const std::string& weights_dtype, WeightShards* shards) {
  const WeightFiles files = open_checked(path, specs, config_json);
  std::vector<Parameter> parameters;
  for (const ParameterSpec& spec : specs)
    parameters.push_back(kept(load_one(files, spec, kept_dtype(spec, weights_dtype), device), shards));
  return parameters;
}

std::vector<Parameter> make_parameters(const ModelConfig& config, const std::vector<ParameterSpec>& specs,
                                       const std::string& config_json, uint64_t seed, at::Device device,
                                       WeightShards* shards) {
  if (!config.weights.empty())
    return load_pretrained(config.weights, specs, config_json, device, config.weights_dtype, shards);
  std::vector<Parameter> parameters;
  for (const ParameterSpec& spec : specs)
    parameters.push_back(kept(draw_one(spec, kept_dtype(spec, config.weights_dtype), seed, device), shards));
  return parameters;
}

}  // namespace vmoba::model
