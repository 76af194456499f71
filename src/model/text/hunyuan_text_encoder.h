// The pretrained text encoder `hunyuan` of HunyuanVideo: LLaMA-3 8B's states of a caption inside the published template
// (tokens), and CLIP-L's pooled vector of the caption alone. Owns the weights: LLaMA 14.1 GB in bf16, CLIP 0.5 GB.
#pragma once
#include <memory>

#include "model/long_captions.h"
#include "model/text_encoder.h"

namespace vmoba::model {

// Throws Error(kInput) naming all that is missing: weights or tokenizer of either encoder, or weights of another model.
std::unique_ptr<TextEncoder> make_hunyuan_text_encoder(const TextEncoderConfig& config, at::Device device);

// What make_hunyuan_text_encoder checks, from headers alone; the width of the embeddings.
int64_t check_hunyuan_text_encoder(const TextEncoderConfig& config);

// LLaMA's tokens of a caption; CLIP sees its first 77, as published.
TokenCounter hunyuan_token_counter(const TextEncoderConfig& config);

// Weight files and tokenizers.
std::vector<std::string> hunyuan_text_files(const TextEncoderConfig& config);

}  // namespace vmoba::model
