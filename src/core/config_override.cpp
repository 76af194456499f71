#include "core/config_override.h"

#include <charconv>
#include <sstream>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/config_text.h"
#include "core/config_yaml.h"

namespace vmoba {
namespace {

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

// Whether a text is one scalar in quotes, from end to end.
bool is_quoted(const std::string& text) {
  if (text.size() < 2 || text.front() != text.back() || (text.front() != '"' && text.front() != '\'')) return false;
  for (size_t i = 1; i + 1 < text.size(); ++i) {
    const bool escape = text.front() == '"' ? text[i] == '\\' : text[i] == '\'' && text[i + 1] == '\'';
    if (escape && i + 2 == text.size()) return false;
    if (escape)
      ++i;
    else if (text[i] == text.front())
      return false;
  }
  return true;
}

// Of a value that is no YAML: the text itself, and what is wrong with it.
std::pair<YAML::Node, std::string> parsed_value(const std::string& text, const std::string& key) {
  try {
    const YAML::Node wrapped = parse_yaml("value: " + text, "command line: " + shown(key));
    VMOBA_CHECK_INPUT(wrapped.size() == 1, "command line: {}: expected one value, found several lines", shown(key));
    return {wrapped["value"], ""};
  } catch (const Error& e) {
    return {YAML::Node(text), e.what()};
  }
}

}  // namespace

bool Override::covers(const std::string& path) const {
  if (!path.starts_with(key)) return false;
  return path.size() == key.size() || path[key.size()] == '.' || path[key.size()] == '[';
}

std::string Override::as_text() const {
  return error.empty() && is_quoted(text) ? parsed_value(text, key).first.Scalar() : text;
}

Override apply_override(YAML::Node root, const std::string& item) {
  const size_t equals = item.find('=');
  const std::string key = item.substr(0, equals);
  const bool whole = !key.empty() && key.front() != '.' && key.back() != '.' && key.find("..") == std::string::npos;
  VMOBA_CHECK_INPUT(equals != std::string::npos && whole, "command line: expected key.sub=value, found '{}'",
                    shown(item));
  auto [value, error] = parsed_value(item.substr(equals + 1), key);
  YAML::Node node = root;  // yaml-cpp nodes are references; reset() re-seats, operator= would assign
  std::istringstream parts(key);
  std::string part, walked;
  std::vector<std::string> names;
  while (std::getline(parts, part, '.')) names.push_back(part);
  for (size_t i = 0; i + 1 < names.size(); ++i) {
    walked += (i ? "." : "") + names[i];
    node.reset(inner_group(node, names[i], walked, key));
  }
  node[names.back()] = value;
  return {key, item.substr(equals + 1), error};
}

}  // namespace vmoba
