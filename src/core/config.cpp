#include "core/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>
#include <sstream>
#include <string_view>
#include <type_traits>

#include "core/check.h"
#include "core/config_override.h"
#include "core/config_text.h"
#include "core/config_yaml.h"
#include "core/file_kind.h"
#include "core/unknown_key.h"

namespace vmoba {

Constraint at_least(double min) {
  return {.min = min};
}
Constraint above(double min) {
  return {.min = min, .exclusive_min = true};
}
Constraint between(double min, double max) {
  return {.min = min, .max = max};
}
Constraint one_of(std::vector<std::string> choices) {
  return {.choices = std::move(choices)};
}
Constraint list_of(int64_t size, double min) {
  return {.min = min, .size = size};
}

void ConfigVisitor::kind_fields(const std::string&, const std::string& chosen, const std::vector<Kind>& kinds) {
  for (const Kind& kind : kinds)
    if (kind.word == chosen) kind.visit(*this);
}

size_t edit_distance(const std::string& word, const std::string& other) {
  std::vector<size_t> row(other.size() + 1);
  for (size_t j = 0; j <= other.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= word.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= other.size(); ++j) {
      const size_t substituted = diagonal + (word[i - 1] != other[j - 1]);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& known) {
  size_t best = name.size() / 2 + 1;  // farther than half the word is no suggestion
  std::string nearest;
  for (const std::string& candidate : known) {
    const size_t distance = edit_distance(name, candidate);
    if (distance > best || (!nearest.empty() && distance == best)) continue;
    best = distance;
    nearest = candidate;
  }
  return nearest;
}

namespace {

template <typename T>
std::string type_name() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  if constexpr (std::is_same_v<T, double>) return "a number";
  return "a text";
}

bool read_scalar(const YAML::Node& node, std::string& value) {
  value = node.Scalar();
  return true;
}
bool read_scalar(const YAML::Node& node, bool& value) {
  return YAML::convert<bool>::decode(node, value);
}

// Decimal numbers only: YAML 1.1's octal (010 is 8), hexadecimal and infinities surprise more than they help.
bool read_scalar(const YAML::Node& node, double& value) {
  std::string_view text = node.Scalar();
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.find_first_not_of("0123456789+-.eE") != std::string_view::npos) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// 1e3 and 2.0 are integers to a person.
bool read_scalar(const YAML::Node& node, int64_t& value) {
  const std::string& text = node.Scalar();
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return true;
  double real = 0;
  if (!read_scalar(node, real) || !(std::abs(real) < 9e15) || real != std::floor(real)) return false;
  value = int64_t(real);
  return true;
}

// ---- parsing ----------------------------------------------------------------------------------------------------

class Parser : public ConfigVisitor {
 public:
  // `all_keys`: the full keys of the configuration, for messages.
  Parser(YAML::Node root, std::string origin, std::vector<Override> overrides,
         std::function<std::vector<std::string>()> all_keys)
      : origin_(std::move(origin)), overrides_(std::move(overrides)), all_keys_(std::move(all_keys)) {
    enter(std::move(root), "");
  }

  void field(const std::string& name, bool& value, const std::string&) override { scalar(name, value, {}); }
  void field(const std::string& name, int64_t& value, const std::string&, const Constraint& c) override {
    scalar(name, value, c);
  }
  void field(const std::string& name, double& value, const std::string&, const Constraint& c) override {
    scalar(name, value, c);
  }
  void field(const std::string& name, std::string& value, const std::string&, const Constraint& c) override {
    scalar(name, value, c);
  }
  void field(const std::string& name, std::vector<int64_t>& value, const std::string&, const Constraint& c) override {
    sequence(name, value, c);
  }
  void field(const std::string& name, std::vector<double>& value, const std::string&, const Constraint& c) override {
    sequence(name, value, c);
  }
  void field(const std::string& name, std::vector<std::string>& value, const std::string&,
             const Constraint& c) override {
    sequence(name, value, c);
  }

  // Refuses keys that no field took; call once after the root was visited.
  void finish() { leave(); }
  const std::set<std::string>& set_keys() const { return set_keys_; }

 protected:
  void begin_group(const std::string& name, const std::string&) override {
    YAML::Node node = take_yaml(name);
    const std::string path = path_of(name);
    if (node.IsDefined() && !node.IsNull() && !node.IsMap())
      throw_input("{}: expected a group of keys, found a single value", where(node, path));
    enter(node.IsDefined() && node.IsMap() ? node : YAML::Node(YAML::NodeType::Map), path);
  }
  void end_group() override {
    leave();
    levels_.pop_back();
  }
  void list_of_groups(const std::string& name, const std::string&, size_t, const std::function<void(size_t)>& resize,
                      const std::function<void(size_t)>& visit) override {
    YAML::Node node = take_yaml(name);
    if (!node.IsDefined()) return;
    const std::string path = path_of(name);
    VMOBA_CHECK_INPUT(node.IsSequence(), "{}: expected a list of groups ('- key: value'), found something else",
                      where(node, path));
    resize(node.size());
    for (size_t i = 0; i < node.size(); ++i) {
      const std::string item_path = fmt::format("{}[{}]", path, i);
      VMOBA_CHECK_INPUT(node[i].IsMap(), "{}: expected a group of keys, found something else",
                        where(node[i], item_path));
      enter(node[i], item_path);
      visit(i);
      leave();
      levels_.pop_back();
    }
  }

 private:
  struct Level {
    YAML::Node node;
    std::string path;
    std::vector<std::string> known;
  };

  void enter(YAML::Node node, std::string path) { levels_.push_back({std::move(node), std::move(path), {}}); }

  void leave() {
    const Level& level = levels_.back();
    for (const auto& entry : level.node) {
      const std::string key = entry.first.Scalar();
      if (std::find(level.known.begin(), level.known.end(), key) != level.known.end()) continue;
      const std::string path = level.path.empty() ? key : level.path + "." + key;
      throw UnknownKey(path, where(entry.first, shown(path)), meant_keys(shown(path), level.known, all_keys_()));
    }
  }

  std::string path_of(const std::string& name) const {
    const std::string& path = levels_.back().path;
    return path.empty() ? name : path + "." + name;
  }

  std::string where(const YAML::Node& node, const std::string& path) const {
    const bool typed =
        std::any_of(overrides_.begin(), overrides_.end(), [&](const Override& given) { return given.covers(path); });
    if (typed) return "command line: " + path;
    const YAML::Mark mark = node.Mark();
    if (mark.line >= 0) return fmt::format("{}:{}: {}", origin_, mark.line + 1, path);
    // A group that an override made has no line.
    return fmt::format("{}: {}", overrides_.empty() ? origin_ : "command line", path);
  }

  // The override of exactly this key; null without.
  const Override* typed_at(const std::string& path) const {
    const auto found =
        std::find_if(overrides_.rbegin(), overrides_.rend(), [&](const Override& given) { return given.key == path; });
    return found == overrides_.rend() ? nullptr : &*found;
  }

  YAML::Node take(const std::string& name) {
    Level& level = levels_.back();
    level.known.push_back(name);
    const YAML::Node& constant = level.node;  // the const operator[] does not insert
    const YAML::Node found = constant[name];
    return found.IsDefined() ? found : YAML::Node(YAML::NodeType::Undefined);
  }

  // As take(), for fields that are no free text: their values must be YAML.
  YAML::Node take_yaml(const std::string& name) {
    const Override* typed = typed_at(path_of(name));
    if (typed != nullptr && !typed->error.empty()) throw_input("{}", typed->error);
    return take(name);
  }

  template <typename T>
  T convert(const YAML::Node& node, const Constraint& c, const std::string& place) {
    VMOBA_CHECK_INPUT(node.IsScalar(), "{}: expected {}, found {}", place, type_name<T>(),
                      node.IsNull()  ? "nothing (an empty text is '')"
                      : node.IsMap() ? "a group of keys"
                                     : "a list");
    T value{};
    const bool good = read_scalar(node, value);
    VMOBA_CHECK_INPUT(good, "{}: expected {}, found '{}'", place, type_name<T>(), shown(node.Scalar()));
    if constexpr (std::is_same_v<T, std::string>)
      check_word(value, c, place);
    else if constexpr (!std::is_same_v<T, bool>)
      check_number(double(value), c, place);
    return value;
  }

  template <typename T>
  void scalar(const std::string& name, T& value, const Constraint& c) {
    const bool is_text = std::is_same_v<T, std::string> && c.choices.empty();
    const YAML::Node node = is_text ? take(name) : take_yaml(name);
    if (!node.IsDefined()) return;
    set_keys_.insert(path_of(name));
    if constexpr (std::is_same_v<T, std::string>) {
      if (const Override* typed = is_text ? typed_at(path_of(name)) : nullptr) {
        value = typed->as_text();
        return;
      }
    }
    value = convert<T>(node, c, where(node, path_of(name)));
  }

  template <typename T>
  void sequence(const std::string& name, std::vector<T>& value, const Constraint& c) {
    const YAML::Node node = take_yaml(name);
    if (!node.IsDefined()) return;
    set_keys_.insert(path_of(name));
    const std::string place = where(node, path_of(name));
    VMOBA_CHECK_INPUT(node.IsSequence(), "{}: expected a list, found {}", place,
                      node.IsScalar() ? "'" + shown(node.Scalar()) + "'" : "something else");
    check_size(int64_t(node.size()), c, place);
    std::vector<T> out;
    for (size_t i = 0; i < node.size(); ++i) out.push_back(convert<T>(node[i], c, fmt::format("{}[{}]", place, i)));
    value = std::move(out);
  }

  std::string origin_;
  std::vector<Override> overrides_;
  std::function<std::vector<std::string>()> all_keys_;
  std::vector<Level> levels_;
  std::set<std::string> set_keys_;
};

// In the order of the command line; one that a later one replaces is forgotten.
std::vector<Override> apply_overrides(YAML::Node root, const std::vector<std::string>& items) {
  std::vector<Override> out;
  for (const std::string& item : items) {
    const Override typed = apply_override(root, item);
    std::erase_if(out, [&](const Override& earlier) { return typed.covers(earlier.key); });
    out.push_back(typed);
  }
  return out;
}

// Moves the keys that are set from the document to `retired.found`.
void take_retired(const YAML::Node& root, const std::vector<Override>& overrides, RetiredKeys& retired) {
  for (const std::string& key : retired.names) {
    YAML::Node group = root;
    std::istringstream parts(key.substr(0, key.rfind('.') + 1));
    for (std::string part; group.IsMap() && std::getline(parts, part, '.');) {
      const YAML::Node& constant = group;  // the const operator[] does not insert
      const YAML::Node child = constant[part];
      group.reset(child.IsDefined() ? child : YAML::Node());
    }
    if (!group.IsMap()) continue;
    const YAML::Node& constant = group;
    const std::string name = key.substr(key.rfind('.') + 1);
    const YAML::Node value = constant[name];
    if (!value.IsDefined()) continue;
    const auto typed =
        std::find_if(overrides.begin(), overrides.end(), [&](const Override& given) { return given.key == key; });
    VMOBA_CHECK_INPUT(typed != overrides.end() || value.IsScalar(), "{}: expected a single value, found something else",
                      key);
    retired.found[key] = typed != overrides.end() ? typed->as_text() : value.Scalar();
    group.remove(name);
  }
}

}  // namespace

std::set<std::string> parse_config(const std::string& text, const std::string& origin,
                                   const std::vector<std::string>& overrides, const VisitFunction& visit,
                                   RetiredKeys* retired) {
  YAML::Node root = parse_yaml(text, origin);
  const std::vector<Override> typed = apply_overrides(root, overrides);
  if (retired != nullptr) take_retired(root, typed, *retired);
  const auto all_keys = [&visit] {
    std::vector<std::string> keys;
    for (const auto& [key, value] : config_values(visit)) keys.push_back(key);
    return keys;
  };
  Parser parser(root, origin, typed, all_keys);
  visit(parser);
  parser.finish();
  return parser.set_keys();
}

std::set<std::string> load_config(const std::string& path, const std::vector<std::string>& overrides,
                                  const VisitFunction& visit, RetiredKeys* retired) {
  if (path.empty()) return parse_config("", "defaults", overrides, visit, retired);
  const std::string text = read_config_text(path);
  try {
    return parse_config(text, path, overrides, visit, retired);
  } catch (const UnknownKey&) {
    throw;
  } catch (const Error&) {
    const std::string kind = std::filesystem::is_regular_file(path) ? what_is_this(path) : "";
    if (kind.empty() || kind == "a JSON text" || kind.starts_with("a text that begins with")) throw;
    throw_input("expected a configuration in YAML at '{}', found {}", path, kind);
  }
}

}  // namespace vmoba
