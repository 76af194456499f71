// What Wan's pipelines do to a prompt before it is tokenised (diffusers' prompt_clean, the original repository's
// whitespace_clean): ftfy.fix_text, html.unescape twice, every run of white space one space, none at the ends.
//
// Of ftfy (6.3) these fixes are here: HTML references, C1 characters, terminal colours, Latin ligatures, fullwidth and
// halfwidth forms, curly quotes to straight ones, stray control characters. Left out: the repair of mojibake (text
// decoded in a wrong encoding), and NFC, which the NFKC inside UMT5's SentencePiece model includes.
#pragma once
#include <string>

namespace vmoba::model {

// UTF-8 in and out; bytes that are none become U+FFFD.
std::string clean_prompt(const std::string& prompt);

}  // namespace vmoba::model
