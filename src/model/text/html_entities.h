// HTML character references, with the rules of Python's html.unescape.
#pragma once
#include <string>
#include <string_view>

namespace vmoba::model {

// `&#65;`, `&#x41;`, the named references of HTML 4, and HTML 5's names of ASCII characters (`&apos;`, `&comma;`), also
// without the semicolon where HTML 5 allows it (`&amp`, `&copy`). HTML 5's other names are left as they are.
std::u32string unescape_html(std::u32string_view text);

// Only what ends in a semicolon; also names written in capitals (`&NTILDE;`): the rules of ftfy's unescape_html.
std::u32string unescape_html_strictly(std::u32string_view text);

// What the C1 control characters U+0080 to U+009F were in Windows-1252; other characters as they are.
char32_t from_windows1252(char32_t c);

}  // namespace vmoba::model
