// Two configurations as they are written, compared key by key without the structs that read them: one of them may be of
// another version.
#pragma once
#include <map>
#include <string>

namespace vmoba {

// Full key of each scalar and list ("train.optimizer.lr", "experts[0].weights") with its value as text; a list is
// "[a, b]". Throws Error(kInput) where `text` is no YAML mapping; `origin` names it.
std::map<std::string, std::string> yaml_values(const std::string& text, const std::string& origin);

}  // namespace vmoba
