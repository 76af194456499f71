// Codec and encoders that are loaded when they are first used: a run whose cache is complete never loads them.
#pragma once
#include <memory>

#include "model/codec.h"
#include "model/image_encoder.h"
#include "model/text_encoder.h"
#include "train/cache/encode_cache.h"

namespace vmoba::train {

class LazyCodec : public model::Codec {
 public:
  LazyCodec(const model::CodecConfig& config, at::Device device)
      : config_(config), device_(device), shape_(model::codec_shape(config)) {}

  model::CodecShape shape() const override { return shape_; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override { return loaded().encode(video_BCFHW); }
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override { return loaded().decode(latents_BCTHW); }

  bool is_loaded() const { return codec_ != nullptr; }
  void load() { loaded(); }
  // Gives the weights' memory back until the next use.
  void release() { codec_.reset(); }

 private:
  const model::Codec& loaded() const {
    if (!codec_) codec_ = model::make_codec(config_, device_);
    return *codec_;
  }

  model::CodecConfig config_;
  at::Device device_;
  model::CodecShape shape_;
  mutable std::unique_ptr<model::Codec> codec_;
};

// Looks into the cache first; `cache` may be null.
class CachedTextEncoder : public model::TextEncoder {
 public:
  // The encoder's embeddings must have the width model.text_dim.
  CachedTextEncoder(const RootConfig& config, at::Device device, const EncodeCache* cache)
      : config_(config), device_(device), cache_(cache) {}

  int64_t dim() const override { return config_.model.text_dim; }
  int64_t max_tokens() const override { return config_.text.max_tokens; }
  at::Tensor encode(const std::vector<std::string>& prompts) const override;

  bool is_loaded() const { return encoder_ != nullptr; }
  void load() { loaded(); }
  void release() { encoder_.reset(); }

 private:
  const model::TextEncoder& loaded() const;

  RootConfig config_;
  at::Device device_;
  const EncodeCache* cache_;
  mutable std::unique_ptr<model::TextEncoder> encoder_;
};

class LazyImageEncoder : public model::ImageEncoder {
 public:
  LazyImageEncoder(const model::ImageEncoderConfig& config, at::Device device) : config_(config), device_(device) {}

  int64_t dim() const override { return loaded().dim(); }
  int64_t tokens() const override { return loaded().tokens(); }
  at::Tensor encode(const at::Tensor& images_BCHW) const override { return loaded().encode(images_BCHW); }
  void load() { loaded(); }
  void release() { encoder_.reset(); }

 private:
  const model::ImageEncoder& loaded() const {
    if (!encoder_) encoder_ = model::make_image_encoder(config_, device_);
    return *encoder_;
  }

  model::ImageEncoderConfig config_;
  at::Device device_;
  mutable std::unique_ptr<model::ImageEncoder> encoder_;
};

// Null where image_encoder.type is none.
std::unique_ptr<LazyImageEncoder> make_lazy_image_encoder(const model::ImageEncoderConfig& config, at::Device device);

}  // namespace vmoba::train
