#include "model/text/text_cleaning.h"

#include <array>
#include <string_view>

#include "model/text/html_entities.h"
#include "model/text/utf8.h"

namespace vmoba::model {
namespace {

// Unicode's White_Space, which is \s of Python's regex package.
bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Halfwidth and fullwidth forms from U+FF5F to U+FFDC; 0 where a place is empty.
constexpr std::array<char16_t, 126> kStandardWidth = {
    0x2985, 0x2986, 0x3002, 0x300C, 0x300D, 0x3001, 0x30FB, 0x30F2, 0x30A1, 0x30A3, 0x30A5, 0x30A7, 0x30A9, 0x30E3,
    0x30E5, 0x30E7, 0x30C3, 0x30FC, 0x30A2, 0x30A4, 0x30A6, 0x30A8, 0x30AA, 0x30AB, 0x30AD, 0x30AF, 0x30B1, 0x30B3,
    0x30B5, 0x30B7, 0x30B9, 0x30BB, 0x30BD, 0x30BF, 0x30C1, 0x30C4, 0x30C6, 0x30C8, 0x30CA, 0x30CB, 0x30CC, 0x30CD,
    0x30CE, 0x30CF, 0x30D2, 0x30D5, 0x30D8, 0x30DB, 0x30DE, 0x30DF, 0x30E0, 0x30E1, 0x30E2, 0x30E4, 0x30E6, 0x30E8,
    0x30E9, 0x30EA, 0x30EB, 0x30EC, 0x30ED, 0x30EF, 0x30F3, 0x3099, 0x309A, 0x1160, 0x1100, 0x1101, 0x11AA, 0x1102,
    0x11AC, 0x11AD, 0x1103, 0x1104, 0x1105, 0x11B0, 0x11B1, 0x11B2, 0x11B3, 0x11B4, 0x11B5, 0x111A, 0x1106, 0x1107,
    0x1108, 0x1121, 0x1109, 0x110A, 0x110B, 0x110C, 0x110D, 0x110E, 0x110F, 0x1110, 0x1111, 0x1112, 0,      0,
    0,      0x1161, 0x1162, 0x1163, 0x1164, 0x1165, 0x1166, 0,      0,      0x1167, 0x1168, 0x1169, 0x116A, 0x116B,
    0x116C, 0,      0,      0x116D, 0x116E, 0x116F, 0x1170, 0x1171, 0x1172, 0,      0,      0x1173, 0x1174, 0x1175};

std::u32string standard_width(char32_t c) {
  if (c == 0x3000) return U" ";
  if (c >= 0xFF01 && c <= 0xFF5E) return {c - 0xFEE0};
  if (c >= 0xFF5F && c <= 0xFFDC) return {kStandardWidth[c - 0xFF5F] != 0 ? kStandardWidth[c - 0xFF5F] : c};
  constexpr std::u32string_view kSigns =
      U"\u00A2\u00A3\u00AC\0\u00A6\u00A5\u20A9\0\u2502\u2190\u2191\u2192\u2193\u25A0\u25CB";
  if (c == 0xFFE3) return U" \u0304";
  if (c >= 0xFFE0 && c <= 0xFFEE && kSigns[c - 0xFFE0] != 0) return {kSigns[c - 0xFFE0]};
  return {c};
}

std::u32string without_ligature(char32_t c) {
  switch (c) {
    case 0x132:
      return U"IJ";
    case 0x133:
      return U"ij";
    case 0x149:
      return U"\u02BCn";
    case 0x1C4:
      return U"D\u017D";
    case 0x1C5:
      return U"D\u017E";
    case 0x1C6:
      return U"d\u017E";
    case 0x1C7:
      return U"LJ";
    case 0x1C8:
      return U"Lj";
    case 0x1C9:
      return U"lj";
    case 0x1CA:
      return U"NJ";
    case 0x1CB:
      return U"Nj";
    case 0x1CC:
      return U"nj";
    case 0x1F1:
      return U"DZ";
    case 0x1F2:
      return U"Dz";
    case 0x1F3:
      return U"dz";
    case 0xFB00:
      return U"ff";
    case 0xFB01:
      return U"fi";
    case 0xFB02:
      return U"fl";
    case 0xFB03:
      return U"ffi";
    case 0xFB04:
      return U"ffl";
    case 0xFB05:
      return U"\u017Ft";
    case 0xFB06:
      return U"st";
    default:
      return {c};
  }
}

char32_t straight_quote(char32_t c) {
  if (c == 0x2BC || (c >= 0x2018 && c <= 0x201B)) return '\'';
  if (c >= 0x201C && c <= 0x201F) return '"';
  return c;
}

// Line breaks of other systems become spaces of any kind in the end, so that only what is no white space matters here.
bool is_stray_control(char32_t c) {
  return c < 0x9 || c == 0xB || (c >= 0xE && c < 0x20) || c == 0x7F || (c >= 0x206A && c <= 0x206F) || c == 0xFEFF ||
         (c >= 0xFFF9 && c <= 0xFFFC);
}

// Drops ESC [ digits and semicolons, letter: the colours of terminals.
std::u32string without_terminal_escapes(std::u32string_view text) {
  std::u32string out;
  for (size_t at = 0; at < text.size(); ++at) {
    size_t end = at + 2;
    const bool opens = text[at] == 0x1B && at + 1 < text.size() && text[at + 1] == '[';
    while (opens && end < text.size() && ((text[end] >= '0' && text[end] <= '9') || text[end] == ';')) ++end;
    const bool letter = opens && end < text.size() &&
                        ((text[end] >= 'A' && text[end] <= 'Z') || (text[end] >= 'a' && text[end] <= 'z'));
    if (letter)
      at = end;
    else
      out += text[at];
  }
  return out;
}

// One round of ftfy's fixes over one line.
std::u32string fix_once(std::u32string_view line, bool unescape) {
  const std::u32string plain = unescape ? unescape_html_strictly(line) : std::u32string(line);
  std::u32string fixed;
  for (const char32_t c : plain)
    for (const char32_t letter : without_ligature(from_windows1252(c)))
      for (const char32_t wide : standard_width(letter)) fixed += straight_quote(wide);
  std::u32string out;
  for (const char32_t c : without_terminal_escapes(fixed))
    if (!is_stray_control(c)) out += c;
  return out;
}

std::u32string fix_line(std::u32string line, bool unescape) {
  for (;;) {
    std::u32string next = fix_once(line, unescape);
    if (next == line) return next;
    line = std::move(next);
  }
}

// ftfy works line by line, and stops unescaping at the first line with a `<`: what follows may be HTML.
std::u32string fix_text(std::u32string_view text) {
  std::u32string out;
  bool unescape = true;
  for (size_t at = 0; at < text.size();) {
    const size_t newline = text.find(U'\n', at);
    const size_t end = newline == std::u32string_view::npos ? text.size() : newline + 1;
    const std::u32string_view line = text.substr(at, end - at);
    unescape = unescape && line.find(U'<') == std::u32string_view::npos;
    out += fix_line(std::u32string(line), unescape);
    at = end;
  }
  return out;
}

std::u32string collapse_spaces(std::u32string_view text) {
  std::u32string out;
  for (const char32_t c : text) {
    if (!is_space(c))
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace

std::string clean_prompt(const std::string& prompt) {
  const std::u32string fixed = fix_text(decode_utf8(prompt));
  return encode_utf8(collapse_spaces(unescape_html(unescape_html(fixed))));
}

}  // namespace vmoba::model
