#include "core/config.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>
#include <type_traits>

#include "core/check.h"
#include "core/config_text.h"

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

std::string nearest_name(const std::string& name, const std::vector<std::string>& known) {
  size_t best = name.size() / 2 + 1;  // farther than half the word is no suggestion
  std::string nearest;
  for (const std::string& candidate : known) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j <= candidate.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t substituted = diagonal + (name[i - 1] != candidate[j - 1]);
        diagonal = row[j];
        row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() <= best && (nearest.empty() || row.back() < best)) {
      best = row.back();
      nearest = candidate;
    }
  }
  return nearest;
}

namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxDepth = 32;

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
  // `overridden`: keys whose values came from the command line.
  Parser(YAML::Node root, std::string origin, std::vector<std::string> overridden)
      : origin_(std::move(origin)), overridden_(std::move(overridden)) {
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
    YAML::Node node = take(name);
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
    YAML::Node node = take(name);
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
      const std::string nearest = nearest_name(key, level.known);
      throw_input(
          "{}: unknown key{}", where(entry.first, shown(level.path.empty() ? key : level.path + "." + key)),
          nearest.empty() ? "; known here: " + join(level.known) : fmt::format("; did you mean '{}'?", nearest));
    }
  }

  std::string path_of(const std::string& name) const {
    const std::string& path = levels_.back().path;
    return path.empty() ? name : path + "." + name;
  }

  std::string where(const YAML::Node& node, const std::string& path) const {
    for (const std::string& key : overridden_) {
      const bool inside = path.starts_with(key) && (path.size() == key.size() || path[key.size()] == '.');
      if (inside || (path.starts_with(key) && path[key.size()] == '[')) return "command line: " + path;
    }
    const YAML::Mark mark = node.Mark();
    const bool known = mark.line >= 0;
    return known ? fmt::format("{}:{}: {}", origin_, mark.line + 1, path) : fmt::format("{}: {}", origin_, path);
  }

  YAML::Node take(const std::string& name) {
    Level& level = levels_.back();
    level.known.push_back(name);
    const YAML::Node& constant = level.node;  // the const operator[] does not insert
    const YAML::Node found = constant[name];
    return found.IsDefined() ? found : YAML::Node(YAML::NodeType::Undefined);
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
    const YAML::Node node = take(name);
    if (!node.IsDefined()) return;
    set_keys_.insert(path_of(name));
    value = convert<T>(node, c, where(node, path_of(name)));
  }

  template <typename T>
  void sequence(const std::string& name, std::vector<T>& value, const Constraint& c) {
    const YAML::Node node = take(name);
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
  std::vector<std::string> overridden_;
  std::vector<Level> levels_;
  std::set<std::string> set_keys_;
};

// Reads a document as events, before any node is made, and refuses what no configuration needs: anchors and aliases
// (a small file could name itself or grow without bound), merge keys, tags, deep nesting, duplicate keys, a second
// document.
class StructureCheck : public YAML::EventHandler {
 public:
  explicit StructureCheck(const std::string& origin) : origin_(origin) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    VMOBA_CHECK_INPUT(documents_++ == 0, "{}: expected one document, found a second ('---')", at(mark));
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { scalar(mark, "", anchor, ""); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    scalar(mark, tag, anchor, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    enter(mark, tag, anchor, false);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    enter(mark, tag, anchor, true);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  struct Collection {
    bool is_map;
    bool expects_key;
    std::set<std::string> keys;
  };

  std::string at(const YAML::Mark& mark) const { return fmt::format("{}:{}", origin_, mark.line + 1); }

  void refuse_anchor(const YAML::Mark& mark) const {
    throw_input("{}: expected plain values, found an anchor or alias ('&' or '*'); put a text in quotes", at(mark));
  }
  void check_plain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    VMOBA_CHECK_INPUT(tag.empty() || tag == "?" || tag == "!",
                      "{}: expected plain values, found the tag '{}'; put a text in quotes", at(mark), shown(tag));
  }

  void scalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, const std::string& value) {
    check_plain(mark, tag, anchor);
    if (open_.empty() || !open_.back().is_map) return;
    Collection& map = open_.back();
    if (map.expects_key) {
      VMOBA_CHECK_INPUT(value != "<<", "{}: expected plain keys, found the merge key '<<'", at(mark));
      VMOBA_CHECK_INPUT(map.keys.insert(value).second, "{}: expected each key once, found '{}' again", at(mark),
                        shown(value));
    }
    map.expects_key = !map.expects_key;
  }

  void enter(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, bool is_map) {
    check_plain(mark, tag, anchor);
    VMOBA_CHECK_INPUT(open_.size() < kMaxDepth, "{}: expected at most {} nested levels, found more", at(mark),
                      kMaxDepth);
    if (!open_.empty() && open_.back().is_map) {
      VMOBA_CHECK_INPUT(!open_.back().expects_key, "{}: expected a plain word as key, found a list or group", at(mark));
      open_.back().expects_key = true;
    }
    open_.push_back({is_map, is_map, {}});
  }

  const std::string& origin_;
  std::vector<Collection> open_;
  int documents_ = 0;
};

YAML::Node parse_yaml(const std::string& text, const std::string& origin) {
  VMOBA_CHECK_INPUT(text.size() <= kMaxConfigBytes, "{}: expected at most {} bytes, found more", origin,
                    kMaxConfigBytes);
  YAML::Node root;
  try {
    std::istringstream stream(text);
    YAML::Parser events(stream);
    StructureCheck check(origin);
    while (events.HandleNextDocument(check)) {
    }
    root = YAML::Load(text);
  } catch (const YAML::Exception& e) {
    throw_input("{}:{}: expected valid YAML, found: {}; a text with ': ', '#' or brackets needs quotes", origin,
                e.mark.line + 1, shown(e.msg));
  }
  if (!root.IsDefined() || root.IsNull()) return YAML::Node(YAML::NodeType::Map);
  VMOBA_CHECK_INPUT(root.IsMap(), "{}: expected 'key: value' lines, found something else", origin);
  return root;
}

// Of "items[2]": {"items", 2}; without brackets the number is -1.
std::pair<std::string, int64_t> list_place(const std::string& name) {
  const size_t open = name.find('[');
  int64_t index = -1;
  if (open == std::string::npos || name.back() != ']') return {name, index};
  const char* end = name.data() + name.size() - 1;
  const auto [stopped, error] = std::from_chars(name.data() + open + 1, end, index);
  return error == std::errc() && stopped == end && index >= 0 ? std::pair(name.substr(0, open), index)
                                                              : std::pair(name, int64_t(-1));
}

// The group that `name` means inside of `group`; an absent one is made. `walked` names it, `key` all of the override.
YAML::Node inner_group(YAML::Node group, const std::string& name, const std::string& walked, const std::string& key) {
  const auto [plain, index] = list_place(name);
  YAML::Node child = group[plain];
  if (index >= 0) {
    VMOBA_CHECK_INPUT(child.IsSequence() && index < int64_t(child.size()),
                      "command line: {}: expected '{}' to be in a list of more than {} groups, found {}", shown(key),
                      walked, index, child.IsSequence() ? std::to_string(child.size()) : "no list");
    child.reset(child[size_t(index)]);
  } else if (!child.IsDefined() || child.IsNull()) {
    group[plain] = YAML::Node(YAML::NodeType::Map);
    child.reset(group[plain]);
  }
  VMOBA_CHECK_INPUT(child.IsMap(), "command line: {}: expected '{}' to be a group of keys", shown(key), walked);
  return child;
}

// Returns the key.
std::string apply_override(YAML::Node root, const std::string& text) {
  const size_t equals = text.find('=');
  const std::string key = text.substr(0, equals);
  const bool whole = !key.empty() && key.front() != '.' && key.back() != '.' && key.find("..") == std::string::npos;
  VMOBA_CHECK_INPUT(equals != std::string::npos && whole, "command line: expected key.sub=value, found '{}'",
                    shown(text));
  const YAML::Node wrapped = parse_yaml("value: " + text.substr(equals + 1), "command line: " + shown(key));
  VMOBA_CHECK_INPUT(wrapped.size() == 1, "command line: {}: expected one value, found several lines", shown(key));
  YAML::Node node = root;  // yaml-cpp nodes are references; reset() re-seats, operator= would assign
  std::istringstream parts(key);
  std::string part, walked;
  std::vector<std::string> names;
  while (std::getline(parts, part, '.')) names.push_back(part);
  for (size_t i = 0; i + 1 < names.size(); ++i) {
    walked += (i ? "." : "") + names[i];
    node.reset(inner_group(node, names[i], walked, key));
  }
  node[names.back()] = wrapped["value"];
  return key;
}

// Moves the keys that are set from the document to `retired.found`.
void take_retired(const YAML::Node& root, RetiredKeys& retired) {
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
    VMOBA_CHECK_INPUT(value.IsScalar(), "{}: expected a single value, found something else", key);
    retired.found[key] = value.Scalar();
    group.remove(name);
  }
}

}  // namespace

std::set<std::string> parse_config(const std::string& text, const std::string& origin,
                                   const std::vector<std::string>& overrides, const VisitFunction& visit,
                                   RetiredKeys* retired) {
  YAML::Node root = parse_yaml(text, origin);
  std::vector<std::string> overridden;
  for (const std::string& item : overrides) overridden.push_back(apply_override(root, item));
  if (retired != nullptr) take_retired(root, *retired);
  Parser parser(root, origin, overridden);
  visit(parser);
  parser.finish();
  return parser.set_keys();
}

std::set<std::string> load_config(const std::string& path, const std::vector<std::string>& overrides,
                                  const VisitFunction& visit, RetiredKeys* retired) {
  if (path.empty()) return parse_config("", "defaults", overrides, visit, retired);
  std::ifstream file(path, std::ios::binary);
  VMOBA_CHECK_INPUT(file.good(), "expected a configuration file at '{}', found none that can be read; check --config",
                    path);
  std::string text(kMaxConfigBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  VMOBA_CHECK_INPUT(!file.bad() && (file.eof() || file.good()),
                    "expected a configuration file at '{}', found something that cannot be read; check --config", path);
  text.resize(size_t(file.gcount()));
  return parse_config(text, path, overrides, visit, retired);
}

}  // namespace vmoba
