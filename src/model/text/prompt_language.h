// A caption inside a chat template through a language model: what HunyuanVideo's text encoders have in common. The
// states of the template's beginning are dropped, those of the caption and of what follows it are kept.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/long_captions.h"
#include "model/text/bpe_tokenizer.h"
#include "model/text/llama_encoder.h"
#include "model/text_encoder.h"

namespace vmoba::model {

struct PromptTemplate {
  LlamaKind kind;
  BpeRules rules;
  std::string begin = {};    // special token before all
  std::string before = {};   // its tokens, with `begin`, are dropped
  std::string behind = {};   // the tokens behind the caption, which are kept
  std::string nothing = {};  // stands for an empty caption
};

// Folder or file of the language model: text.weights or the folder text_encoder/ in it. Throws Error(kInput).
std::string language_weights(const TextEncoderConfig& config, const PromptTemplate& prompt);

// `path`, or a place near `weights`, a folder or file, where a tokenizer in a folder named `part` lies. `key` is what
// the user sets. Throws Error(kInput).
std::string tokenizer_near(const std::string& path, const std::string& weights, const std::string& part,
                           const std::string& key);

// Folder or file of a second encoder: text.weights_2, or the folder `part` in or beside that of text.weights. `title`
// says what it is. Throws Error(kInput).
std::string second_weights(const TextEncoderConfig& config, const std::string& part, const std::string& title);

// Where a pretrained encoder computes (text.device) in a run on `run`. Throws Error(kInput).
at::Device encoder_device(const TextEncoderConfig& config, at::Device run);

// Does every check, so that a user learns of all that is missing at once: one Error(kInput) of all their messages.
void check_parts(const std::vector<std::function<void()>>& checks);

// The files of weights at a folder or file, and the config.json in the folder, whose numbers enter the states.
std::vector<std::string> weight_and_config_files(const std::string& weights);

// A tokenizer whose tokens the encoder's embedding does not have is refused.
void check_vocabulary(const BpeTokenizer& tokenizer, int64_t words, const std::string& key);

class PromptLanguage {
 public:
  PromptLanguage(const TextEncoderConfig& config, const PromptTemplate& prompt, at::Device device);
  // What the constructor checks, from headers alone.
  static LlamaShape check(const TextEncoderConfig& config, const PromptTemplate& prompt);
  static std::vector<std::string> files(const TextEncoderConfig& config, const PromptTemplate& prompt);

  int64_t width() const { return encoder_.shape().width; }
  // Of template and caption, cut so that at most `max_tokens` are kept.
  std::vector<int64_t> ids(const std::string& caption, int64_t max_tokens) const;
  // [X, E] of ids(): the states behind the dropped ones.
  at::Tensor encode(const std::vector<int64_t>& ids) const;
  // [L, E], the dropped ones as well; for `picture_IE` see LlamaEncoder::forward.
  at::Tensor states(const std::vector<int64_t>& ids, const at::Tensor& picture_IE, int64_t place) const;
  int64_t special(const std::string& token) const { return tokenizer_.special(token); }
  int64_t dropped() const { return dropped_; }  // tokens of the template before the caption

 private:
  PromptTemplate prompt_;
  BpeTokenizer tokenizer_;
  LlamaEncoder encoder_;
  int64_t dropped_;
};

// Tokens of a caption that are kept, with those behind it. Loads the tokenizer alone.
TokenCounter prompt_token_counter(const TextEncoderConfig& config, const PromptTemplate& prompt);

// Each prompt at its own length: tokens, padded with zeros, and lengths. Equal prompts are computed once.
TextEmbedding encode_prompts(const PromptLanguage& language, const std::vector<std::string>& prompts,
                             int64_t max_tokens, at::Device device);

}  // namespace vmoba::model
