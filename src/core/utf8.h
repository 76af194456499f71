// The characters of UTF-8 text (RFC 3629).
#pragma once
#include <cstddef>
#include <string_view>

namespace vmoba {

// Bytes of the well-formed character that `text` begins with, 1 to 4; 0 where it begins with none: too long a form, a
// surrogate, a number past U+10FFFF, a torn character, the end.
size_t utf8_character(std::string_view text);

}  // namespace vmoba
