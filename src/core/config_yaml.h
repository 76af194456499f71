// YAML of configurations: parsed, and refused where it has what no configuration needs. Not for use outside src/core.
#pragma once
#include <yaml-cpp/yaml.h>

#include <string>

namespace vmoba {

inline constexpr size_t kMaxConfigBytes = 1 << 20;

// The root group of a document; an empty one of nothing. Throws Error(kInput) naming `origin` and the line.
YAML::Node parse_yaml(const std::string& text, const std::string& origin);

}  // namespace vmoba
