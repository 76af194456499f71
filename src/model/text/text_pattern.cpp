#include "model/text/text_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/check.h"

namespace vmoba::model {
namespace {

std::string message_of(int error) {
  constexpr size_t kMessageBytes = 256;
  PCRE2_UCHAR message[kMessageBytes];
  pcre2_get_error_message(error, message, kMessageBytes);
  return reinterpret_cast<const char*>(message);
}

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

}  // namespace

struct TextPattern::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

TextPattern::TextPattern(const std::string& pattern) : code_(std::make_unique<Code>()) {
  int error = 0;
  PCRE2_SIZE at = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                              &error, &at, nullptr);
  VMOBA_CHECK(code_->code != nullptr, "expected a regular expression, found '{}': {} at {}", pattern, message_of(error),
              at);
}

TextPattern::TextPattern(TextPattern&&) noexcept = default;
TextPattern& TextPattern::operator=(TextPattern&&) noexcept = default;
TextPattern::~TextPattern() = default;

std::vector<std::string_view> TextPattern::matches(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(code_->code, nullptr));
  VMOBA_CHECK(match != nullptr, "expected memory for a match, found none");
  std::vector<std::string_view> out;
  for (size_t at = 0; at < text.size();) {
    const int found = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    VMOBA_CHECK(found >= 0, "expected PCRE2 to split a text of {} bytes, found: {}", text.size(), message_of(found));
    const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer(match.get());
    VMOBA_CHECK(ends[1] > at, "expected a pattern that matches no empty text, found a match of nothing at {}", at);
    out.push_back(text.substr(ends[0], ends[1] - ends[0]));
    at = ends[1];
  }
  return out;
}

}  // namespace vmoba::model
