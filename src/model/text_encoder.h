// Prompts -> embeddings. Implementations: `hash` (deterministic hashed words, no download) and pretrained encoders.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba::model {

// The `text:` group.
struct TextEncoderConfig {
  std::string type = "hash";
  std::string weights;       // file or folder of a pretrained encoder
  int64_t max_tokens = 512;  // L: longer prompts are cut, shorter ones padded with zeros
  int64_t dim = 4096;        // E of the `hash` encoder; must equal model.text_dim

  void visit(ConfigVisitor& v);
};

class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  virtual int64_t dim() const = 0;         // E
  virtual int64_t max_tokens() const = 0;  // L
  // [B, L, E] fp32, zeros behind each prompt's tokens. "" is the unconditional prompt. No gradients.
  virtual at::Tensor encode(const std::vector<std::string>& prompts) const = 0;
};

std::unique_ptr<TextEncoder> make_text_encoder(const TextEncoderConfig& config, at::Device device);

}  // namespace vmoba::model
