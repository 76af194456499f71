#include "model/adapter/lora.h"

#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/check.h"
#include "model/adapter/lora_file.h"
#include "model/common/parameters.h"

namespace vmoba::model {
namespace {

bool matches(const char* pattern, const char* text) {
  if (*pattern == '*') return matches(pattern + 1, text) || (*text && matches(pattern, text + 1));
  if (*pattern == '\0' || *text == '\0') return *pattern == *text;
  return *pattern == *text && matches(pattern + 1, text + 1);
}

// The whole name, or what is behind one of its dots.
bool matches_module(const std::string& pattern, const std::string& module) {
  if (matches(pattern.c_str(), module.c_str())) return true;
  for (size_t dot = module.find('.'); dot != std::string::npos; dot = module.find('.', dot + 1))
    if (matches(pattern.c_str(), module.c_str() + dot + 1)) return true;
  return false;
}

struct Target {
  std::string module;
  int64_t in, out;
};

std::vector<Target> linear_maps(const std::vector<Parameter>& parameters) {
  // Every linear map has a bias; other matrices are tables of rows.
  std::set<std::string> biased;
  for (const Parameter& p : parameters)
    if (p.name.ends_with(".bias")) biased.insert(p.name.substr(0, p.name.rfind('.')));
  std::vector<Target> out;
  for (const Parameter& p : parameters) {
    const std::string module = p.name.substr(0, p.name.rfind('.'));
    if (p.name.ends_with(".weight") && p.shape().size() == 2 && biased.contains(module))
      out.push_back({module, p.shape()[1], p.shape()[0]});
  }
  return out;
}

Adapter fresh_adapter(const Target& target, const LoraConfig& config, uint64_t seed, at::Device device) {
  const ParameterSpec a{
      target.module + ".lora_A.weight", {config.rank, target.in}, uniform(1 / std::sqrt(double(target.in)))};
  return {
      target.module,
      {draw_parameter(a, seed, device),
       at::zeros({target.out, config.rank}, at::TensorOptions().device(device)).requires_grad_(true), config.scale()}};
}

// The file's values in place of the fresh ones; a scale other than the configuration's goes into B.
void continue_from(const LoraConfig& config, const Architecture& architecture, std::vector<Adapter>& adapters,
                   at::Device device) {
  std::map<std::string, Adapter*> by_module;
  for (Adapter& adapter : adapters) by_module[adapter.module] = &adapter;
  for (const Adapter& stored : read_lora(lora_source(config.init_from), architecture, device)) {
    const auto found = by_module.find(stored.module);
    VMOBA_CHECK_INPUT(found != by_module.end(),
                      "lora.init_from: expected modules among lora.targets, found '{}' in '{}'; add it to the targets",
                      stored.module, config.init_from);
    LowRank& own = found->second->low_rank;
    VMOBA_CHECK_INPUT(
        stored.low_rank.a.sizes() == own.a.sizes() && stored.low_rank.b.sizes() == own.b.sizes(),
        "lora.init_from: expected rank {} (lora.rank) and the model's sizes for '{}', found rank {} in '{}'",
        config.rank, stored.module, stored.low_rank.a.size(0), config.init_from);
    own.a = stored.low_rank.a.detach().requires_grad_(true);
    own.b = (stored.low_rank.b * (stored.low_rank.scale / own.scale)).detach().requires_grad_(true);
  }
}

}  // namespace

void LoraConfig::visit(ConfigVisitor& v) {
  v.field("rank", rank, "Rank of the adapters; 0 trains all weights instead.", at_least(0));
  v.field("alpha", alpha, "Adapters are scaled by alpha / rank; 0 stands for the rank.", at_least(0));
  v.field("targets", targets,
          "Linear maps that get an adapter, by diffusers' or the original names; `*` stands for any text. Not set: the "
          "model's complete set (Wan: q, k, v, o of both attentions and the feed-forward).");
  v.field("plus_ratio", plus_ratio,
          "Learning rate of B over that of A (LoRA+, Hayou et al. 2402.12354; 4 to 16 are usual). 1: plain LoRA.",
          above(0));
  v.field(
      "init_from", init_from,
      "LoRA file from which training continues (docs/pretrained.md); its modules must be among the targets. `2:FILE` "
      "takes the second transformer's part of a file of two.");
  v.field("formats", formats, "Files that a checkpoint's `lora/` holds: any of `comfyui`, `diffusers`, `kohya`.");
  v.field("save_dtype", save_dtype, "Type in these files; `state/` always keeps fp32.",
          one_of({"bf16", "fp16", "fp32"}));
  v.field(
      "trigger_words", trigger_words,
      "Words that call what was learnt, for the files' metadata. Not set: `data.caption_prefix`, where it has text.");
}

void LoraConfig::validate() const {
  if (!enabled()) return;
  VMOBA_CHECK_INPUT(!targets.empty(), "lora.targets: expected at least one pattern, found none");
  VMOBA_CHECK_INPUT(!formats.empty(), "lora.formats: expected at least one format, found none");
  for (const std::string& format : formats) lora_format(format);
}

std::vector<std::string> lora_modules(const std::vector<std::string>& patterns, const Architecture& architecture,
                                      const std::vector<Parameter>& parameters) {
  const std::vector<Target> maps = linear_maps(parameters);
  std::vector<bool> used(patterns.size(), false);
  std::vector<std::string> modules;
  for (const Target& map : maps) {
    bool chosen = false;
    for (size_t i = 0; i < patterns.size(); ++i) {
      const bool fits = any_name(architecture, map.module,
                                 [&](const std::string& name) { return matches_module(patterns[i], name); });
      used[i] = used[i] || fits;
      chosen |= fits;
    }
    if (chosen) modules.push_back(map.module);
  }
  for (size_t i = 0; i < patterns.size(); ++i) {
    VMOBA_CHECK_INPUT(used[i],
                      "lora.targets: expected patterns of linear maps such as '{}', found '{}', which fits none of the "
                      "model's {}",
                      fmt::join(architecture.lora.default_targets, "', '"), patterns[i], maps.size());
  }
  return modules;
}

namespace {

std::vector<Target> targets_of(const LoraConfig& config, const Architecture& architecture,
                               const std::vector<Parameter>& parameters) {
  const std::vector<std::string>& patterns =
      config.targets.empty() ? architecture.lora.default_targets : config.targets;
  const std::vector<std::string> chosen = lora_modules(patterns, architecture, parameters);
  std::vector<Target> out;
  for (const Target& target : linear_maps(parameters)) {
    if (std::find(chosen.begin(), chosen.end(), target.module) == chosen.end()) continue;
    VMOBA_CHECK_INPUT(config.rank <= std::min(target.in, target.out),
                      "lora.rank: expected at most {}, the smaller size of '{}', found {}",
                      std::min(target.in, target.out), target.module, config.rank);
    out.push_back(target);
  }
  return out;
}

}  // namespace

std::map<std::string, int64_t> adapter_values(const LoraConfig& config, const Architecture& architecture,
                                              const std::vector<Parameter>& parameters) {
  std::map<std::string, int64_t> out;
  for (const Target& target : targets_of(config, architecture, parameters))
    out[target.module] = config.rank * (target.in + target.out);
  return out;
}

std::vector<Adapter> make_adapters(const LoraConfig& config, const Architecture& architecture,
                                   const std::vector<Parameter>& parameters, uint64_t seed, at::Device device) {
  std::vector<Adapter> adapters;
  for (const Target& target : targets_of(config, architecture, parameters))
    adapters.push_back(fresh_adapter(target, config, seed, device));
  if (!config.init_from.empty()) continue_from(config, architecture, adapters, device);
  return adapters;
}

}  // namespace vmoba::model
