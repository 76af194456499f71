#include "model/text/hunyuan15_text_encoder.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "model/text/glyph_text.h"
#include "model/text/prompt_language.h"
#include "model/text/t5_encoder.h"

// Shape letters: B prompts, L tokens, E width, J glyph tokens, U glyph width.
namespace vmoba::model {
namespace {

constexpr const char* kGlyphKey = "text.weights_2";
constexpr const char* kGlyphFolder = "text_encoder_2";
constexpr int64_t kMaxGlyphs = 256;  // with the end token

// As published (Tencent-Hunyuan/HunyuanVideo-1.5 hyvideo/models/text_encoders/__init__.py). The system message is one
// line; its runs of blanks come from a line that the source continues.
PromptTemplate qwen_template() {
  PromptTemplate prompt{qwen25_vl_kind(), qwen2_rules()};
  prompt.before =
      "<|im_start|>system\nYou are a helpful assistant. Describe the video by detailing the following aspects:"
      "         1. The main content and theme of the video."
      "         2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
      "         3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
      "         4. background environment, light, style and atmosphere."
      "         5. camera angles, movements, and transitions used in the video."
      "<|im_end|>\n<|im_start|>user\n";
  prompt.behind = "<|im_end|>\n<|im_start|>assistant\n";
  prompt.nothing = ' ';
  return prompt;
}

std::string glyph_weights(const TextEncoderConfig& config) {
  return second_weights(config, kGlyphFolder,
                        "the ByT5 glyph encoder of HunyuanVideo 1.5 (diffusers' text_encoder_2/, or "
                        "byt5_small_glyphxl_fp16.safetensors)");
}

class Hunyuan15TextEncoder : public TextEncoder {
 public:
  Hunyuan15TextEncoder(const TextEncoderConfig& config, at::Device device, at::Device output)
      : language_(config, qwen_template(), device),
        glyphs_(WeightFiles(glyph_weights(config), byt5_layouts()), glyph_weights(config), byt5_kind(), at::kFloat,
                device),
        max_tokens_(config.max_tokens),
        output_(output) {}

  int64_t dim() const override { return language_.width(); }
  int64_t max_tokens() const override { return max_tokens_; }

  TextEmbedding encode(const std::vector<std::string>& prompts) const override {
    const at::TensorOptions options(output_);
    TextEmbedding out = encode_prompts(language_, prompts, max_tokens_, output_);
    std::vector<at::Tensor> states;
    std::vector<int64_t> lengths;
    for (const std::string& prompt : prompts) {
      const std::string text = glyph_text(prompt);
      states.push_back(text.empty() ? at::empty({0, glyphs_.shape().width}, options)
                                    : glyphs_.forward(byt5_ids(text, kMaxGlyphs)));
      lengths.push_back(states.back().size(0));
    }
    const int64_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    out.glyphs_BJU = at::zeros({int64_t(prompts.size()), longest, glyphs_.shape().width}, options);
    for (size_t b = 0; b < states.size(); ++b) out.glyphs_BJU[int64_t(b)].narrow(0, 0, lengths[b]).copy_(states[b]);
    out.glyph_length_B = at::tensor(lengths, at::kLong);
    return out;
  }

 private:
  PromptLanguage language_;
  T5Encoder glyphs_;
  int64_t max_tokens_;
  at::Device output_;
};

void check_glyphs(const TextEncoderConfig& config) {
  const std::string weights = glyph_weights(config);
  const T5Shape shape = check_t5(WeightFiles(weights, byt5_layouts()), weights, byt5_kind());
  constexpr int64_t kBytes = 3 + 256;
  VMOBA_CHECK_INPUT(shape.vocabulary >= kBytes, "{}: expected a vocabulary of bytes, at least {}, at '{}', found {}",
                    kGlyphKey, kBytes, weights, shape.vocabulary);
}

}  // namespace

std::unique_ptr<TextEncoder> make_hunyuan15_text_encoder(const TextEncoderConfig& config, at::Device device) {
  check_hunyuan15_text_encoder(config);
  return std::make_unique<Hunyuan15TextEncoder>(config, encoder_device(config, device), device);
}

int64_t check_hunyuan15_text_encoder(const TextEncoderConfig& config) {
  int64_t width = 0;
  check_parts({[&] { width = PromptLanguage::check(config, qwen_template()).width; }, [&] { check_glyphs(config); }});
  return width;
}

TokenCounter hunyuan15_token_counter(const TextEncoderConfig& config) {
  return prompt_token_counter(config, qwen_template());
}

std::vector<std::string> hunyuan15_text_files(const TextEncoderConfig& config) {
  std::vector<std::string> files = PromptLanguage::files(config, qwen_template());
  for (const std::string& file : weight_and_config_files(glyph_weights(config))) files.push_back(file);
  return files;
}

}  // namespace vmoba::model
