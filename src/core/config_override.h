// "key.sub=value" of a command line. Not for use outside src/core.
#pragma once
#include <yaml-cpp/yaml.h>

#include <string>

namespace vmoba {

struct Override {
  std::string key;
  std::string text;   // behind '=', as it was typed
  std::string error;  // what is wrong with it as YAML; a field of text takes it all the same

  // Whether the override set this full key, or a group around it.
  bool covers(const std::string& path) const;
  // For a field of text: what was typed, without the quotes of one YAML scalar around it.
  std::string as_text() const;
};

// Sets the value in `root` and returns what was set; absent groups are made. Throws Error(kInput) where the key is
// none.
Override apply_override(YAML::Node root, const std::string& item);

}  // namespace vmoba
