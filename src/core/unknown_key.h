// A key that no field has, with the keys that may have been meant.
#pragma once
#include <string>
#include <vector>

#include "core/check.h"

namespace vmoba {

class UnknownKey : public Error {
 public:
  // `place`: file, line and full key, as messages begin. `meant`: how the message goes on.
  UnknownKey(const std::string& key, const std::string& place, const std::string& meant)
      : Error(ErrorKind::kInput, place + ": unknown key" + meant), key_(key), place_(place) {}
  const std::string& key() const { return key_; }
  const std::string& place() const { return place_; }

 private:
  std::string key_, place_;
};

// "; did you mean 'train.optimizer.lr'?" for the full key "train.lr": among `siblings`, the names that its group has,
// and `all` full keys. "; known here: ..." where nothing is near.
std::string meant_keys(const std::string& key, const std::vector<std::string>& siblings,
                       const std::vector<std::string>& all);

}  // namespace vmoba
