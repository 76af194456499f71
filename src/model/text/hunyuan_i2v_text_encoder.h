// The pretrained text encoders `hunyuan_i2v` and `hunyuan_i2v_concat` of HunyuanVideo image-to-video: LLaVA's states of
// a picture and a caption inside the published template, and CLIP-L's pooled vector of the caption. Of the picture's
// tokens every fourth (token replace) or second (concat) is kept, in front of the caption's. Owns the weights: those of
// `hunyuan`, and LLaVA's vision tower and projector in fp32 (1.3 GB).
#pragma once
#include <memory>

#include "model/image_text_encoder.h"
#include "model/long_captions.h"

namespace vmoba::model {

// Throws Error(kInput) naming all that is missing: weights or tokenizer of either encoder, or weights of another model.
std::unique_ptr<TextEncoder> make_hunyuan_i2v_text_encoder(const TextEncoderConfig& config, at::Device device);

// What make_hunyuan_i2v_text_encoder checks, from headers alone; the width of the embeddings.
int64_t check_hunyuan_i2v_text_encoder(const TextEncoderConfig& config);

// LLaMA's tokens of a caption, without the picture's.
TokenCounter hunyuan_i2v_token_counter(const TextEncoderConfig& config);

// Weight files and tokenizers.
std::vector<std::string> hunyuan_i2v_text_files(const TextEncoderConfig& config);

}  // namespace vmoba::model
