#include "train/cache/lazy_encoders.h"

#include "config/clip_geometry.h"
#include "core/log.h"

namespace vmoba::train {

CachedTextEncoder::CachedTextEncoder(const RootConfig& config, at::Device device, const EncodeCache* cache)
    : Lazy([=] {
        if (!config.text.weights.empty()) log_info("loading the text encoder {}", config.text.weights);
        auto encoder = model::make_text_encoder(config.text, device);
        check_text_width(config, encoder->dim());
        return encoder;
      }),
      dim_(config.model.text_dim),
      max_tokens_(config.text.max_tokens),
      sees_images_(model::sees_images(config.text)),
      device_(device),
      cache_(cache) {}

model::TextEmbedding CachedTextEncoder::encode(const std::vector<std::string>& prompts) const {
  std::vector<model::TextEmbedding> texts;
  for (const std::string& prompt : prompts) {
    const auto cached = cache_ ? cache_->find_text(prompt) : std::nullopt;
    texts.push_back(cached ? model::to_device(*cached, device_) : loaded().encode({prompt}));
  }
  return model::stack_samples(texts);
}

model::TextEmbedding CachedTextEncoder::encode_beside(const std::vector<std::string>& prompts,
                                                      const at::Tensor& images_BCHW) const {
  return model::encode_text(loaded(), prompts, images_BCHW);
}

std::unique_ptr<LazyImageEncoder> make_lazy_image_encoder(const model::ImageEncoderConfig& config, at::Device device) {
  return config.type == "none" ? nullptr : std::make_unique<LazyImageEncoder>(config, device);
}

}  // namespace vmoba::train
