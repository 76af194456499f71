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
#include "core/registry.h"
#include "model/weights/safetensors.h"
#include "model/weights/save.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kPrefixes[] = {"base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer."};
constexpr const char* kKohyaPrefix = "lora_unet_";
constexpr int64_t kMaxConfigBytes = 1 << 20;

enum class Part { kA, kB, kAlpha };

struct Key {
  std::string module;  // diffusers' name
  Part part;
};

std::string without_prefixes(std::string name) {
  for (const std::string prefix : kPrefixes)
    if (name.starts_with(prefix)) name = name.substr(prefix.size());
  return name;
}

// "blocks.0.self_attn.q", "blocks_0_self_attn_q" behind kohya's prefix, or diffusers' name -> diffusers' name.
std::optional<std::string> module_of(const std::string& written, const Architecture& architecture) {
  const bool flattened = written.starts_with(kKohyaPrefix);
  const std::string name = flattened ? written.substr(std::string(kKohyaPrefix).size()) : without_prefixes(written);
  for (const Layout& layout : architecture.layouts) {
    const NameTable& names = layout.names;
    if (const auto found = flattened ? names.from_flattened(name) : names.to_diffusers(name)) return found;
    if (!flattened && names.from_diffusers(name)) return name;
  }
  return std::nullopt;
}

// Splits "<module>.lora_A[.<adapter name>].weight" and its kin.
std::optional<Key> parse_key(const std::string& key, const Architecture& architecture) {
  struct Mark {
    const char* text;
    Part part;
  };
  constexpr Mark kMarks[] = {
      {".lora_A.", Part::kA}, {".lora_B.", Part::kB}, {".lora_down.", Part::kA}, {".lora_up.", Part::kB}};
  const auto with_module = [&](const std::string& written, Part part) -> std::optional<Key> {
    const auto module = module_of(written, architecture);
    if (!module) return std::nullopt;
    return Key{*module, part};
  };
  if (key.ends_with(".alpha")) return with_module(key.substr(0, key.size() - 6), Part::kAlpha);
  if (!key.ends_with(".weight")) return std::nullopt;
  for (const Mark& mark : kMarks) {
    const size_t at = key.find(mark.text);
    if (at != std::string::npos) return with_module(key.substr(0, at), mark.part);
  }
  return std::nullopt;
}

// What peft's configuration says about alpha.
struct PeftConfig {
  json values = json::object();
  std::string prefix;  // of the keys

  double alpha_of(const std::string& module, int64_t rank, const Architecture& architecture) const {
    double alpha = number("lora_alpha", double(rank));
    const auto patterns = values.find(prefix + "alpha_pattern");
    if (patterns != values.end() && patterns->is_object()) {
      for (const auto& entry : patterns->items()) {
        const bool fits = any_name(architecture, module,
                                   [&](const std::string& name) { return ends_with_module(name, entry.key()); });
        if (fits && entry.value().is_number()) alpha = entry.value().get<double>();
      }
    }
    const auto rslora = values.find(prefix + "use_rslora");
    return rslora != values.end() && *rslora == true ? alpha * std::sqrt(double(rank)) : alpha;
  }

 private:
  double number(const std::string& key, double otherwise) const {
    const auto found = values.find(prefix + key);
    return found != values.end() && found->is_number() ? found->get<double>() : otherwise;
  }
  static bool ends_with_module(const std::string& module, const std::string& tail) {
    return module == tail || module.ends_with("." + tail);
  }
};

PeftConfig peft_config(const SafetensorsFile& file, const std::string& path) {
  const auto metadata = file.metadata().find("lora_adapter_metadata");
  if (metadata != file.metadata().end()) {
    json parsed = json::parse(metadata->second, nullptr, false);
    if (parsed.is_object()) return {std::move(parsed), "transformer."};
  }
  const fs::path beside = fs::path(path).parent_path() / "adapter_config.json";
  if (!fs::exists(beside)) return {};
  json parsed = json::parse(read_file(beside.string(), kMaxConfigBytes, "an adapter configuration"), nullptr, false);
  VMOBA_CHECK_INPUT(parsed.is_object(), "expected an adapter configuration at '{}' to be a JSON object",
                    beside.string());
  return {std::move(parsed), ""};
}

std::string lora_path(const std::string& path) {
  VMOBA_CHECK_INPUT(fs::exists(path), "expected a LoRA file at '{}', found nothing", path);
  if (!fs::is_directory(path)) return path;
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  VMOBA_CHECK_INPUT(files.size() == 1, "expected one safetensors file in the LoRA folder '{}', found {}; name the file",
                    path, files.size());
  return files.front();
}

struct Parts {
  at::Tensor a, b;
  std::optional<double> alpha;
};

Adapter joined(const std::string& module, const Parts& parts, const PeftConfig& config,
               const Architecture& architecture, const std::string& path) {
  VMOBA_CHECK_INPUT(parts.a.defined() && parts.b.defined(),
                    "expected both matrices of the adapter '{}' in '{}', found {}", module, path,
                    parts.a.defined()   ? "A only"
                    : parts.b.defined() ? "B only"
                                        : "an alpha only");
  const at::Tensor &a = parts.a, &b = parts.b;
  VMOBA_CHECK_INPUT(a.dim() == 2 && b.dim() == 2 && a.size(0) == b.size(1) && a.size(0) > 0,
                    "expected A [r, in] and B [out, r] of '{}' in '{}', found {} and {}", module, path,
                    fmt::join(a.sizes(), "x"), fmt::join(b.sizes(), "x"));
  const int64_t rank = a.size(0);
  const double alpha = parts.alpha.value_or(config.alpha_of(module, rank, architecture));
  return {module, {a, b, alpha / double(rank)}};
}

std::string flattened(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

// The module as a file of the format has it, in front of ".lora_A.weight" and its kin.
std::string written_module(const std::string& module, const Architecture& architecture, LoraFormat format) {
  const auto in_layout = [&](const std::string& layout) {
    return layout_named(architecture, layout).names.from_diffusers(module).value_or(module);
  };
  if (format == LoraFormat::kDiffusers) return "transformer." + module;
  if (format == LoraFormat::kComfyUi) return "diffusion_model." + in_layout(architecture.lora.comfyui_layout);
  return kKohyaPrefix + flattened(in_layout(architecture.lora.kohya_layout));
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
  if (fs::is_directory(path)) {
    if (fs::exists(fs::path(path) / "adapter_model.safetensors")) return true;
    return fs::exists(fs::path(path) / "pytorch_lora_weights.safetensors");
  }
  return path.ends_with(".safetensors") && are_lora_names(stored_names(path));
}

const Architecture& architecture_of_lora(const std::string& path) {
  const SafetensorsFile file(lora_path(path));
  const auto known = [&](const std::string& architecture) {
    return std::count_if(file.tensors().begin(), file.tensors().end(), [&](const auto& tensor) {
      return parse_key(tensor.first, architectures().find(architecture)).has_value();
    });
  };
  const std::vector<std::string> names = architectures().names();
  return architectures().find(*std::max_element(
      names.begin(), names.end(), [&](const auto& one, const auto& other) { return known(one) < known(other); }));
}

std::vector<Adapter> read_lora(const std::string& given_path, const Architecture& architecture, at::Device device) {
  const std::string path = lora_path(given_path);
  const SafetensorsFile file(path);
  const PeftConfig config = peft_config(file, path);
  std::map<std::string, Parts> by_module;
  std::vector<std::string> unknown;
  for (const auto& [name, info] : file.tensors()) {
    const auto key = parse_key(name, architecture);
    if (!key || !at::isFloatingType(info.dtype)) {
      unknown.push_back(name);
      continue;
    }
    Parts& parts = by_module[key->module];
    const at::Tensor stored = file.tensor(name);
    if (key->part == Part::kAlpha) {
      VMOBA_CHECK_INPUT(stored.numel() == 1, "expected one number in '{}' of '{}', found {}", name, path,
                        stored.numel());
      parts.alpha = stored.to(at::kDouble).item<double>();
      continue;
    }
    at::Tensor& into = key->part == Part::kA ? parts.a : parts.b;
    VMOBA_CHECK_INPUT(!into.defined(), "expected one adapter of '{}' in '{}', found '{}' besides", key->module, path,
                      name);
    into = at::empty(stored.sizes(), at::TensorOptions().dtype(at::kFloat).device(device)).copy_(stored);
  }
  constexpr size_t kShown = 5;
  const std::vector<std::string> shown(unknown.begin(), unknown.begin() + ptrdiff_t(std::min(kShown, unknown.size())));
  VMOBA_CHECK_INPUT(unknown.empty() && !by_module.empty(),
                    "expected lora_A/lora_B or lora_down/lora_up matrices of the model's linear maps in '{}', found {} "
                    "other tensors ({}{})",
                    path, unknown.size(), fmt::join(shown, ", "), unknown.size() > kShown ? ", ..." : "");
  std::vector<Adapter> adapters;
  for (const auto& [module, parts] : by_module) adapters.push_back(joined(module, parts, config, architecture, path));
  return adapters;
}

void write_lora(const std::string& path, const std::vector<Adapter>& adapters, const Architecture& architecture,
                LoraFormat format, at::ScalarType dtype, std::map<std::string, std::string> metadata) {
  std::vector<NamedTensor> tensors;
  for (const Adapter& adapter : adapters) {
    const auto [a, b, scale] = adapter.low_rank;
    const at::Tensor a_cpu = a.detach().to(at::kCPU), b_cpu = b.detach().to(at::kCPU);
    const std::string name = written_module(adapter.module, architecture, format);
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

}  // namespace vmoba::model
