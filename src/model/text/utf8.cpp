#include "model/text/utf8.h"

#include <cstdint>

#include "core/utf8.h"

namespace vmoba::model {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

bool is_scalar(char32_t c) {
  return c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
}

// The code point of a well-formed character.
char32_t decode_one(std::string_view character) {
  const auto lead = static_cast<uint8_t>(character[0]);
  char32_t value = character.size() == 1 ? lead : lead & (0xFFu >> (character.size() + 1));
  for (const char byte : character.substr(1)) value = value << 6 | (static_cast<uint8_t>(byte) & 0x3Fu);
  return value;
}

}  // namespace

std::u32string decode_utf8(std::string_view bytes) {
  std::u32string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const size_t count = utf8_character(bytes.substr(at));
    out += count > 0 ? decode_one(bytes.substr(at, count)) : kReplacement;
    at += count > 0 ? count : 1;
  }
  return out;
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t value : text) {
    const char32_t c = is_scalar(value) ? value : kReplacement;
    if (c < 0x80) {
      out += char(c);
      continue;
    }
    const int tail = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    out += char(uint8_t((0xFF00u >> (tail + 1)) & 0xFF) | uint8_t(c >> (6 * tail)));
    for (int i = tail - 1; i >= 0; --i) out += char(0x80 | (c >> (6 * i) & 0x3F));
  }
  return out;
}

}  // namespace vmoba::model
