// A bitmap font for pictures that the programs draw themselves: printable ASCII, 5 x 7 pixels and 2 rows of descenders.
#pragma once
#include <string_view>

namespace vmoba::train {

constexpr int kGlyphWidth = 5, kGlyphHeight = 7, kGlyphDescent = 2, kGlyphAdvance = 6;

// Rows of the glyph from the top, separated by spaces, '#' for ink; 7 to 9 rows. '?' for what is not printable ASCII.
std::string_view glyph_rows(char ch);

}  // namespace vmoba::train
