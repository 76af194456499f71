// Text that is markup, or no text at all, inside a page.
#include <nlohmann/json.hpp>

#include "report/html.h"
#include "support/catch.h"

using namespace vmoba::report;

TEST_CASE("text stays text") {
  CHECK(html_text("a <b> & \"c\" 'd'") == "a &lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
  CHECK(html_text("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x8E\xAC") == "\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x8E\xAC");
  CHECK(html_text("line\n\ttab") == "line\n\ttab");
}

TEST_CASE("bytes that are no UTF-8, and control characters, are replaced") {
  const std::string replaced = "\xEF\xBF\xBD";
  CHECK(html_text("\xFF") == replaced);
  CHECK(html_text("a\xC3") == "a" + replaced);                             // cut short
  CHECK(html_text("\xC0\xBC") == replaced + replaced);                     // '<' in two bytes
  CHECK(html_text("\xED\xA0\x80").find('\xED') == std::string::npos);      // half of a surrogate pair
  CHECK(html_text("\xF5\x80\x80\x80").find('\xF5') == std::string::npos);  // beyond U+10FFFF
  CHECK(html_text(std::string("a\0b\x1B", 4)) == "a" + replaced + "b" + replaced);
  CHECK(html_text("\xC3<script>") == replaced + "&lt;script&gt;");  // the byte takes nothing with it
}

TEST_CASE("JSON inside a script ends no script") {
  const nlohmann::json value = {{"name", "</script><script>alert(1)</script><!-- & \xFF"}};
  const std::string text = script_json(value);
  CHECK(text.find('<') == std::string::npos);
  CHECK(text.find('>') == std::string::npos);
  CHECK(nlohmann::json::parse(text)["name"] == "</script><script>alert(1)</script><!-- & \xEF\xBF\xBD");
}

TEST_CASE("data URIs are RFC 4648's base64") {
  CHECK(data_uri("image/jpeg", "") == "data:image/jpeg;base64,");
  CHECK(data_uri("a/b", "f") == "data:a/b;base64,Zg==");
  CHECK(data_uri("a/b", "fo") == "data:a/b;base64,Zm8=");
  CHECK(data_uri("a/b", "foo") == "data:a/b;base64,Zm9v");
  CHECK(data_uri("a/b", "foobar") == "data:a/b;base64,Zm9vYmFy");
  CHECK(data_uri("a/b", "\xFB\xFF\xFE") == "data:a/b;base64,+//+");
}
