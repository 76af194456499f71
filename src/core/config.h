// Configuration: YAML <-> structs through one visitor.
//
// Each component has an XConfig struct beside it whose `visit` lists every field once. The visitors here parse it
// (unknown keys are refused and the nearest known key is named, ranges are checked), print the resolved copy, and
// document it (docs/config.md). Example:
//
//   struct OptimizerConfig {
//     double lr = 1e-4;
//     std::string schedule = "constant";
//     void visit(ConfigVisitor& v) {
//       v.field("lr", lr, "Peak learning rate.", at_least(0.0));
//       v.field("schedule", schedule, "Shape after warm-up.", one_of({"constant", "linear", "cosine"}));
//     }
//   };
//
// A root struct calls v.group("optimizer", "...", optimizer). Values keep their defaults where the file is silent. A
// field of an enum with a table of words (core/choice.h) is written as one of those words.
// Errors are vmoba::Error of kind kInput with file, line and full key ("train.optimizer.lr").
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "core/choice.h"

namespace vmoba {

// What a value may be. Numbers: inclusive range. Strings: list of allowed words (empty = any).
struct Constraint {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool exclusive_min = false;
  std::vector<std::string> choices = {};
  int64_t size = -1;  // exact length of a list; -1 = any
};
Constraint at_least(double min);
Constraint above(double min);
Constraint between(double min, double max);
Constraint one_of(std::vector<std::string> choices);
Constraint list_of(int64_t size, double min);  // a list of `size` numbers >= min

class ConfigVisitor {
 public:
  virtual ~ConfigVisitor() = default;
  virtual void field(const std::string& name, bool& value, const std::string& doc) = 0;
  virtual void field(const std::string& name, int64_t& value, const std::string& doc, const Constraint& = {}) = 0;
  virtual void field(const std::string& name, double& value, const std::string& doc, const Constraint& = {}) = 0;
  virtual void field(const std::string& name, std::string& value, const std::string& doc, const Constraint& = {}) = 0;
  virtual void field(const std::string& name, std::vector<int64_t>& value, const std::string& doc,
                     const Constraint& = {}) = 0;
  virtual void field(const std::string& name, std::vector<double>& value, const std::string& doc,
                     const Constraint& = {}) = 0;
  virtual void field(const std::string& name, std::vector<std::string>& value, const std::string& doc,
                     const Constraint& = {}) = 0;

  // A choice: one of the words of choices_of(value).
  template <typename Enum>
  requires std::is_enum_v<Enum>
  void field(const std::string& name, Enum& value, const std::string& doc) {
    const Choices<Enum>& table = choices_of(value);
    std::string word = table.word(value);
    field(name, word, doc, one_of(table.words()));
    value = table.value(word);
  }

  template <typename Config>
  void group(const std::string& name, const std::string& doc, Config& config) {
    begin_group(name, doc);
    config.visit(*this);
    end_group();
  }
  // A YAML list of mappings, each a Config.
  template <typename Config>
  void groups(const std::string& name, const std::string& doc, std::vector<Config>& list) {
    list_of_groups(
        name, doc, list.size(), [&](size_t count) { list.resize(count); },
        [&](size_t i) { i < list.size() ? list[i].visit(*this) : Config{}.visit(*this); });
  }
  // Fields of the group at hand that only one word of its field `name` has; `chosen` is the word. The documentation
  // lists those of every word.
  struct Kind {
    std::string word;
    std::function<void(ConfigVisitor&)> visit;
  };
  virtual void kind_fields(const std::string& name, const std::string& chosen, const std::vector<Kind>& kinds);

 protected:
  virtual void begin_group(const std::string& name, const std::string& doc) = 0;
  virtual void end_group() = 0;
  virtual void list_of_groups(const std::string& name, const std::string& doc, size_t count,
                              const std::function<void(size_t)>& resize, const std::function<void(size_t)>& visit) = 0;
};

using VisitFunction = std::function<void(ConfigVisitor&)>;

// Keys of an earlier release that no field takes any more. They are removed before the visitor sees the file, so that
// the caller can translate them.
struct RetiredKeys {
  std::vector<std::string> names;            // full keys: "model.boundary"
  std::map<std::string, std::string> found;  // those that are set, with their values as text
};

// Reads `path` (empty: defaults only), then applies "key.sub=value" or "list[0].sub=value" overrides (values are YAML).
// Files over 1 MiB, duplicate keys, aliases and merge keys are refused. Returns the full keys that were set
// ("train.optimizer.lr").
std::set<std::string> load_config(const std::string& path, const std::vector<std::string>& overrides,
                                  const VisitFunction& visit, RetiredKeys* retired = nullptr);
// As above from text; `origin` names it in messages.
std::set<std::string> parse_config(const std::string& text, const std::string& origin,
                                   const std::vector<std::string>& overrides, const VisitFunction& visit,
                                   RetiredKeys* retired = nullptr);
// The value of each full key, as YAML writes it; lists of groups are left out.
std::map<std::string, std::string> config_values(const VisitFunction& visit);
// The resolved configuration as YAML that load_config reads back to the same values.
std::string config_to_yaml(const VisitFunction& visit);
// A Markdown table per group: key, type, default, allowed values, meaning.
std::string config_to_markdown(const VisitFunction& visit);

// Checks the values of a struct that no file filled as parsing would; keys in messages begin with `group` (may be
// empty). Throws Error(kInput).
void check_values(const std::string& group, const VisitFunction& visit);
template <typename Config>
void check_config(const std::string& group, Config config) {
  check_values(group, [&config](ConfigVisitor& v) { config.visit(v); });
}

// The known name nearest to `name` by edit distance, or "" where none is near.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

}  // namespace vmoba
