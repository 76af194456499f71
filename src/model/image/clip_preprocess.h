// What transformers' CLIPImageProcessor does to an image before CLIP: the shorter side is resized to the model's size
// with PIL's bicubic filter (antialiased, 8 bits between the passes), the middle is cropped, values are normalised.
// Wan's original repository resizes without cropping; diffusers' pipelines are followed here.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vmoba::model {

// Images [B, 3, H, W], fp32 RGB in [-1, 1], on any device -> uint8 [B, 3, size, size] on the CPU. Within one level of
// PIL's result. Throws Error(kInput) for another shape.
at::Tensor clip_resize(const at::Tensor& images_BCHW, int64_t size);

// uint8 [B, 3, H, W] -> fp32 with CLIP's mean and deviation removed.
at::Tensor clip_normalize(const at::Tensor& images_BCHW);

}  // namespace vmoba::model
