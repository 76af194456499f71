// UTF-8 <-> code points, for text cleaning.
#pragma once
#include <string>
#include <string_view>

namespace vmoba::model {

// Each byte that does not belong to a well-formed sequence becomes U+FFFD.
std::u32string decode_utf8(std::string_view bytes);
// Surrogates and values past U+10FFFF become U+FFFD.
std::string encode_utf8(std::u32string_view text);

}  // namespace vmoba::model
