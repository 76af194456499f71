#include "model/text_encoder.h"

#include "core/check.h"
#include "core/registry.h"
#include "model/long_captions.h"
#include "model/text/hash_text_encoder.h"
#include "model/text/umt5_text_encoder.h"

namespace vmoba::model {
namespace {

struct TextEncoderKind {
  std::unique_ptr<TextEncoder> (*make)(const TextEncoderConfig&, at::Device);
  int64_t (*check)(const TextEncoderConfig&);
  std::vector<std::string> (*files)(const TextEncoderConfig&);
  TokenCounter (*counter)(const TextEncoderConfig&);
};

std::vector<std::string> no_files(const TextEncoderConfig&) {
  return {};
}

// One line per text encoder.
const Registry<TextEncoderKind>& text_encoders() {
  static const Registry<TextEncoderKind> table(
      "text.type", {{"hash", {make_hash_text_encoder, check_hash_text_encoder, no_files, hash_token_counter}},
                    {"umt5", {make_umt5_text_encoder, check_umt5_text_encoder, umt5_files, umt5_token_counter}}});
  return table;
}

}  // namespace

void TextEncoderConfig::visit(ConfigVisitor& v) {
  v.field("type", type,
          "Captions to embeddings. `hash`: deterministic hashed words, nothing to download; `umt5`: Wan's UMT5-XXL.",
          one_of(text_encoders().names()));
  v.field(
      "weights", weights,
      "Pretrained encoder: a diffusers model or its text_encoder/ folder, or a safetensors file (ComfyUI's, fp8_scaled "
      "too, or the original repository's converted); empty for `hash`.");
  v.field(
      "tokenizer", tokenizer,
      "SentencePiece model of `umt5`: spiece.model or its folder; empty: inside ComfyUI's file or near the weights.");
  v.field("device", device, "Where the weights of `umt5` live and compute; `auto`: where the run does.",
          one_of({"auto", "cpu", "cuda"}));
  v.field("dtype", dtype, "Type of the weights of `umt5`: 11.4 GB in bf16, twice that in fp32.",
          one_of({"bf16", "fp32"}));
  v.field("max_tokens", max_tokens, "Tokens of a prompt; longer ones are cut, shorter ones padded with zeros.",
          between(1, 4096));
  v.field("dim", dim, "Width of the embeddings of `hash`; must equal model.text_dim.", between(1, 65536));
}

std::unique_ptr<TextEncoder> make_text_encoder(const TextEncoderConfig& config, at::Device device) {
  return text_encoders().find(config.type).make(config, device);
}

int64_t check_text_encoder(const TextEncoderConfig& config) {
  return text_encoders().find(config.type).check(config);
}

std::vector<std::string> text_encoder_files(const TextEncoderConfig& config) {
  return text_encoders().find(config.type).files(config);
}

int64_t count_long_captions(const TextEncoderConfig& config, const std::vector<std::string>& captions) {
  TokenCounter count;
  int64_t out = 0;
  for (const std::string& caption : captions) {
    if (int64_t(caption.size()) + 2 <= config.max_tokens) continue;  // a byte or more each, but for two
    try {
      if (!count) count = text_encoders().find(config.type).counter(config);
    } catch (const Error&) {
      return 0;
    }
    out += count(caption) > config.max_tokens ? 1 : 0;
  }
  return out;
}

}  // namespace vmoba::model
