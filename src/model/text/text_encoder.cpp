#include "model/text_encoder.h"

#include <algorithm>

#include "core/check.h"
#include "core/registry.h"
#include "model/image_text_encoder.h"
#include "model/long_captions.h"
#include "model/text/hash_text_encoder.h"
#include "model/text/hunyuan15_text_encoder.h"
#include "model/text/hunyuan_i2v_text_encoder.h"
#include "model/text/hunyuan_text_encoder.h"
#include "model/text/umt5_text_encoder.h"

namespace vmoba::model {
namespace {

struct TextEncoderKind {
  std::unique_ptr<TextEncoder> (*make)(const TextEncoderConfig&, at::Device);
  int64_t (*check)(const TextEncoderConfig&);
  std::vector<std::string> (*files)(const TextEncoderConfig&);
  TokenCounter (*counter)(const TextEncoderConfig&);            // of captions, without the weights
  int64_t max_tokens = 512;                                     // as published
  void (*visit)(TextEncoderConfig&, ConfigVisitor&) = nullptr;  // keys of its own
  bool sees_images = false;                                     // an ImageTextEncoder
};

// A token has a byte or more, but for those around a caption. Beyond ASCII normalisation may add characters.
constexpr int64_t kTokensAround = 16;

bool is_ascii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

std::vector<std::string> no_files(const TextEncoderConfig&) {
  return {};
}

void visit_hash(TextEncoderConfig& config, ConfigVisitor& v) {
  v.field("pooled_dim", config.pooled_dim,
          "Width of the pooled text of `hash`; model.pooled_dim of a model that takes one, 0: none.",
          between(0, 65536));
}

void visit_clip(TextEncoderConfig& config, ConfigVisitor& v) {
  v.field("weights_2", config.weights_2,
          "CLIP-L's text model: a diffusers model or its text_encoder_2/ folder, or clip_l.safetensors; empty: "
          "text_encoder_2/ near `weights`.");
  v.field("tokenizer_2", config.tokenizer_2,
          "Its tokenizer: a folder with tokenizer.json, or vocab.json and merges.txt; empty: near `weights_2`.");
}

void visit_glyphs(TextEncoderConfig& config, ConfigVisitor& v) {
  v.field("weights_2", config.weights_2,
          "The ByT5 glyph encoder: a diffusers model or its text_encoder_2/ folder, or "
          "byt5_small_glyphxl_fp16.safetensors; empty: text_encoder_2/ near `weights`.");
}

TextEncoderKind hunyuan_i2v_kind() {
  return {make_hunyuan_i2v_text_encoder,
          check_hunyuan_i2v_text_encoder,
          hunyuan_i2v_text_files,
          hunyuan_i2v_token_counter,
          256,
          visit_clip,
          /*sees_images=*/true};
}

// One line per text encoder.
const Registry<TextEncoderKind>& text_encoders() {
  static const Registry<TextEncoderKind> table(
      "text.type",
      {{"hash", {make_hash_text_encoder, check_hash_text_encoder, no_files, hash_token_counter, 512, visit_hash}},
       {"hunyuan",
        {make_hunyuan_text_encoder, check_hunyuan_text_encoder, hunyuan_text_files, hunyuan_token_counter, 256,
         visit_clip}},
       {"hunyuan_i2v", hunyuan_i2v_kind()},
       {"hunyuan_i2v_concat", hunyuan_i2v_kind()},
       {"hunyuan_15",
        {make_hunyuan15_text_encoder, check_hunyuan15_text_encoder, hunyuan15_text_files, hunyuan15_token_counter, 1000,
         visit_glyphs}},
       {"umt5", {make_umt5_text_encoder, check_umt5_text_encoder, umt5_files, umt5_token_counter}}});
  return table;
}

}  // namespace

void TextEncoderConfig::visit(ConfigVisitor& v) {
  v.field(
      "type", type,
      "Captions to embeddings. `hash`: deterministic hashed words, nothing to download; `umt5`: Wan's UMT5-XXL; "
      "`hunyuan`: HunyuanVideo's LLaMA-3 8B and CLIP-L; `hunyuan_i2v` and `hunyuan_i2v_concat`: the same with LLaVA's "
      "view of the first frame, of HunyuanVideo image-to-video by token replace and by concat; `hunyuan_15`: "
      "HunyuanVideo 1.5's Qwen2.5-VL 7B and ByT5.",
      one_of(text_encoders().names()));
  v.field(
      "weights", weights,
      "Pretrained encoder: a diffusers model or its text_encoder/ folder, or a safetensors file (ComfyUI's, fp8_scaled "
      "too, or the original repository's converted); empty for `hash`.");
  v.field("tokenizer", tokenizer,
          "Its file or folder: spiece.model of `umt5`; tokenizer.json, vocab.json with merges.txt, or tiktoken's "
          "ranks of the others. Empty: inside ComfyUI's file or near the weights.");
  v.field("device", device, "Where a pretrained encoder's weights live and compute; `auto`: where the run does.",
          one_of({"auto", "cpu", "cuda"}));
  v.field("dtype", dtype,
          "Type of the weights: in bf16 11.4 GB of `umt5` and 14.1 GB of the HunyuanVideos', twice that in fp32.",
          one_of({"bf16", "fp32"}));
  v.field("max_tokens", max_tokens,
          "Tokens of a prompt; longer ones are cut, shorter ones padded with zeros. Without the key as published: 256 "
          "of `hunyuan` and its image-to-video, 1000 of `hunyuan_15`, else 512.",
          between(1, 4096));
  v.field("dim", dim, "Width of the embeddings of `hash`; must equal model.text_dim.", between(1, 65536));
  std::vector<ConfigVisitor::Kind> kinds;
  for (const std::string& name : text_encoders().names())
    if (const auto visit = text_encoders().find(name).visit; visit != nullptr)
      kinds.push_back({name, [this, visit](ConfigVisitor& own) { visit(*this, own); }});
  v.kind_fields("type", type, kinds);
}

std::unique_ptr<TextEncoder> make_text_encoder(const TextEncoderConfig& config, at::Device device) {
  return text_encoders().find(config.type).make(config, device);
}

int64_t check_text_encoder(const TextEncoderConfig& config) {
  return text_encoders().find(config.type).check(config);
}

bool sees_images(const TextEncoderConfig& config) {
  return text_encoders().find(config.type).sees_images;
}

TextEmbedding encode_text(const TextEncoder& encoder, const std::vector<std::string>& prompts,
                          const at::Tensor& images_BCHW) {
  const auto* const seeing = dynamic_cast<const ImageTextEncoder*>(&encoder);
  if (seeing == nullptr || !seeing->sees_images()) return encoder.encode(prompts);
  VMOBA_CHECK_INPUT(images_BCHW.defined(),
                    "expected a first frame for a text encoder that sees it (text.type), found none; give --image, or "
                    "set model.task to i2v");
  return seeing->encode_beside(prompts, images_BCHW);
}

int64_t published_max_tokens(const TextEncoderConfig& config) {
  return text_encoders().find(config.type).max_tokens;
}

std::vector<std::string> text_encoder_files(const TextEncoderConfig& config) {
  return text_encoders().find(config.type).files(config);
}

int64_t count_long_captions(const TextEncoderConfig& config, const std::vector<std::string>& captions) {
  const auto counter = text_encoders().find(config.type).counter;
  TokenCounter count;
  int64_t out = 0;
  for (const std::string& caption : captions) {
    if (is_ascii(caption) && int64_t(caption.size()) + kTokensAround <= config.max_tokens) continue;
    try {
      if (!count) count = counter(config);
    } catch (const Error&) {
      return 0;
    }
    out += count(caption) > config.max_tokens ? 1 : 0;
  }
  return out;
}

}  // namespace vmoba::model
