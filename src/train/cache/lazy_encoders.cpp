#include "train/cache/lazy_encoders.h"

#include <ATen/ATen.h>

#include "config/clip_geometry.h"
#include "core/log.h"
#include "model/common/to_device.h"

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
      device_(device),
      cache_(cache) {}

at::Tensor CachedTextEncoder::encode(const std::vector<std::string>& prompts) const {
  std::vector<at::Tensor> embeddings;
  for (const std::string& prompt : prompts) {
    at::Tensor embedding_LE = cache_ ? cache_->find_text(prompt) : at::Tensor();
    embeddings.push_back(embedding_LE.defined() ? model::to_device(embedding_LE, device_)
                                                : loaded().encode({prompt})[0]);
  }
  return at::stack(embeddings);
}

std::unique_ptr<LazyImageEncoder> make_lazy_image_encoder(const model::ImageEncoderConfig& config, at::Device device) {
  return config.type == "none" ? nullptr : std::make_unique<LazyImageEncoder>(config, device);
}

}  // namespace vmoba::train
