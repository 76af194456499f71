#include "model/adapter/lora_file.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/check.h"
#include "core/file.h"
#include "core/file_kind.h"
#include "core/json.h"
#include "core/log.h"
#include "core/registry.h"
#include "model/adapter/fused_maps.h"
#include "model/adapter/lora_names.h"
#include "model/adapter/peft_settings.h"
#include "model/weights/safetensors.h"
#include "model/weights/save.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr const char* kPeftFile = "adapter_model.safetensors";
constexpr const char* kPeftConfig = "adapter_config.json";

ordered_json parsed_settings(const std::string& text, const std::string& origin) {
  ordered_json parsed = parse_ordered_json(text, origin);
  VMOBA_CHECK_INPUT(parsed.is_object(), "expected a JSON object of settings in {}, found something else", origin);
  return parsed;
}

// diffusers writes them with the pipeline's prefix where the names of the tensors have it, else without.
PeftSettings settings_in_metadata(const std::string& text, bool second, const std::string& path) {
  const std::string origin = fmt::format("lora_adapter_metadata of '{}'", path);
  const ordered_json parsed = parsed_settings(text, origin);
  const std::string prefix = second ? "transformer_2." : "transformer.";
  ordered_json own = ordered_json::object();
  for (const auto& [key, value] : parsed.items())
    if (key.starts_with(prefix)) own[key.substr(prefix.size())] = value;
  if (own.empty() && (parsed.contains("r") || parsed.contains("lora_alpha"))) own = parsed;
  VMOBA_CHECK_INPUT(!own.empty(), "expected settings of '{}' in {}, found none", prefix, origin);
  return {std::move(own), origin};
}

// adapter_config.json belongs to the file that peft writes with it; beside others it says nothing of them.
PeftSettings settings_beside(const std::string& path, bool written_by_peft) {
  const fs::path beside = fs::path(path).parent_path() / kPeftConfig;
  const bool own = fs::path(path).filename() == kPeftFile;
  if (!fs::exists(beside)) {
    if (own || written_by_peft)
      log_warning("'{}': no {} beside it, so the strength of this LoRA is not known; alpha is taken to be the rank",
                  path, kPeftConfig);
    return {};
  }
  VMOBA_CHECK_INPUT(own || !written_by_peft,
                    "expected the name {} for '{}' beside '{}', found another, so that it is not clear whether the "
                    "settings are the file's own; rename the file, or move it to another folder",
                    kPeftFile, path, beside.string());
  if (!own) return {};
  const std::string origin = fmt::format("'{}'", beside.string());
  return {parsed_settings(read_file(beside.string(), kMaxConfigBytes, "an adapter configuration"), origin), origin};
}

std::vector<std::string> safetensors_in(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  return files;
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  const SafetensorsFile file(path);
  for (const auto& [name, info] : file.tensors()) names.push_back(name);
  return names;
}

std::string lora_path(const std::string& path) {
  VMOBA_CHECK_INPUT(fs::exists(path), "expected a LoRA file at '{}', found {}", path, what_is_this(path));
  if (!fs::is_directory(path)) return path;
  const std::vector<std::string> files = safetensors_in(path);
  VMOBA_CHECK_INPUT(files.size() == 1, "expected one safetensors file in the LoRA folder '{}', found {}; name the file",
                    path, files.size());
  return files.front();
}

// What a file has of one module.
struct Parts {
  Held held;
  std::string written;
  std::map<LoraPart, at::Tensor> tensors;  // without alpha
  std::optional<double> alpha;

  at::Tensor take(LoraPart part) const {
    const auto found = tensors.find(part);
    return found == tensors.end() ? at::Tensor() : found->second;
  }
};

struct OpenLora {
  explicit OpenLora(const std::string& given) : path(lora_path(given)), file(path) {}

  std::string path;
  SafetensorsFile file;
  std::map<std::string, LoraKey> keys;  // by the tensor's name
  std::vector<std::string> unknown;
  bool has_first = false, has_second = false, from_peft = false;
};

OpenLora opened(const std::string& path, const Architecture& architecture) {
  OpenLora out(path);
  for (const auto& [name, info] : out.file.tensors()) {
    std::optional<LoraKey> key = parse_lora_key(name, architecture);
    const bool number = at::isFloatingType(info.dtype) ||
                        (key && key->part == LoraPart::kAlpha && at::isIntegralType(info.dtype, /*includeBool=*/false));
    if (!key || !number) {
      out.unknown.push_back(name);
      continue;
    }
    (key->transformer ? out.has_second : out.has_first) = true;
    out.from_peft |= key->from_peft;
    out.keys.emplace(name, std::move(*key));
  }
  return out;
}

void check_known(const OpenLora& lora) {
  const std::string other = other_adapter_kind(lora.unknown);
  VMOBA_CHECK_INPUT(
      other.empty(),
      "expected LoRA matrices in '{}', found {} ('{}'), which is not read here; merge it into the weights "
      "with the tool that made it",
      lora.path, other, lora.unknown.front());
  constexpr size_t kShown = 5;
  const auto end = lora.unknown.begin() + ptrdiff_t(std::min(kShown, lora.unknown.size()));
  VMOBA_CHECK_INPUT(lora.unknown.empty() && !lora.keys.empty(),
                    "expected lora_A/lora_B or lora_down/lora_up matrices of the model's linear maps in '{}', found {} "
                    "other tensors ({}{})",
                    lora.path, lora.unknown.size(), fmt::join(lora.unknown.begin(), end, ", "),
                    lora.unknown.size() > kShown ? ", ..." : "");
}

// Whether the second transformer's tensors are wanted.
bool wants_second(const OpenLora& lora, std::optional<size_t> expert) {
  if (!lora.has_second) return false;
  VMOBA_CHECK_INPUT(
      expert.has_value(),
      "expected a LoRA of one transformer, found {} (transformer_2.) in '{}'; write {}2:{} for the second",
      lora.has_first ? "those of two" : "the second one's", lora.path, lora.has_first ? "1:FILE for the first, " : "",
      lora.has_first ? "FILE" : lora.path);
  const bool there = *expert == 0 ? lora.has_first : *expert == 1;
  VMOBA_CHECK_INPUT(there, "expected a LoRA of transformer {} in '{}', found that of {} alone", *expert + 1, lora.path,
                    lora.has_first ? "the first two" : "the second one");
  return *expert == 1;
}

std::map<std::string, Parts> parts_of(const OpenLora& lora, bool second, at::Device device) {
  std::map<std::string, Parts> by_module;
  for (const auto& [name, key] : lora.keys) {
    if (key.transformer.has_value() != second) continue;
    Parts& parts = by_module[key.held.names.front()];
    VMOBA_CHECK_INPUT(parts.held.names.empty() || parts.held == key.held,
                      "expected one adapter of '{}' in '{}', found '{}' besides", key.held.names.front(), lora.path,
                      name);
    parts.held = key.held;
    parts.written = key.written;
    const at::Tensor stored = lora.file.tensor(name);
    if (key.part == LoraPart::kAlpha) {
      VMOBA_CHECK_INPUT(stored.numel() == 1, "expected one number in '{}' of '{}', found {}", name, lora.path,
                        stored.numel());
      parts.alpha = stored.to(at::kDouble).item<double>();
      VMOBA_CHECK_INPUT(std::isfinite(*parts.alpha), "expected a finite number in '{}' of '{}', found {}", name,
                        lora.path, *parts.alpha);
      continue;
    }
    at::Tensor& into = parts.tensors[key.part];
    VMOBA_CHECK_INPUT(!into.defined(), "expected one adapter of '{}' in '{}', found '{}' besides",
                      key.held.names.front(), lora.path, name);
    into = at::empty(stored.sizes(), at::TensorOptions().dtype(at::kFloat).device(device)).copy_(stored);
  }
  return by_module;
}

// A of a convolution lies as [r, in, kernel]; its B has a kernel of one value.
at::Tensor as_matrix(const at::Tensor& tensor) {
  return tensor.dim() > 2 ? tensor.flatten(1) : tensor;
}

LowRank low_rank_of(const std::string& module, const Parts& parts, const PeftSettings& settings,
                    const std::string& path) {
  const at::Tensor a_stored = parts.take(LoraPart::kA), b_stored = parts.take(LoraPart::kB);
  const bool something = !parts.tensors.empty();
  if (!a_stored.defined() && !b_stored.defined() && something && !parts.take(LoraPart::kBBias).defined()) return {};
  VMOBA_CHECK_INPUT(a_stored.defined() && b_stored.defined(),
                    "expected both matrices of the adapter '{}' in '{}', found {}", module, path,
                    a_stored.defined()   ? "A only"
                    : b_stored.defined() ? "B only"
                    : something          ? "a bias only"
                                         : "an alpha only");
  const at::Tensor a = as_matrix(a_stored), b = as_matrix(b_stored);
  VMOBA_CHECK_INPUT(a.dim() == 2 && b.dim() == 2 && a.size(0) == b.size(1) && a.size(0) > 0,
                    "expected A [r, in] and B [out, r] of '{}' in '{}', found {} and {}", module, path,
                    fmt::join(a_stored.sizes(), "x"), fmt::join(b_stored.sizes(), "x"));
  const int64_t rank = a.size(0);
  return {a, b, parts.alpha ? *parts.alpha / double(rank) : settings.scale(parts.written, rank)};
}

ModuleChange joined(const std::string& module, const Parts& parts, const PeftSettings& settings,
                    const std::string& path) {
  ModuleChange out;
  out.module = module;
  out.low_rank = low_rank_of(module, parts, settings, path);
  out.magnitude = parts.take(LoraPart::kMagnitude);
  VMOBA_CHECK_INPUT(out.magnitude.defined() || !out.low_rank.a.defined() || !settings.use_dora(),
                    "expected DoRA's magnitudes of '{}' in '{}', as its settings state (use_dora), found none", module,
                    path);
  out.weight = parts.take(LoraPart::kDifference);
  out.bias = parts.take(LoraPart::kBias);
  if (const at::Tensor of_b = parts.take(LoraPart::kBBias); of_b.defined()) {
    const at::Tensor scaled = of_b * out.low_rank.scale;
    out.bias = out.bias.defined() ? out.bias + scaled : scaled;
  }
  return out;
}

std::string flattened(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

// The adapters as a file of the format has them, by what stands in front of ".lora_A.weight" and its kin.
std::vector<Adapter> as_written(const std::vector<Adapter>& adapters, const Architecture& architecture,
                                LoraFormat format, const ShapeOf& shape_of) {
  if (format == LoraFormat::kDiffusers) {
    std::vector<Adapter> out = adapters;
    for (Adapter& adapter : out) adapter.module = "transformer." + adapter.module;
    return out;
  }
  const bool comfyui = format == LoraFormat::kComfyUi;
  const LoraNames& names = architecture.lora;
  std::vector<Adapter> out =
      in_layout(adapters, layout_named(architecture, comfyui ? names.comfyui_layout : names.kohya_layout), shape_of);
  for (Adapter& adapter : out)
    adapter.module = comfyui ? "diffusion_model." + adapter.module : kKohyaPrefix + flattened(adapter.module);
  return out;
}

}  // namespace

LoraFormat lora_format(const std::string& name) {
  static const Registry<LoraFormat> table(
      "LoRA format",
      {{"comfyui", LoraFormat::kComfyUi}, {"diffusers", LoraFormat::kDiffusers}, {"kohya", LoraFormat::kKohya}});
  return table.find(name);
}

const std::vector<std::string>& lora_format_names() {
  static const std::vector<std::string> names = {"comfyui", "diffusers", "kohya"};
  return names;
}

bool is_lora(const std::string& path) {
  if (!fs::exists(path)) return false;
  if (!fs::is_directory(path)) return path.ends_with(".safetensors") && are_lora_names(names_in(path));
  for (const char* name : {kPeftFile, "pytorch_lora_weights.safetensors"})
    if (fs::exists(fs::path(path) / name)) return true;
  const std::vector<std::string> files = safetensors_in(path);
  return files.size() == 1 && are_lora_names(names_in(files.front()));
}

const Architecture& architecture_of_lora(const std::string& path, const std::string& name) {
  if (!name.empty()) return architectures().find(name);
  const SafetensorsFile file(lora_path(path));
  std::map<int64_t, std::vector<std::string>, std::greater<>> by_known;
  for (const std::string& candidate : architectures().names()) {
    const Architecture& architecture = architectures().find(candidate);
    const auto known = std::count_if(file.tensors().begin(), file.tensors().end(), [&](const auto& tensor) {
      return parse_lora_key(tensor.first, architecture).has_value();
    });
    by_known[known].push_back(candidate);
  }
  const auto& [known, best] = *by_known.begin();
  if (known == 0) return architectures().find(default_architecture());
  VMOBA_CHECK_INPUT(best.size() == 1, "--architecture: expected one of {}, whose names '{}' may have, found none given",
                    fmt::join(best, ", "), path);
  return architectures().find(best.front());
}

LoraSource lora_source(const std::string& text) {
  const size_t digits = text.find_first_not_of("0123456789");
  if (digits == 0 || digits == std::string::npos || text[digits] != ':') return {text, std::nullopt};
  const int64_t number = digits < 4 ? std::stoll(text.substr(0, digits)) : 0;
  VMOBA_CHECK_INPUT(number >= 1, "expected a transformer's number of 1 or more before ':', found '{}'", text);
  return {text.substr(digits + 1), size_t(number - 1)};
}

std::set<size_t> named_transformers(const std::string& path, const Architecture& architecture) {
  const OpenLora lora = opened(path, architecture);
  if (!lora.has_second) return {};
  return lora.has_first ? std::set<size_t>{0, 1} : std::set<size_t>{1};
}

std::vector<ModuleChange> read_changes(const LoraSource& source, const Architecture& architecture, at::Device device) {
  const OpenLora lora = opened(source.path, architecture);
  check_known(lora);
  const bool second = wants_second(lora, source.expert);
  const auto metadata = lora.file.metadata().find("lora_adapter_metadata");
  const PeftSettings settings = metadata != lora.file.metadata().end()
                                    ? settings_in_metadata(metadata->second, second, lora.path)
                                    : settings_beside(lora.path, lora.from_peft);
  std::vector<ModuleChange> changes;
  for (const auto& [module, parts] : parts_of(lora, second, device))
    for (ModuleChange& change : split_change(joined(module, parts, settings, lora.path), parts.held, lora.path))
      changes.push_back(std::move(change));
  return changes;
}

std::vector<Adapter> read_lora(const LoraSource& source, const Architecture& architecture, at::Device device) {
  std::vector<Adapter> adapters;
  for (ModuleChange& change : read_changes(source, architecture, device)) {
    VMOBA_CHECK_INPUT(change.low_rank_alone(),
                      "expected low-rank matrices alone in '{}', found {} of '{}'; merge the file into the weights "
                      "(vmoba-convert --lora) or sample with it",
                      source.path,
                      change.magnitude.defined() ? "DoRA's magnitudes"
                      : change.weight.defined()  ? "a difference of the weight (.diff)"
                                                 : "a bias (.diff_b or lora_B.bias)",
                      change.module);
    adapters.push_back({change.module, std::move(change.low_rank)});
  }
  return adapters;
}

void write_lora(const std::string& path, const std::vector<Adapter>& adapters, const Architecture& architecture,
                LoraFormat format, at::ScalarType dtype, std::map<std::string, std::string> metadata,
                const ShapeOf& shape_of) {
  std::vector<NamedTensor> tensors;
  for (const Adapter& adapter : as_written(adapters, architecture, format, shape_of)) {
    const auto [a, b, scale] = adapter.low_rank;
    const at::Tensor a_cpu = a.detach().to(at::kCPU), b_cpu = b.detach().to(at::kCPU);
    const std::string& name = adapter.module;
    if (format == LoraFormat::kKohya) {
      tensors.push_back({name + ".lora_down.weight", a_cpu.to(dtype)});
      tensors.push_back({name + ".lora_up.weight", b_cpu.to(dtype)});
      tensors.push_back({name + ".alpha", at::scalar_tensor(scale * double(a.size(0)), at::kFloat)});
    } else {
      tensors.push_back({name + ".lora_A.weight", a_cpu.to(dtype)});
      tensors.push_back({name + ".lora_B.weight", (scale == 1 ? b_cpu : b_cpu * scale).to(dtype)});
    }
  }
  metadata["format"] = "pt";
  save_tensors(path, tensors_to_write(tensors), metadata);
}

std::vector<std::string> missing_for_kohya(const std::vector<Adapter>& adapters, const Architecture& architecture) {
  std::set<std::string> blocks, modules;
  for (const Adapter& adapter : adapters) {
    modules.insert(adapter.module);
    blocks.insert(block_of(architecture, adapter.module));
  }
  blocks.erase("");
  std::vector<std::string> missing;
  for (const std::string& block : blocks) {
    for (const std::string& module : architecture.lora.kohya_modules)
      if (!modules.contains(block + module)) missing.push_back(block + module);
  }
  return missing;
}

std::string missing_for_diffusers(const std::vector<Adapter>& adapters, const Architecture& architecture) {
  const std::string& mark = architecture.lora.comfyui_mark;
  if (mark.empty()) return "";
  const Layout& layout = layout_named(architecture, architecture.lora.comfyui_layout);
  const bool marked = std::any_of(adapters.begin(), adapters.end(), [&](const Adapter& adapter) {
    const auto place = layout.names.place_of(adapter.module);
    return place && place->name.find(mark) != std::string::npos;
  });
  return marked ? "" : mark;
}

}  // namespace vmoba::model
