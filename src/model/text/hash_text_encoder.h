// The deterministic text encoder `hash`: no download, no vocabulary. Each word becomes a vector of E standard normals
// drawn from its own hash, mixed with one drawn from the pair of it and the word before, so that equal words get
// similar and equal prompts equal embeddings, and word order counts. It knows no meaning: good for learning the
// captions of a small set, not for prompts unlike them.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "model/long_captions.h"
#include "model/text_encoder.h"

namespace vmoba::model {

// Lower-case words of a prompt: runs of ASCII letters and digits and of bytes beyond ASCII (so that UTF-8 words stay
// whole); everything else separates.
std::vector<std::string> split_words(const std::string& prompt);

// Both throw Error(kInput) where weights or a tokenizer are given: there is nothing to load.
std::unique_ptr<TextEncoder> make_hash_text_encoder(const TextEncoderConfig& config, at::Device device);
int64_t check_hash_text_encoder(const TextEncoderConfig& config);
TokenCounter hash_token_counter(const TextEncoderConfig& config);

}  // namespace vmoba::model
