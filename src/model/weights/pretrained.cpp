#include "model/weights/pretrained.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/json.h"
#include "core/log.h"
#include "model/weight_store.h"
#include "model/weights/fp8.h"
#include "model/weights/tensor_mismatch.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr const char* kPacked = "packed";  // of model.weights_dtype

std::string config_path(const std::string& folder) {
  return (fs::path(folder) / "config.json").string();
}

// Keys that both have must have equal values; keys that begin with '_' are bookkeeping.
void check_config(const std::string& folder, const ModelConfig& config) {
  const Architecture& architecture = architecture_of(config);
  const json found = config_beside(folder, architecture);
  const json expected = parse_json(architecture.config_json(config), "the configured model");
  for (const auto& [key, value] : expected.items()) {
    if (key.starts_with('_') || !found.contains(key) || found[key] == value) continue;
    throw_input(
        "expected {} {} as the model: group of the configuration says, found {} in '{}'; make the group agree "
        "with the weights",
        key, json_text(value), json_text(found[key]), config_path(folder));
  }
}

// All tensors that files of the model may hold: also what no layer of the configured attention learns.
std::vector<ParameterSpec> specs_of_files(ModelConfig config) {
  config.learnt.assign(size_t(layer_count(config)), attention::all_learnt_parameters(config.heads, config.head_dim));
  return architecture_of(config).parameters(config);
}

// Files of a run whose attention learnt something may be used under another one.
void log_left_out(const WeightFiles& files, const std::vector<ParameterSpec>& specs, const ModelConfig& config) {
  std::set<std::string> used;
  for (const ParameterSpec& spec : specs) used.insert(spec.name);
  const auto all = specs_of_files(config);
  const auto left_out = std::count_if(all.begin(), all.end(), [&](const ParameterSpec& spec) {
    return files.entries().contains(spec.name) && !used.contains(spec.name);
  });
  if (left_out > 0)
    log_info(
        "weights: {} tensors that the attention of another run learnt are left out; attention: says what is learnt",
        left_out);
}

}  // namespace

void check_tensors(const ModelConfig& config, const WeightFiles& files, const std::string& path,
                   const std::string& cure) {
  const std::vector<ParameterSpec> specs = specs_of_files(config);
  TensorMismatch mismatch;
  std::set<std::string> known;
  for (const ParameterSpec& spec : specs) {
    known.insert(spec.name);
    const auto found = files.entries().find(spec.name);
    if (found != files.entries().end())
      mismatch.compare(found->second.stored_name, spec.shape, files.info(spec.name));
    else if (!spec.optional)
      mismatch.missing.push_back(files.layout().from_diffusers(spec.name).value_or(spec.name));
  }
  for (const auto& [name, entry] : files.entries()) {
    if (!known.contains(name)) mismatch.unknown.push_back(entry.stored_name);
  }
  VMOBA_CHECK_INPUT(
      mismatch.none(), "expected '{}' ({} layout) to hold the {} tensors of the configured model, found {}; {}", path,
      files.layout().title, std::count_if(specs.begin(), specs.end(), [](const auto& s) { return !s.optional; }),
      mismatch.text(), cure);
}

namespace {

void check_packed(const ModelConfig& config, const WeightFiles& files) {
  const auto packed = [](const auto& entry) { return entry.second.info.packing.has_value(); };
  VMOBA_CHECK_INPUT(
      config.weights_dtype != kPacked || std::any_of(files.entries().begin(), files.entries().end(), packed),
      "model.weights_dtype packed: expected a GGUF file with packed matrices, found '{}' without; set "
      "model.weights_dtype=fp8 or bf16",
      config.weights);
}

WeightFiles open_checked(const ModelConfig& config) {
  WeightFiles files(config.weights, architecture_of(config).layouts);
  check_config(files.folder(), config);
  check_tensors(config, files, config.weights, "make the model: group agree with the weights");
  check_packed(config, files);
  return files;
}

bool stays_packed(const WeightFiles& files, const ParameterSpec& spec, const ModelConfig& config) {
  return config.weights_dtype == kPacked && files.info(spec.name).packing &&
         !block_of(architecture_of(config), spec.name).empty();
}

bool is_fp8(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn || dtype == at::kFloat8_e5m2;
}

Parameter load_one(const WeightFiles& files, const ParameterSpec& spec, const ModelConfig& config, at::Device device) {
  if (stays_packed(files, spec, config)) {
    WeightFiles::Stored stored = files.read_stored(spec.name, device);
    return {spec.name, std::move(stored.tensor), {}, spec.shape, stored.packing};
  }
  const at::ScalarType dtype = kept_dtype(spec, config);
  if (!is_fp8(dtype)) return {spec.name, files.read(spec.name, dtype, device)};
  if (is_fp8(files.info(spec.name).dtype)) {
    WeightFiles::Stored stored = files.read_stored(spec.name, device);
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

// As the model holds it; all but fp8 and packed values can be trained.
Parameter kept(Parameter parameter, const ParameterSpec& spec, WeightStore* store) {
  parameter.optional = spec.optional;
  if (store != nullptr) {
    parameter.whole_shape = parameter.shape().vec();
    parameter.tensor = store->keep(parameter.tensor);
  }
  if (!parameter.packing && !is_fp8(parameter.tensor.scalar_type())) parameter.tensor.requires_grad_(true);
  return parameter;
}

}  // namespace

at::ScalarType kept_dtype(const ParameterSpec& spec, const ModelConfig& config) {
  // Matrices alone are worth shrinking.
  const bool matrix = spec.shape.size() >= 2 && spec.name.ends_with(".weight");
  if (!matrix || config.weights_dtype == "fp32") return at::kFloat;
  const bool of_block = spec.shape.size() == 2 && !block_of(architecture_of(config), spec.name).empty();
  return config.weights_dtype == "fp8" && of_block ? at::kFloat8_e4m3fn : at::kBFloat16;
}

json config_beside(const std::string& folder, const Architecture& architecture) {
  const std::string path = config_path(folder);
  if (!fs::exists(path)) return json::object();
  const json found = read_json(path, kMaxConfigBytes, "a model configuration");
  VMOBA_CHECK_INPUT(found.is_object(),
                    "expected a model configuration at '{}' to be a JSON object, found something else", path);
  return architecture.diffusers_config(found, path);
}

void check_pretrained(const ModelConfig& config) {
  open_checked(config);
}

std::map<std::string, Packing> packed_parameters(const ModelConfig& config) {
  std::map<std::string, Packing> out;
  if (config.weights_dtype != kPacked || !fs::exists(config.weights)) return out;
  const WeightFiles files(config.weights, architecture_of(config).layouts);
  for (const ParameterSpec& spec : architecture_of(config).parameters(config))
    if (files.entries().contains(spec.name) && stays_packed(files, spec, config))
      out.emplace(spec.name, *files.info(spec.name).packing);
  return out;
}

std::vector<Parameter> make_parameters(const ModelConfig& config, uint64_t seed, at::Device device,
                                       WeightStore* store) {
  std::vector<Parameter> parameters;
  const std::vector<ParameterSpec> specs = architecture_of(config).parameters(config);
  if (config.weights.empty()) {
    VMOBA_CHECK_INPUT(config.weights_dtype != kPacked,
                      "model.weights_dtype packed: expected a GGUF file as model.weights, found none; set both, or "
                      "model.weights_dtype=fp8");
    for (const ParameterSpec& spec : specs)
      parameters.push_back(kept(draw_one(spec, kept_dtype(spec, config), seed, device), spec, store));
    return parameters;
  }
  const WeightFiles files = open_checked(config);
  log_left_out(files, specs, config);
  for (const ParameterSpec& spec : specs) {
    const bool stored = files.entries().contains(spec.name);
    parameters.push_back(
        kept(stored ? load_one(files, spec, config, device) : draw_one(spec, kept_dtype(spec, config), seed, device),
             spec, store));
  }
  return parameters;
}

}  // namespace vmoba::model
