#include "model/text/utf8.h"

#include <cstdint>

namespace vmoba::model {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

bool is_scalar(char32_t c) {
  return c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
}

// Bytes of the sequence that `lead` opens; 0 where it opens none.
size_t sequence_bytes(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  if (lead >= 0xF0 && lead < 0xF5) return 4;
  return 0;
}

// The code point at `at`, or a surrogate where the bytes there are malformed.
char32_t decode_one(std::string_view bytes, size_t at, size_t count) {
  constexpr char32_t kMalformed = 0xD800;
  constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const auto lead = static_cast<uint8_t>(bytes[at]);
  if (count == 0 || at + count > bytes.size()) return kMalformed;
  if (count == 1) return lead;
  char32_t value = lead & (0xFFu >> (count + 1));
  for (size_t i = 1; i < count; ++i) {
    const auto byte = static_cast<uint8_t>(bytes[at + i]);
    if ((byte & 0xC0) != 0x80) return kMalformed;
    value = value << 6 | (byte & 0x3Fu);
  }
  return value >= kLeast[count] ? value : kMalformed;
}

}  // namespace

std::u32string decode_utf8(std::string_view bytes) {
  std::u32string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const size_t count = sequence_bytes(static_cast<uint8_t>(bytes[at]));
    const char32_t value = decode_one(bytes, at, count);
    const bool good = is_scalar(value);
    out += good ? value : kReplacement;
    at += good ? count : 1;
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
