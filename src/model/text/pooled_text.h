// CLIP-L's pooled vector of a caption, as HunyuanVideo's pipelines make it: weights of `text.weights_2`, tokenizer of
// `text.tokenizer_2`. Owns the weights, in fp32 (0.5 GB).
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/text/bpe_tokenizer.h"
#include "model/text/clip_text_encoder.h"
#include "model/text_encoder.h"

namespace vmoba::model {

class PooledText {
 public:
  // Throws Error(kInput) as check().
  PooledText(const TextEncoderConfig& config, at::Device device);
  // From headers alone: throws Error(kInput) where weights or tokenizer are missing or another model's.
  static void check(const TextEncoderConfig& config);
  static std::vector<std::string> files(const TextEncoderConfig& config);

  // [B, P] fp32 on `output`.
  at::Tensor encode(const std::vector<std::string>& prompts, at::Device output) const;

 private:
  // Begin, the caption, cut where it is too long, and the first end token.
  std::vector<int64_t> ids(const std::string& prompt) const;

  BpeTokenizer tokenizer_;
  ClipTextEncoder clip_;
};

}  // namespace vmoba::model
