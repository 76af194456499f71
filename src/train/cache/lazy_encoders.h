// Codec and encoders that are loaded when they are first used: a run whose cache is complete never loads them.
#pragma once
#include <functional>
#include <memory>

#include "model/codec.h"
#include "model/image_encoder.h"
#include "model/image_text_encoder.h"
#include "train/cache/encode_cache.h"

namespace vmoba::train {

// What stands for a codec or an encoder until its first use; it is made as a `Made`.
template <typename Interface, typename Made = Interface>
class Lazy : public Interface {
 public:
  void load() const { loaded(); }
  // Gives the weights' memory back until the next use.
  void release() { made_.reset(); }

 protected:
  explicit Lazy(std::function<std::unique_ptr<Made>()> make) : make_(std::move(make)) {}

  const Made& loaded() const {
    if (!made_) made_ = make_();
    return *made_;
  }

 private:
  std::function<std::unique_ptr<Made>()> make_;
  mutable std::unique_ptr<Made> made_;
};

class LazyCodec : public Lazy<model::Codec> {
 public:
  LazyCodec(const model::CodecConfig& config, at::Device device)
      : Lazy([=] { return model::make_codec(config, device); }), shape_(model::codec_shape(config)) {}

  model::CodecShape shape() const override { return shape_; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override { return loaded().encode(video_BCFHW); }
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override { return loaded().decode(latents_BCTHW); }

 private:
  model::CodecShape shape_;
};

// Looks into the cache for captions alone first; `cache` may be null.
class CachedTextEncoder : public Lazy<model::ImageTextEncoder, model::TextEncoder> {
 public:
  // The encoder's embeddings must have the width model.text_dim.
  CachedTextEncoder(const RootConfig& config, at::Device device, const EncodeCache* cache);

  int64_t dim() const override { return dim_; }
  int64_t max_tokens() const override { return max_tokens_; }
  model::TextEmbedding encode(const std::vector<std::string>& prompts) const override;
  bool sees_images() const override { return sees_images_; }
  model::TextEmbedding encode_beside(const std::vector<std::string>& prompts,
                                     const at::Tensor& images_BCHW) const override;

 private:
  int64_t dim_, max_tokens_;
  bool sees_images_;
  at::Device device_;
  const EncodeCache* cache_;
};

class LazyImageEncoder : public Lazy<model::ImageEncoder> {
 public:
  LazyImageEncoder(const model::ImageEncoderConfig& config, at::Device device)
      : Lazy([=] { return model::make_image_encoder(config, device); }) {}

  int64_t dim() const override { return loaded().dim(); }
  int64_t tokens() const override { return loaded().tokens(); }
  at::Tensor encode(const at::Tensor& images_BCHW) const override { return loaded().encode(images_BCHW); }
};

// Null where image_encoder.type is none.
std::unique_ptr<LazyImageEncoder> make_lazy_image_encoder(const model::ImageEncoderConfig& config, at::Device device);

}  // namespace vmoba::train
