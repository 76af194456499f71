#include "train/cache/lazy_encoders.h"

#include <ATen/ATen.h>

#include "core/log.h"

namespace vmoba::train {

const model::TextEncoder& CachedTextEncoder::loaded() const {
  if (!encoder_) {
    if (!config_.text.weights.empty()) log_info("loading the text encoder {}", config_.text.weights);
    encoder_ = model::make_text_encoder(config_.text, device_);
    check_text_width(config_, encoder_->dim());
  }
  return *encoder_;
}

at::Tensor CachedTextEncoder::encode(const std::vector<std::string>& prompts) const {
  std::vector<at::Tensor> embeddings;
  for (const std::string& prompt : prompts) {
    at::Tensor embedding_LE = cache_ ? cache_->find_text(prompt) : at::Tensor();
    embeddings.push_back(embedding_LE.defined() ? embedding_LE.to(device_) : loaded().encode({prompt})[0]);
  }
  return at::stack(embeddings);
}

std::unique_ptr<LazyImageEncoder> make_lazy_image_encoder(const model::ImageEncoderConfig& config, at::Device device) {
  return config.type == "none" ? nullptr : std::make_unique<LazyImageEncoder>(config, device);
}

}  // namespace vmoba::train
