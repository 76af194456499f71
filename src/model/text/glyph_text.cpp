#include "model/text/glyph_text.h"

#include <algorithm>
#include <string_view>

#include "model/text/utf8.h"

namespace vmoba::model {
namespace {

constexpr const char* kStraight = "\"";
constexpr const char* kOpening = "\u201C";
constexpr const char* kClosing = "\u201D";
constexpr int64_t kFirstByte = 3, kEnd = 1;  // 0 is padding, 2 unknown

}  // namespace

std::vector<std::string> quoted_pieces(const std::string& prompt) {
  std::vector<std::string> pieces;
  const std::string_view text = prompt;
  for (size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const bool straight = rest.starts_with(kStraight), curly = rest.starts_with(kOpening);
    const std::string_view mark = straight ? kStraight : kOpening, closing = straight ? kStraight : kClosing;
    const size_t end = straight || curly ? rest.find(closing, mark.size()) : std::string_view::npos;
    if (end == std::string_view::npos || rest.substr(0, end).find('\n') != std::string_view::npos) {
      ++at;
      continue;
    }
    const std::string piece(rest.substr(mark.size(), end - mark.size()));
    if (std::find(pieces.begin(), pieces.end(), piece) == pieces.end()) pieces.push_back(piece);
    at += end + closing.size();
  }
  return pieces;
}

std::string glyph_text(const std::string& prompt) {
  std::string out;
  for (const std::string& piece : quoted_pieces(prompt)) out += "Text \"" + piece + "\". ";
  return out;
}

std::vector<int64_t> byt5_ids(const std::string& text, int64_t max_tokens) {
  std::vector<int64_t> ids;
  for (const char byte : encode_utf8(decode_utf8(text))) ids.push_back(kFirstByte + static_cast<uint8_t>(byte));
  ids.resize(std::min(ids.size(), size_t(max_tokens - 1)));
  ids.push_back(kEnd);
  return ids;
}

}  // namespace vmoba::model
