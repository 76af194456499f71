// Tokens that are cut out of a text before it is tokenised: "<|eot_id|>", "</s>". Where several begin at one place, the
// longest counts.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace vmoba::model {

class SpecialTokens {
 public:
  // The last id given to a content counts.
  void add(const std::string& content, int64_t id) { ids_[content] = id; }
  std::optional<int64_t> id(const std::string& content) const;
  bool empty() const { return ids_.empty(); }
  // One more than the largest id; 0 without tokens.
  int64_t end() const;

  // Goes through `text` from left to right: `plain` gets the stretches between tokens, none of them empty, `special`
  // the ids of the tokens.
  void split(std::string_view text, const std::function<void(std::string_view)>& plain,
             const std::function<void(int64_t)>& special) const;

 private:
  std::map<std::string, int64_t, std::less<>> ids_;
};

}  // namespace vmoba::model
