#include "model/adapter/peft_settings.h"

#include <cctype>
#include <cmath>
#include <regex>
#include <set>
#include <string_view>

#include "core/check.h"
#include "core/json.h"

namespace vmoba::model {
namespace {

using nlohmann::ordered_json;

constexpr double kPeftDefault = 8;  // of lora_alpha

// Fields that say how the adapter was trained or where it belongs, not what it adds.
const std::set<std::string>& silent_fields() {
  static const std::set<std::string> fields = {"task_type",
                                               "peft_type",
                                               "auto_mapping",
                                               "peft_version",
                                               "base_model_name_or_path",
                                               "revision",
                                               "inference_mode",
                                               "r",
                                               "target_modules",
                                               "exclude_modules",
                                               "lora_alpha",
                                               "lora_dropout",
                                               "fan_in_fan_out",  // peft sets it to false for linear maps
                                               "bias",            // its tensors would be in the file
                                               "use_rslora",
                                               "modules_to_save",  // as are theirs
                                               "layers_to_transform",
                                               "layers_pattern",
                                               "rank_pattern",
                                               "alpha_pattern",
                                               "megatron_core",
                                               "loftq_config",
                                               "eva_config",
                                               "corda_config",
                                               "lora_ga_config",
                                               "use_dora",
                                               "lora_bias",
                                               "runtime_config",
                                               "ensure_weight_tying"};
  return fields;
}

bool says_something(const ordered_json& value) {
  return value == true || ((value.is_object() || value.is_array()) && !value.empty());
}

// peft takes these away from the base when it loads the adapter, so that the matrices alone are another change.
void check_initialisation(const ordered_json& values, const std::string& origin) {
  const auto found = values.find("init_lora_weights");
  if (found == values.end() || !found->is_string()) return;
  const std::set<std::string> plain = {"gaussian", "eva", "orthogonal"};
  VMOBA_CHECK_INPUT(plain.contains(found->get<std::string>()),
                    "expected a LoRA that leaves the base weights as they are, found init_lora_weights {} in {}; "
                    "save it with peft's path_initial_model_for_weight_conversion",
                    json_text(*found), origin);
}

void check_fields(const ordered_json& values, const std::string& origin) {
  const auto type = values.find("peft_type");
  VMOBA_CHECK_INPUT(type == values.end() || *type == "LORA",
                    "expected the peft_type LORA in {}, found {}; adapters of "
                    "this kind are not read",
                    origin, json_text(*type));
  check_initialisation(values, origin);
  for (const auto& [key, value] : values.items())
    VMOBA_CHECK_INPUT(silent_fields().contains(key) || key == "init_lora_weights" || !says_something(value),
                      "expected settings of a plain LoRA in {}, found {} {}, which is not read here", origin, key,
                      json_text(value));
}

// Where Python's expressions and C++'s agree, so that none is taken for another one.
bool means_the_same(std::string_view pattern) {
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const std::string_view rest = pattern.substr(i + 1);
    if (c == '\\') {
      if (rest.empty()) return false;
      const bool letter = std::isalnum(static_cast<unsigned char>(rest[0]));
      if (letter && std::string_view("dDwWsSbB").find(rest[0]) == std::string_view::npos) return false;
      ++i;
    } else if (c == '[') {
      const size_t first = rest.starts_with('^') ? 1 : 0, end = rest.find(']', first + 1);
      if (end == std::string_view::npos || rest[first] == ']') return false;
      if (rest.substr(0, end).find_first_of("[\\") != std::string_view::npos) return false;
      i += end + 1;
    } else if (c == '(' && rest.starts_with('?')) {
      if (rest.size() < 2 || std::string_view(":=!").find(rest[1]) == std::string_view::npos) return false;
      i += 2;
    } else if (c == '{') {
      const size_t end = rest.find('}');
      if (end == std::string_view::npos || !std::isdigit(static_cast<unsigned char>(rest[0]))) return false;
      if (rest.substr(0, end).find_first_not_of("0123456789,") != std::string_view::npos) return false;
    }
    const bool quantifier = c == '*' || c == '+' || c == '?' || c == '}';
    if (quantifier && rest.starts_with('+')) return false;  // possessive
  }
  return true;
}

bool matches(const std::string& pattern, const std::string& module, const std::string& origin) {
  VMOBA_CHECK_INPUT(means_the_same(pattern), "expected a simple regular expression as a pattern in {}, found '{}'",
                    origin, pattern);
  try {
    // In time that grows with the text's length only, whatever the pattern.
    const std::regex expression("(.*\\.)?(" + pattern + ")$",
                                std::regex::ECMAScript | std::regex_constants::__polynomial);
    return std::regex_search(module, expression, std::regex_constants::match_continuous);
  } catch (const std::regex_error& error) {
    throw_input("expected a regular expression as a pattern in {}, found '{}': {}", origin, pattern, error.what());
  }
}

}  // namespace

PeftSettings::PeftSettings(ordered_json values, std::string origin)
    : stated_(true), values_(std::move(values)), origin_(std::move(origin)) {
  VMOBA_CHECK_INPUT(values_.is_object(), "expected a JSON object of settings in {}, found something else", origin_);
  check_fields(values_, origin_);
}

double PeftSettings::number(const char* key, double otherwise) const {
  const auto found = values_.find(key);
  if (found == values_.end() || found->is_null()) return otherwise;
  VMOBA_CHECK_INPUT(found->is_number(), "expected a number {} in {}, found {}", key, origin_, json_text(*found));
  return found->get<double>();
}

double PeftSettings::matched(const char* patterns, const std::string& module, double otherwise) const {
  const auto found = values_.find(patterns);
  if (found == values_.end() || found->is_null()) return otherwise;
  VMOBA_CHECK_INPUT(found->is_object(), "expected an object of patterns {} in {}, found {}", patterns, origin_,
                    json_text(*found));
  for (const auto& [pattern, value] : found->items()) {
    if (!matches(pattern, module, origin_)) continue;
    VMOBA_CHECK_INPUT(value.is_number(), "expected a number for '{}' of {} in {}, found {}", pattern, patterns, origin_,
                      json_text(value));
    return value.get<double>();
  }
  return otherwise;
}

bool PeftSettings::use_dora() const {
  const auto found = values_.find("use_dora");
  return stated_ && found != values_.end() && *found == true;
}

double PeftSettings::scale(const std::string& module, int64_t rank) const {
  if (!stated_) return 1;
  const double stated_rank = matched("rank_pattern", module, number("r", double(rank)));
  VMOBA_CHECK_INPUT(stated_rank == double(rank),
                    "expected rank {} of '{}', as {} states, found {}; the settings belong to another file",
                    stated_rank, module, origin_, rank);
  const double alpha = matched("alpha_pattern", module, number("lora_alpha", kPeftDefault));
  const auto by_root = values_.find("use_rslora");
  const bool rank_stabilised = by_root != values_.end() && *by_root == true;
  return alpha / (rank_stabilised ? std::sqrt(double(rank)) : double(rank));
}

}  // namespace vmoba::model
