// CLIP's vision transformer (ViT-H/14 of Wan2.1 image-to-video): the hidden states before its last block, as
// WanImageToVideoPipeline takes them. Weights from diffusers' image_encoder/ folder or ComfyUI's
// clip_vision_h.safetensors; owned here, in fp32.
#pragma once
#include <memory>

#include "model/image_encoder.h"

namespace vmoba::model {

// Throws Error(kInput) where the weights are missing or are not a CLIP vision model of 224 x 224 pixels.
std::unique_ptr<ImageEncoder> make_clip_image_encoder(const ImageEncoderConfig& config, at::Device device);

}  // namespace vmoba::model
