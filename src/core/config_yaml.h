// YAML of configurations: parsed, and refused where it has what no configuration needs. Not for use outside src/core.
#pragma once
#include <yaml-cpp/yaml.h>

#include <string>

namespace vmoba {

inline constexpr size_t kMaxConfigBytes = 1 << 20;

// The root group of a document; an empty one of nothing. Throws Error(kInput) naming `origin` and the line.
YAML::Node parse_yaml(const std::string& text, const std::string& origin);

// The text of a configuration file, or of a pipe such as a shell's <(command). Waits a few seconds for what a pipe's
// writer says, not for a writer. Throws Error(kInput).
std::string read_config_text(const std::string& path);

}  // namespace vmoba
