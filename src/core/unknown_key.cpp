#include "core/unknown_key.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "core/config.h"
#include "core/config_text.h"

namespace vmoba {
namespace {

constexpr size_t kMostSuggestions = 3;

std::string last_word(const std::string& key) {
  const size_t dot = key.rfind('.');
  return dot == std::string::npos ? key : key.substr(dot + 1);
}

// Keys and the groups around them.
std::set<std::string> with_groups(const std::vector<std::string>& keys) {
  std::set<std::string> out(keys.begin(), keys.end());
  for (const std::string& key : keys)
    for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1))
      out.insert(key.substr(0, dot));
  return out;
}

std::string question(std::vector<std::string> keys) {
  if (keys.size() > kMostSuggestions) keys.resize(kMostSuggestions);
  return fmt::format("; did you mean '{}'?", fmt::join(keys, "' or '"));
}

// A slip of the fingers, not another word.
bool is_slip(const std::string& word, const std::string& other) {
  return word.size() > 2 && edit_distance(word, other) <= std::max<size_t>(1, word.size() / 4);
}

}  // namespace

std::string meant_keys(const std::string& key, const std::vector<std::string>& siblings,
                       const std::vector<std::string>& all) {
  const std::string word = last_word(key), group = key.substr(0, key.size() - word.size());
  const std::string sibling = nearest_name(word, siblings);
  if (!sibling.empty() && is_slip(word, sibling)) return question({group + sibling});
  std::vector<std::string> same, near;
  for (const std::string& known : with_groups(all)) {
    if (last_word(known) == word) same.push_back(known);
    if (is_slip(word, last_word(known))) near.push_back(known);
  }
  if (!same.empty()) return question(same);
  if (!near.empty()) return question(near);
  return sibling.empty() ? "; known here: " + join(siblings) : question({group + sibling});
}

}  // namespace vmoba
