#include "model/weights/pretrained.h"

#include <ATen/core/Tensor.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/file.h"
#include "model/weights/name_map.h"
#include "model/weights/safetensors.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kSingleFile = "diffusion_pytorch_model.safetensors";
constexpr const char* kIndexFile = "diffusion_pytorch_model.safetensors.index.json";
constexpr int64_t kMaxJsonBytes = 64 << 20;

json read_json(const fs::path& path, const std::string& what) {
  json parsed = json::parse(read_file(path.string(), kMaxJsonBytes, what), nullptr, /*allow_exceptions=*/false);
  VMOBA_CHECK_INPUT(parsed.is_object(), "expected {} at '{}' to be a JSON object, found something else", what,
                    path.string());
  return parsed;
}

// The shards that an index names, each once.
std::vector<fs::path> shard_files(const fs::path& index) {
  const json parsed = read_json(index, "an index of weight files");
  const auto map = parsed.find("weight_map");
  VMOBA_CHECK_INPUT(map != parsed.end() && map->is_object() && !map->empty(),
                    "expected a 'weight_map' of names to files in '{}', found none", index.string());
  std::set<std::string> names;
  for (const auto& [name, file] : map->items()) {
    VMOBA_CHECK_INPUT(file.is_string() && fs::path(file.get<std::string>()).filename() == file.get<std::string>(),
                      "expected a file name for '{}' in '{}', found {}", name, index.string(), file.dump());
    names.insert(file.get<std::string>());
  }
  std::vector<fs::path> files;
  for (const std::string& name : names) files.push_back(index.parent_path() / name);
  return files;
}

std::vector<fs::path> weight_files(const fs::path& path) {
  VMOBA_CHECK_INPUT(fs::exists(path), "expected pretrained weights at '{}' (model.weights), found nothing",
                    path.string());
  if (!fs::is_directory(path)) return {path};
  for (const fs::path& folder : {path, path / "transformer"}) {
    if (fs::exists(folder / kIndexFile)) return shard_files(folder / kIndexFile);
    if (fs::exists(folder / kSingleFile)) return {folder / kSingleFile};
  }
  throw_input("expected {} or {} in '{}' or its transformer/ folder (model.weights), found neither", kSingleFile,
              kIndexFile, path.string());
}

// Keys that both have must have equal values; keys that begin with '_' are bookkeeping.
void check_config(const fs::path& folder, const std::string& config_json) {
  const fs::path file = folder / "config.json";
  if (!fs::exists(file)) return;
  const json found = read_json(file, "a model configuration");
  const json expected = json::parse(config_json);
  for (const auto& [key, value] : expected.items()) {
    if (key.starts_with('_') || !found.contains(key) || found[key] == value) continue;
    throw_input(
        "expected {} {} as the model: group of the configuration says, found {} in '{}'; make the group agree "
        "with the weights",
        key, value.dump(), found[key].dump(), file.string());
  }
}

std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  const std::vector<std::string> shown(names.begin(), names.begin() + ptrdiff_t(std::min(kShown, names.size())));
  return fmt::format("{} ({}{})", names.size(), fmt::join(shown, ", "), names.size() > kShown ? ", ..." : "");
}

struct Shards {
  std::vector<SafetensorsFile> files;
  std::map<std::string, size_t> file_of;  // by tensor name
};

Shards open_shards(const std::string& path) {
  Shards shards;
  for (const fs::path& file : weight_files(path)) {
    shards.files.emplace_back(file.string());
    for (const auto& [name, info] : shards.files.back().tensors()) {
      VMOBA_CHECK_INPUT(shards.file_of.emplace(name, shards.files.size() - 1).second,
                        "expected each tensor once in the files of '{}', found '{}' twice", path, name);
    }
  }
  std::vector<std::string> names;
  for (const auto& [name, file] : shards.file_of) names.push_back(name);
  const WeightLayout layout = detect_layout(names);
  VMOBA_CHECK_INPUT(layout == WeightLayout::kDiffusers,
                    "expected weights in diffusers' names at '{}' (model.weights), found the {} layout; use the "
                    "model's diffusers folder",
                    path, layout_name(layout));
  return shards;
}

void check_tensors(const std::string& path, const Shards& shards, const std::vector<ParameterSpec>& specs) {
  std::vector<std::string> missing, misshapen, extra;
  std::set<std::string> known;
  for (const ParameterSpec& spec : specs) {
    known.insert(spec.name);
    const auto found = shards.file_of.find(spec.name);
    if (found == shards.file_of.end()) {
      missing.push_back(spec.name);
      continue;
    }
    const TensorInfo& info = shards.files[found->second].tensors().at(spec.name);
    if (info.shape != spec.shape || !at::isFloatingType(info.dtype)) {
      misshapen.push_back(fmt::format("{}: expected {}, found {} {}", spec.name, fmt::join(spec.shape, "x"),
                                      c10::toString(info.dtype), fmt::join(info.shape, "x")));
    }
  }
  for (const auto& [name, file] : shards.file_of) {
    if (!known.contains(name)) extra.push_back(name);
  }
  VMOBA_CHECK_INPUT(missing.empty() && misshapen.empty() && extra.empty(),
                    "expected '{}' to hold the {} tensors of the configured model, found missing: {}, of another shape "
                    "or type: {}, unknown: {}; make the model: group agree with the weights",
                    path, specs.size(), some_of(missing), some_of(misshapen), some_of(extra));
}

Shards open_checked(const std::string& path, const std::vector<ParameterSpec>& specs, const std::string& config_json) {
  check_config(weight_files(path).front().parent_path(), config_json);
  Shards shards = open_shards(path);
  check_tensors(path, shards, specs);
  return shards;
}

}  // namespace

void check_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs,
                      const std::string& config_json) {
  open_checked(path, specs, config_json);
}

std::vector<Parameter> load_pretrained(const std::string& path, const std::vector<ParameterSpec>& specs,
                                       const std::string& config_json, at::Device device) {
  const Shards shards = open_checked(path, specs, config_json);
  std::vector<Parameter> parameters;
  for (const ParameterSpec& spec : specs) {
    const at::Tensor mapped = shards.files[shards.file_of.at(spec.name)].tensor(spec.name);
    at::Tensor tensor = mapped.to(mapped.options().dtype(at::kFloat).device(device), /*non_blocking=*/false,
                                  /*copy=*/true);
    parameters.push_back({spec.name, tensor.requires_grad_(true)});
  }
  return parameters;
}

}  // namespace vmoba::model
