// The pretrained text encoder `umt5`: prompts are cleaned and tokenised as Wan's pipelines do it, then encoded by
// UMT5-XXL (diffusers' text_encoder/ folder, ComfyUI's single file, or the original repository's, converted to
// safetensors). Owns the weights, 11.4 GB in bf16, on text.device.
#pragma once
#include <memory>

#include "model/long_captions.h"
#include "model/text_encoder.h"

namespace vmoba::model {

// Throws Error(kInput): weights or tokenizer missing or not UMT5's, text.dtype or text.device unknown.
std::unique_ptr<TextEncoder> make_umt5_text_encoder(const TextEncoderConfig& config, at::Device device);

// What make_umt5_text_encoder checks, from headers alone; the width of the embeddings.
int64_t check_umt5_text_encoder(const TextEncoderConfig& config);

// Loads the tokenizer, no weights.
TokenCounter umt5_token_counter(const TextEncoderConfig& config);

// Weight files and, where it is not inside them, the tokenizer's.
std::vector<std::string> umt5_files(const TextEncoderConfig& config);

}  // namespace vmoba::model
