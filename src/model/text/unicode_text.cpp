#include "model/text/unicode_text.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>

#include "core/check.h"
#include "model/text/utf8.h"

namespace vmoba::model {
namespace {

constexpr char32_t kCapitalDottedI = 0x130;

// The property White_Space.
bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace

std::string compose(std::string_view text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t bytes =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), utf8proc_ssize_t(text.size()), &out,
                   utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(out, &std::free);
  VMOBA_CHECK(bytes >= 0, "expected utf8proc to compose a text of {} bytes, found: {}", text.size(),
              utf8proc_errmsg(bytes));
  return {reinterpret_cast<const char*>(out), size_t(bytes)};
}

std::string lower_case(std::string_view text) {
  std::u32string out;
  for (const char32_t c : decode_utf8(text)) {
    // The only character whose lower case is two characters.
    if (c == kCapitalDottedI)
      out += U"i\u0307";
    else
      out += char32_t(utf8proc_tolower(utf8proc_int32_t(c)));
  }
  return encode_utf8(out);
}

std::string single_blanks(std::string_view text) {
  std::u32string out;
  bool inside = false;
  for (const char32_t c : decode_utf8(text)) {
    const bool blank = is_white_space(c);
    if (!blank || !inside) out += blank ? U' ' : c;
    inside = blank;
  }
  return encode_utf8(out);
}

}  // namespace vmoba::model
