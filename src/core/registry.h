// A name -> entry table, so that adding a model, codec or encoder is one line in its own file's list.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"

namespace vmoba {

// Entry is a factory function, or a struct of functions where a kind has several.
template <typename Entry>
class Registry {
 public:
  // `what` names the kind of thing in messages ("codec.type").
  Registry(std::string what, std::map<std::string, Entry> entries)
      : what_(std::move(what)), entries_(std::move(entries)) {}

  // In alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& [name, entry] : entries_) out.push_back(name);
    return out;
  }

  // Throws Error(kInput) listing the known names.
  const Entry& find(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found != entries_.end()) return found->second;
    std::string known;
    for (const std::string& n : names()) known += (known.empty() ? "" : ", ") + n;
    throw_input("expected a known {} ({}), found '{}'", what_, known, name);
  }

 private:
  std::string what_;
  std::map<std::string, Entry> entries_;
};

}  // namespace vmoba
