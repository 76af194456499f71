#include "model/text/special_tokens.h"

#include <algorithm>

namespace vmoba::model {

std::optional<int64_t> SpecialTokens::id(const std::string& content) const {
  const auto found = ids_.find(content);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

int64_t SpecialTokens::end() const {
  int64_t end = 0;
  for (const auto& [content, id] : ids_) end = std::max(end, id + 1);
  return end;
}

void SpecialTokens::split(std::string_view text, const std::function<void(std::string_view)>& plain,
                          const std::function<void(int64_t)>& special) const {
  size_t begin = 0;  // of the stretch at hand
  for (size_t at = 0; at < text.size();) {
    // Contents that begin with the same byte follow each other.
    auto longest = ids_.end();
    for (auto token = ids_.lower_bound(text.substr(at, 1)); token != ids_.end() && token->first[0] == text[at]; ++token)
      if (text.substr(at).starts_with(token->first) &&
          (longest == ids_.end() || token->first.size() > longest->first.size()))
        longest = token;
    if (longest == ids_.end()) {
      ++at;
      continue;
    }
    if (at > begin) plain(text.substr(begin, at - begin));
    special(longest->second);
    at += longest->first.size();
    begin = at;
  }
  if (begin < text.size()) plain(text.substr(begin));
}

}  // namespace vmoba::model
