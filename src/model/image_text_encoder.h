// A text encoder that sees the first frame beside the prompt: LLaVA of HunyuanVideo's image-to-video. Other text
// encoders are asked through the same function, and look at the prompt alone.
#pragma once
#include <string>
#include <vector>

#include "model/text_encoder.h"

namespace vmoba::model {

class ImageTextEncoder : public TextEncoder {
 public:
  // False of one that only passes on what another encoder does, where that one sees no images.
  virtual bool sees_images() const { return true; }
  // As encode(), of prompt b beside image b: [B, 3, H, W] fp32 RGB in [-1, 1].
  virtual TextEmbedding encode_beside(const std::vector<std::string>& prompts, const at::Tensor& images_BCHW) const = 0;
};

// Whether the configured encoder sees images.
bool sees_images(const TextEncoderConfig& config);

// Throws Error(kInput) where the encoder sees images and is given none.
TextEmbedding encode_text(const TextEncoder& encoder, const std::vector<std::string>& prompts,
                          const at::Tensor& images_BCHW);

}  // namespace vmoba::model
