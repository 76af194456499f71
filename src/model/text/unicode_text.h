// What Unicode says about texts, where tokenizers need it before they split: composition and case. Texts are
// well-formed UTF-8 (model/text/utf8.h makes any bytes so).
#pragma once
#include <string>
#include <string_view>

namespace vmoba::model {

// Normalization form C: "e" and a combining acute become "é".
std::string compose(std::string_view text);

// Each character by itself: a final sigma is like any other.
std::string lower_case(std::string_view text);

// Each run of white space becomes one blank.
std::string single_blanks(std::string_view text);

}  // namespace vmoba::model
