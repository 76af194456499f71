// Prompts -> token ids with a SentencePiece model, with the conventions of transformers' T5 tokenizer, which Wan's
// pipelines use for UMT5: words are split at white space and encoded one by one, special tokens written in the prompt
// (`</s>`, `<extra_id_7>`) become their ids, unknown characters become one `<unk>` (not bytes, although UMT5's model
// has byte pieces: transformers' fast tokenizers do not use them), `</s>` closes every prompt.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vmoba::model {

class SentencePieceTokenizer {
 public:
  // `path`: spiece.model, or a folder that holds it (also one level up, where a tokenizer/ folder lies). Sentinel
  // tokens come from the tokenizer_config.json beside it. Throws Error(kInput).
  static SentencePieceTokenizer load(const std::string& path);
  // The files that load reads.
  static std::vector<std::string> files(const std::string& path);
  // `model`: the bytes of a spiece.model; `origin` names it in messages. Sentinels as UMT5 has them.
  static SentencePieceTokenizer from_bytes(const std::string& model, const std::string& origin);

  SentencePieceTokenizer(SentencePieceTokenizer&&) noexcept;
  SentencePieceTokenizer& operator=(SentencePieceTokenizer&&) noexcept;
  ~SentencePieceTokenizer();

  // Ids of at most `max_tokens` tokens, the last one `</s>`. Safe to call from several threads.
  std::vector<int64_t> encode(const std::string& text, int64_t max_tokens) const;
  int64_t vocabulary_size() const;  // pieces and sentinels

 private:
  struct State;
  explicit SentencePieceTokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace vmoba::model
