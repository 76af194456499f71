#include "model/text/hash_text_encoder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/random.h"
#include "model/common/to_device.h"

// Shape letters: B prompts, L tokens, E width.
namespace vmoba::model {
namespace {

constexpr const char* kEndToken = "</s>";  // closes every prompt; alone it is the unconditional prompt
constexpr double kPairShare = 0.25;        // of a vector's variance that the pair with the word before gives

// E normals that are a function of `key` alone.
std::vector<float> normals_of(const char* stream, const std::string& key, int64_t width) {
  std::vector<float> out(static_cast<size_t>(width));
  fill_normal(/*seed=*/0, stream, hash_name(key), out.data(), width);
  return out;
}

void write_word(const std::string& previous, const std::string& word, int64_t width, float* out_E) {
  const std::vector<float> own = normals_of("text_word", word, width);
  const std::vector<float> pair = normals_of("text_pair", previous + ' ' + word, width);
  const float own_scale = float(std::sqrt(1 - kPairShare)), pair_scale = float(std::sqrt(kPairShare));
  for (size_t i = 0; i < own.size(); ++i) out_E[i] = own_scale * own[i] + pair_scale * pair[i];
}

class HashTextEncoder : public TextEncoder {
 public:
  HashTextEncoder(const TextEncoderConfig& config, at::Device device)
      : dim_(config.dim), pooled_dim_(config.pooled_dim), max_tokens_(config.max_tokens), device_(device) {}

  int64_t dim() const override { return dim_; }
  int64_t max_tokens() const override { return max_tokens_; }

  TextEmbedding encode(const std::vector<std::string>& prompts) const override {
    at::Tensor out_BLE = at::zeros({int64_t(prompts.size()), max_tokens_, dim_}, at::kFloat);
    std::vector<int64_t> lengths;
    for (size_t b = 0; b < prompts.size(); ++b)
      lengths.push_back(encode_one(prompts[b], out_BLE.data_ptr<float>() + int64_t(b) * max_tokens_ * dim_));
    TextEmbedding out{to_device(out_BLE, device_), at::tensor(lengths, at::kLong)};
    if (pooled_dim_ > 0) out.pooled_BP = to_device(pooled(prompts), device_);
    return out;
  }

 private:
  // Returns the number of tokens.
  int64_t encode_one(const std::string& prompt, float* out_LE) const {
    std::vector<std::string> words = split_words(prompt);
    if (int64_t(words.size()) >= max_tokens_) words.resize(size_t(max_tokens_ - 1));
    words.push_back(kEndToken);
    std::string previous;
    for (size_t i = 0; i < words.size(); ++i) {
      write_word(previous, words[i], dim_, out_LE + int64_t(i) * dim_);
      previous = words[i];
    }
    return int64_t(words.size());
  }

  // Of all words of each prompt as one.
  at::Tensor pooled(const std::vector<std::string>& prompts) const {
    at::Tensor out_BP = at::empty({int64_t(prompts.size()), pooled_dim_}, at::kFloat);
    for (size_t b = 0; b < prompts.size(); ++b) {
      std::string all;
      for (const std::string& word : split_words(prompts[b])) all += word + " ";
      const std::vector<float> row = normals_of("text_pooled", all, pooled_dim_);
      std::copy(row.begin(), row.end(), out_BP.data_ptr<float>() + int64_t(b) * pooled_dim_);
    }
    return out_BP;
  }

  int64_t dim_, pooled_dim_, max_tokens_;
  at::Device device_;
};

}  // namespace

std::vector<std::string> split_words(const std::string& prompt) {
  std::vector<std::string> words;
  bool inside = false;
  for (const char c : prompt) {
    const char lower = c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
    const bool part = (lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9') || (c & 0x80) != 0;
    if (part && !inside) words.emplace_back();
    if (part) words.back() += lower;
    inside = part;
  }
  return words;
}

int64_t check_hash_text_encoder(const TextEncoderConfig& config) {
  VMOBA_CHECK_INPUT(config.weights.empty(), "text.weights: expected empty for text.type hash, found {}",
                    config.weights);
  VMOBA_CHECK_INPUT(config.tokenizer.empty(), "text.tokenizer: expected empty for text.type hash, found {}",
                    config.tokenizer);
  return config.dim;
}

TokenCounter hash_token_counter(const TextEncoderConfig&) {
  return [](const std::string& caption) { return int64_t(split_words(caption).size()) + 1; };
}

std::unique_ptr<TextEncoder> make_hash_text_encoder(const TextEncoderConfig& config, at::Device device) {
  check_hash_text_encoder(config);
  return std::make_unique<HashTextEncoder>(config, device);
}

}  // namespace vmoba::model
