#include "model/text/hunyuan_text_encoder.h"

#include "model/text/pooled_text.h"
#include "model/text/prompt_language.h"

namespace vmoba::model {
namespace {

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

class HunyuanTextEncoder : public TextEncoder {
 public:
  HunyuanTextEncoder(const TextEncoderConfig& config, at::Device device, at::Device output)
      : language_(config, llama_template(), device),
        pooled_(config, device),
        max_tokens_(config.max_tokens),
        output_(output) {}

  int64_t dim() const override { return language_.width(); }
  int64_t max_tokens() const override { return max_tokens_; }

  TextEmbedding encode(const std::vector<std::string>& prompts) const override {
    TextEmbedding out = encode_prompts(language_, prompts, max_tokens_, output_);
    out.pooled_BP = pooled_.encode(prompts, output_);
    return out;
  }

 private:
  PromptLanguage language_;
  PooledText pooled_;
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
  check_parts(
      {[&] { width = PromptLanguage::check(config, llama_template()).width; }, [&] { PooledText::check(config); }});
  return width;
}

TokenCounter hunyuan_token_counter(const TextEncoderConfig& config) {
  return prompt_token_counter(config, llama_template());
}

std::vector<std::string> hunyuan_text_files(const TextEncoderConfig& config) {
  std::vector<std::string> files = PromptLanguage::files(config, llama_template());
  for (const std::string& file : PooledText::files(config)) files.push_back(file);
  return files;
}

}  // namespace vmoba::model
