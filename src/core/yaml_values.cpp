#include "core/yaml_values.h"

#include <yaml-cpp/yaml.h>

#include "core/check.h"

namespace vmoba {
namespace {

bool is_plain_list(const YAML::Node& node) {
  for (const YAML::Node& item : node)
    if (!item.IsScalar()) return false;
  return node.size() > 0;
}

std::string list_text(const YAML::Node& node) {
  std::string out;
  for (const YAML::Node& item : node) out += (out.empty() ? "" : ", ") + item.Scalar();
  return "[" + out + "]";
}

void collect(const YAML::Node& node, const std::string& path, std::map<std::string, std::string>& out) {
  if (node.IsMap()) {
    for (const auto& entry : node) collect(entry.second, (path.empty() ? "" : path + ".") + entry.first.Scalar(), out);
  } else if (node.IsSequence() && node.size() > 0 && !is_plain_list(node)) {
    for (size_t i = 0; i < node.size(); ++i) collect(node[i], fmt::format("{}[{}]", path, i), out);
  } else {
    out[path] = node.IsSequence() ? list_text(node) : node.IsScalar() ? node.Scalar() : "";
  }
}

}  // namespace

std::map<std::string, std::string> yaml_values(const std::string& text, const std::string& origin) {
  std::map<std::string, std::string> out;
  try {
    const YAML::Node root = YAML::Load(text);
    VMOBA_CHECK_INPUT(root.IsMap(), "{}: expected 'key: value' lines, found something else", origin);
    collect(root, "", out);
  } catch (const YAML::Exception& e) {
    throw_input("{}:{}: expected valid YAML, found: {}", origin, e.mark.line + 1, e.msg);
  }
  return out;
}

}  // namespace vmoba
