// The pretrained text encoder `hunyuan_15` of HunyuanVideo 1.5: Qwen2.5-VL 7B's states of a caption inside the
// published template (tokens), and ByT5's states of the letters that the caption quotes (glyphs). Owns the weights:
// Qwen 14.1 GB in bf16, ByT5 0.9 GB in fp32.
#pragma once
#include <memory>

#include "model/long_captions.h"
#include "model/text_encoder.h"

namespace vmoba::model {

// Throws Error(kInput) naming all that is missing: weights of either encoder or Qwen's tokenizer, or weights of another
// model.
std::unique_ptr<TextEncoder> make_hunyuan15_text_encoder(const TextEncoderConfig& config, at::Device device);

// What make_hunyuan15_text_encoder checks, from headers alone; the width of the embeddings.
int64_t check_hunyuan15_text_encoder(const TextEncoderConfig& config);

// Qwen's tokens of a caption.
TokenCounter hunyuan15_token_counter(const TextEncoderConfig& config);

// Weight files and the tokenizer.
std::vector<std::string> hunyuan15_text_files(const TextEncoderConfig& config);

}  // namespace vmoba::model
