// SigLIP's vision transformer (so400m/14 at 384 pixels in HunyuanVideo 1.5): its last hidden states behind the last
// norm, as HunyuanVideo15ImageToVideoPipeline takes them. Weights from diffusers' image_encoder/ folder or ComfyUI's
// sigclip_vision_patch14_384.safetensors; owned here, in fp32 (1.7 GB).
#pragma once
#include <memory>

#include "model/image_encoder.h"

namespace vmoba::model {

// Throws Error(kInput) where the weights are missing or are not a SigLIP vision model.
std::unique_ptr<ImageEncoder> make_siglip_image_encoder(const ImageEncoderConfig& config, at::Device device);

}  // namespace vmoba::model
