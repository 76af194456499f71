// Conditioning images -> embeddings, for models that attend to image tokens (image-to-video of Wan2.1 and HunyuanVideo
// 1.5). Implementations: `clip` and `siglip` (image/). The encoder owns its weights; results are new tensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "core/config.h"

namespace vmoba::model {

// The `image_encoder:` group.
struct ImageEncoderConfig {
  std::string type = "none";  // none | clip | siglip
  std::string weights;        // file or folder of the pretrained encoder

  void visit(ConfigVisitor& v);
};

class ImageEncoder {
 public:
  virtual ~ImageEncoder() = default;
  virtual int64_t dim() const = 0;     // E: 1280 of CLIP ViT-H/14, 1152 of SigLIP so400m
  virtual int64_t tokens() const = 0;  // N: 257, one class token and 16 x 16 patches; 729, 27 x 27 patches
  // Images [B, 3, H, W], fp32 RGB in [-1, 1], any size and device -> [B, N, E] fp32 on the encoder's device. No
  // gradients.
  virtual at::Tensor encode(const at::Tensor& images_BCHW) const = 0;
};

// Null for type `none`. Throws Error(kInput) where the weights are missing or are not those of the encoder.
std::unique_ptr<ImageEncoder> make_image_encoder(const ImageEncoderConfig& config, at::Device device);

}  // namespace vmoba::model
