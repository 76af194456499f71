// What transformers' image processors do to an image before its encoder, with PIL's bicubic filter (antialiased, 8 bits
// between the passes). CLIP: the shorter side is resized to the model's size, the middle is cropped, values are
// normalised. Wan's original repository resizes without cropping; diffusers' pipelines are followed here. SigLIP: both
// sides are resized, whatever their ratio.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vmoba::model {

// Images [B, 3, H, W], fp32 RGB in [-1, 1], on any device -> uint8 [B, 3, height, width] on the CPU. Within one level
// of PIL's result. Throws Error(kInput) for another shape.
at::Tensor bicubic_resize(const at::Tensor& images_BCHW, int64_t height, int64_t width);

// Images [B, 3, H, W], fp32 RGB in [-1, 1], on any device -> uint8 [B, 3, size, size] on the CPU. Within one level of
// PIL's result. Throws Error(kInput) for another shape.
at::Tensor clip_resize(const at::Tensor& images_BCHW, int64_t size);

// uint8 [B, 3, H, W] -> fp32 in [-1, 1].
at::Tensor siglip_normalize(const at::Tensor& images_BCHW);

// uint8 [B, 3, H, W] -> fp32 with CLIP's mean and deviation removed.
at::Tensor clip_normalize(const at::Tensor& images_BCHW);

}  // namespace vmoba::model
