// Texts -> token ids by byte-level BPE (Sennrich et al. 1508.07909 over bytes, as GPT-2 has it), with the ids of the
// `tokenizers` package. A text is cut at special tokens, normalised, split into pieces by a regular expression, and the
// bytes of each piece are merged by rank.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/text/bpe_vocabulary.h"
#include "model/text/text_pattern.h"

namespace vmoba::model {

// What belongs to a family of models and not to its files.
struct BpeRules {
  std::string title;               // in messages
  std::string pattern;             // of pieces
  bool between = true;             // what lies between two matches is a piece, too; else it is dropped
  std::string inner_pattern = {};  // of which each piece is split once more; it leaves nothing between
  bool compose = false;
  bool lower_case = false;  // and single blanks
  BpeNaming naming;
  std::vector<std::string> marks;  // special tokens that every vocabulary of the family has
};
BpeRules llama3_rules();
BpeRules qwen2_rules();
BpeRules clip_rules();

class BpeTokenizer {
 public:
  BpeTokenizer(BpeVocabulary vocabulary, const BpeRules& rules);

  // `path`: tokenizer.json, vocab.json (merges.txt beside it), tiktoken's ranks (tokenizer.model, *.tiktoken), or a
  // folder that holds one of them, itself or in its folder `part`. `key` is what the user sets. Throws Error(kInput),
  // also where the vocabulary lacks a mark of the family.
  static BpeTokenizer load(const std::string& path, const std::string& part, const BpeRules& rules,
                           const std::string& key);
  // Whether the folder itself holds one of them.
  static bool is_in(const std::string& folder);
  // The files that load reads.
  static std::vector<std::string> files(const std::string& path, const std::string& part, const std::string& key);

  // Without begin and end tokens. Each byte of no well-formed UTF-8 counts as U+FFFD. Safe to call from several
  // threads.
  std::vector<int64_t> encode(const std::string& text) const;
  // Throws Error(kInput) where there is no such special token: the vocabulary is another family's.
  int64_t special(const std::string& content) const;
  int64_t vocabulary_size() const { return vocabulary_.size; }

 private:
  std::optional<int64_t> find_special(const std::string& content) const;
  void encode_stretch(std::string_view text, std::vector<int64_t>& out) const;
  void encode_pieces(std::string_view text, std::vector<int64_t>& out) const;
  void encode_piece(std::string_view piece, std::vector<int64_t>& out) const;
  void merge_bytes(std::string_view piece, std::vector<int64_t>& out) const;

  BpeVocabulary vocabulary_;
  BpeRules rules_;
  TextPattern pattern_;
  std::optional<TextPattern> inner_pattern_;
};

}  // namespace vmoba::model
