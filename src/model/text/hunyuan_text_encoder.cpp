#include "model/text/hunyuan_text_encoder.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "model/text/clip_text_encoder.h"
#include "model/text/prompt_language.h"

// Shape letters: B prompts, L tokens, E width, P width of the pooled vector.
namespace vmoba::model {
namespace {

constexpr const char* kClipKey = "text.weights_2";
constexpr const char* kClipTokenizerKey = "text.tokenizer_2";
constexpr const char* kClipFolder = "text_encoder_2";
constexpr const char* kClipTokenizerFolder = "tokenizer_2";
constexpr const char* kClipBegin = "<|startoftext|>";
constexpr const char* kClipEnd = "<|endoftext|>";

// As published (Tencent-Hunyuan/HunyuanVideo hyvideo/constants.py, diffusers' DEFAULT_PROMPT_TEMPLATE).
PromptTemplate llama_template() {
  PromptTemplate prompt{llama3_kind(), llama3_rules()};
  prompt.begin = "<|begin_of_text|>";
  prompt.before =
      "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
      "1. The main content and theme of the video."
      "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
      "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
      "4. background environment, light, style and atmosphere."
      "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\n";
  prompt.behind = "<|eot_id|>";
  return prompt;
}

std::string clip_weights(const TextEncoderConfig& config) {
  return second_weights(config, kClipFolder, "CLIP-L's text model (diffusers' text_encoder_2/, or clip_l.safetensors)");
}

std::string clip_tokenizer_place(const TextEncoderConfig& config) {
  return tokenizer_near(config.tokenizer_2, clip_weights(config), kClipTokenizerFolder, kClipTokenizerKey);
}

BpeTokenizer clip_tokenizer(const TextEncoderConfig& config) {
  return BpeTokenizer::load(clip_tokenizer_place(config), kClipTokenizerFolder, clip_rules(), kClipTokenizerKey);
}

void check_clip(const TextEncoderConfig& config) {
  const std::string weights = clip_weights(config);
  const ClipTextShape shape = check_clip_text(WeightFiles(weights, {}), weights, kClipKey);
  check_vocabulary(clip_tokenizer(config), shape.vocabulary, kClipTokenizerKey);
}

class HunyuanTextEncoder : public TextEncoder {
 public:
  HunyuanTextEncoder(const TextEncoderConfig& config, at::Device device, at::Device output)
      : language_(config, llama_template(), device),
        clip_tokenizer_(clip_tokenizer(config)),
        clip_(WeightFiles(clip_weights(config), {}), clip_weights(config), kClipKey, device),
        max_tokens_(config.max_tokens),
        output_(output) {}

  int64_t dim() const override { return language_.width(); }
  int64_t max_tokens() const override { return max_tokens_; }

  TextEmbedding encode(const std::vector<std::string>& prompts) const override {
    TextEmbedding out = encode_prompts(language_, prompts, max_tokens_, output_);
    std::vector<at::Tensor> pooled;
    for (const std::string& prompt : prompts) pooled.push_back(clip_.pooled(clip_ids(prompt)).to(output_));
    out.pooled_BP = at::stack(pooled);
    return out;
  }

 private:
  // Begin, the caption, cut where it is too long, and the first end token.
  std::vector<int64_t> clip_ids(const std::string& prompt) const {
    const int64_t end = clip_tokenizer_.special(kClipEnd);
    std::vector<int64_t> ids = clip_tokenizer_.encode(prompt);
    ids.insert(ids.begin(), clip_tokenizer_.special(kClipBegin));
    ids.resize(std::min(ids.size(), size_t(clip_.shape().positions - 1)));
    ids.erase(std::find(ids.begin(), ids.end(), end), ids.end());
    ids.push_back(end);
    return ids;
  }

  PromptLanguage language_;
  BpeTokenizer clip_tokenizer_;
  ClipTextEncoder clip_;
  int64_t max_tokens_;
  at::Device output_;
};

}  // namespace

std::unique_ptr<TextEncoder> make_hunyuan_text_encoder(const TextEncoderConfig& config, at::Device device) {
  check_hunyuan_text_encoder(config);
  return std::make_unique<HunyuanTextEncoder>(config, encoder_device(config, device), device);
}

int64_t check_hunyuan_text_encoder(const TextEncoderConfig& config) {
  int64_t width = 0;
  check_parts({[&] { width = PromptLanguage::check(config, llama_template()).width; }, [&] { check_clip(config); }});
  return width;
}

TokenCounter hunyuan_token_counter(const TextEncoderConfig& config) {
  return prompt_token_counter(config, llama_template());
}

std::vector<std::string> hunyuan_text_files(const TextEncoderConfig& config) {
  std::vector<std::string> files = PromptLanguage::files(config, llama_template());
  for (const std::string& file : weight_and_config_files(clip_weights(config))) files.push_back(file);
  for (const std::string& file :
       BpeTokenizer::files(clip_tokenizer_place(config), kClipTokenizerFolder, kClipTokenizerKey))
    files.push_back(file);
  return files;
}

}  // namespace vmoba::model
