// What peft's configuration says about the strength of an adapter: read from a file's metadata or from
// adapter_config.json, and matched with modules as peft matches (peft/utils/other.py, get_pattern_key). Values, no
// state.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace vmoba::model {

class PeftSettings {
 public:
  // Nothing is stated: adapters without an alpha of their own have a scale of 1.
  PeftSettings() = default;
  // `values`: the fields of peft's LoraConfig, in the file's order, which patterns are tried in. `origin` names them in
  // messages. Throws Error(kInput) where they describe what is not read here: another kind of adapter, or a LoRA whose
  // meaning another field changes.
  PeftSettings(nlohmann::ordered_json values, std::string origin);

  // Of a module in the file's own names, whose matrices have this rank. Throws Error(kInput) for another rank than is
  // stated.
  double scale(const std::string& module, int64_t rank) const;
  // Whether the adapter is a DoRA, as far as is stated.
  bool use_dora() const;

 private:
  double number(const char* key, double otherwise) const;
  double matched(const char* patterns, const std::string& module, double otherwise) const;

  bool stated_ = false;
  nlohmann::ordered_json values_;
  std::string origin_;
};

}  // namespace vmoba::model
