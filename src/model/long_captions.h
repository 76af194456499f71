// Captions of which a text encoder sees the beginning only.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/text_encoder.h"

namespace vmoba::model {

// The tokens of a caption, however many they are.
using TokenCounter = std::function<int64_t(const std::string&)>;

// How many of the captions have more than config.max_tokens tokens. Reads the tokenizer alone; 0 where it is not there,
// as beside a cache that holds all embeddings.
int64_t count_long_captions(const TextEncoderConfig& config, const std::vector<std::string>& captions);

}  // namespace vmoba::model
