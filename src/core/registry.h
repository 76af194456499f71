// A name -> factory table, so that adding a model, codec or encoder is one line in its own file's list.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/config.h"

namespace vmoba {

template <typename Interface, typename... Args>
class Registry {
 public:
  using Factory = std::function<std::unique_ptr<Interface>(Args...)>;

  // `what` names the kind of thing in messages ("codec").
  Registry(std::string what, std::map<std::string, Factory> factories)
      : what_(std::move(what)), factories_(std::move(factories)) {}

  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& [name, factory] : factories_) out.push_back(name);
    return out;
  }

  std::unique_ptr<Interface> create(const std::string& name, Args... args) const {
    const auto found = factories_.find(name);
    if (found == factories_.end()) {
      std::string known;
      for (const std::string& n : names()) known += (known.empty() ? "" : ", ") + n;
      throw_input("expected a known {} ({}), found '{}'", what_, known, name);
    }
    return found->second(args...);
  }

 private:
  std::string what_;
  std::map<std::string, Factory> factories_;
};

}  // namespace vmoba
