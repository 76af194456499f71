// Text of any origin inside an HTML page: captions, paths and messages may hold anything, also markup and bytes that
// are no UTF-8. Pure functions of strings.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace vmoba::report {

// As text of an element or value of a quoted attribute: & < > " ' as entities, control characters and bytes that are
// no UTF-8 as U+FFFD.
std::string html_text(std::string_view text);

// JSON as the content of a <script> element: nothing in it ends the element or begins a comment.
std::string script_json(const nlohmann::json& value);

// "data:<kind>;base64,..."
std::string data_uri(std::string_view kind, std::string_view bytes);

}  // namespace vmoba::report
