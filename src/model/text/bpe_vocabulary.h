// A byte-level BPE vocabulary, read from any of the three forms in which it is published. In the two JSON forms each
// byte of a token stands as one printable character (GPT-2's table: a blank is "Ġ").
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/text/special_tokens.h"

namespace vmoba::model {

struct BpeVocabulary {
  struct Merge {
    int64_t rank = 0;  // the least is applied first
    int64_t id = 0;    // of the result
  };

  std::array<int64_t, 256> byte_ids = {};  // of single bytes
  std::array<int64_t, 256> last_ids = {};  // of bytes that end a piece; the same without an end-of-word mark
  std::unordered_map<uint64_t, Merge> merges;
  // A piece that is a token is taken whole, whatever merges would make of it; empty where the vocabulary does not say
  // so. Keys are bytes.
  std::unordered_map<std::string, int64_t> whole_pieces;
  SpecialTokens specials;             // looked for in the text as it is
  SpecialTokens normalized_specials;  // and in what normalisation makes of it
  int64_t size = 0;                   // one more than the largest id

  static uint64_t pair(int64_t left, int64_t right) { return uint64_t(left) << 32 | uint64_t(right); }
};

// What a reader must know that the files do not say.
struct BpeNaming {
  std::string end_of_word = {};            // stands behind the last byte of a piece: CLIP's "</w>"
  std::vector<std::string> specials = {};  // tokens behind the ranks or, without a tokenizer_config.json, vocab.json
};

// `origin` names the file in messages. All throw Error(kInput) where a text is damaged, lacks a byte or holds ids or
// merges that cannot be.

// tokenizer.json of the `tokenizers` package. Its normaliser and pattern are not read: they belong to the kind.
BpeVocabulary read_bpe_json(std::string_view text, const std::string& origin, const BpeNaming& naming);

// vocab.json, merges.txt and tokenizer_config.json; `config` is empty where there is none.
BpeVocabulary read_bpe_pair(std::string_view vocab, std::string_view merges, std::string_view config,
                            const std::string& origin, const BpeNaming& naming);

// tiktoken's ranks: a token in base64 and its rank in each line.
BpeVocabulary read_bpe_ranks(std::string_view text, const std::string& origin, const BpeNaming& naming);

}  // namespace vmoba::model
