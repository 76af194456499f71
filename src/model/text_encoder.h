// Prompts -> embeddings. Implementations: `hash` (deterministic hashed words, no download) and, pretrained, `umt5`,
// `hunyuan` and `hunyuan_15`.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "model/conditions.h"

namespace vmoba::model {

// The `text:` group.
struct TextEncoderConfig {
  std::string type = "hash";
  std::string weights;          // file or folder of a pretrained encoder
  std::string tokenizer;        // its file or folder; empty: looked for near the weights
  std::string weights_2;        // of an encoder that is two; empty: looked for near `weights`
  std::string tokenizer_2;      // empty: looked for near `weights_2`
  std::string device = "auto";  // auto | cpu | cuda: where a pretrained encoder lives; auto: where the run computes
  std::string dtype = "bf16";   // bf16 | fp32: of a pretrained encoder
  int64_t max_tokens = 512;     // L: longer prompts are cut, shorter ones padded with zeros; published_max_tokens
  int64_t dim = 4096;           // E of the `hash` encoder; must equal model.text_dim
  int64_t pooled_dim = 0;       // P of the `hash` encoder; 0: no pooled text

  void visit(ConfigVisitor& v);
};

class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  virtual int64_t dim() const = 0;         // E
  virtual int64_t max_tokens() const = 0;  // L
  // One sample for each prompt, all L tokens long, with their lengths. "" is the unconditional prompt. No gradients.
  virtual TextEmbedding encode(const std::vector<std::string>& prompts) const = 0;
};

std::unique_ptr<TextEncoder> make_text_encoder(const TextEncoderConfig& config, at::Device device);

// Width E of the configured encoder's embeddings. Reads headers only, and throws Error(kInput) where make_text_encoder
// would.
int64_t check_text_encoder(const TextEncoderConfig& config);

// L of the published model; the configuration's default.
int64_t published_max_tokens(const TextEncoderConfig& config);

// The files on which the embeddings depend, weights and tokenizer; none for `hash`. Throws Error(kInput) where they are
// missing.
std::vector<std::string> text_encoder_files(const TextEncoderConfig& config);

}  // namespace vmoba::model
