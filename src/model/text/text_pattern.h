// A regular expression over Unicode texts (PCRE2 with UTF and UCP), for the rules by which tokenizers split.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace vmoba::model {

class TextPattern {
 public:
  // Throws Error(kRuntime) where PCRE2 does not take the pattern: patterns come from the program.
  explicit TextPattern(const std::string& pattern);
  TextPattern(TextPattern&&) noexcept;
  TextPattern& operator=(TextPattern&&) noexcept;
  ~TextPattern();

  // The matches from left to right, each behind the one before; views of `text`, which is well-formed UTF-8. Safe to
  // call from several threads.
  std::vector<std::string_view> matches(std::string_view text) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace vmoba::model
