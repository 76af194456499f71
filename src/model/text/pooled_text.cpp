#include "model/text/pooled_text.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "model/text/prompt_language.h"

namespace vmoba::model {
namespace {

constexpr const char* kKey = "text.weights_2";
constexpr const char* kTokenizerKey = "text.tokenizer_2";
constexpr const char* kFolder = "text_encoder_2";
constexpr const char* kTokenizerFolder = "tokenizer_2";
constexpr const char* kBegin = "<|startoftext|>";
constexpr const char* kEnd = "<|endoftext|>";

std::string clip_weights(const TextEncoderConfig& config) {
  return second_weights(config, kFolder, "CLIP-L's text model (diffusers' text_encoder_2/, or clip_l.safetensors)");
}

std::string tokenizer_place(const TextEncoderConfig& config) {
  const std::string weights = config.tokenizer_2.empty() ? clip_weights(config) : "";
  return tokenizer_near(config.tokenizer_2, weights, kTokenizerFolder, kTokenizerKey);
}

BpeTokenizer clip_tokenizer(const TextEncoderConfig& config) {
  return BpeTokenizer::load(tokenizer_place(config), kTokenizerFolder, clip_rules(), kTokenizerKey);
}

}  // namespace

PooledText::PooledText(const TextEncoderConfig& config, at::Device device)
    : tokenizer_(clip_tokenizer(config)),
      clip_(WeightFiles(clip_weights(config), {}), clip_weights(config), kKey, device) {}

void PooledText::check(const TextEncoderConfig& config) {
  ClipTextShape shape;
  std::optional<BpeTokenizer> tokenizer;
  check_parts({[&] {
                 const std::string weights = clip_weights(config);
                 shape = check_clip_text(WeightFiles(weights, {}), weights, kKey);
               },
               [&] { tokenizer = clip_tokenizer(config); }});
  check_vocabulary(*tokenizer, shape.vocabulary, kTokenizerKey);
}

std::vector<std::string> PooledText::files(const TextEncoderConfig& config) {
  std::vector<std::string> out = weight_and_config_files(clip_weights(config));
  for (const std::string& file : BpeTokenizer::files(tokenizer_place(config), kTokenizerFolder, kTokenizerKey))
    out.push_back(file);
  return out;
}

at::Tensor PooledText::encode(const std::vector<std::string>& prompts, at::Device output) const {
  std::vector<at::Tensor> pooled;
  for (const std::string& prompt : prompts) pooled.push_back(clip_.pooled(ids(prompt)).to(output));
  return at::stack(pooled);
}

std::vector<int64_t> PooledText::ids(const std::string& prompt) const {
  const int64_t end = tokenizer_.special(kEnd);
  std::vector<int64_t> out = tokenizer_.encode(prompt);
  out.insert(out.begin(), tokenizer_.special(kBegin));
  out.resize(std::min(out.size(), size_t(clip_.shape().positions - 1)));
  out.erase(std::find(out.begin(), out.end(), end), out.end());
  out.push_back(end);
  return out;
}

}  // namespace vmoba::model
