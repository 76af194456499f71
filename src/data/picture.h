// One picture of an image or video file, as a model's first or last frame.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "data/transforms.h"

namespace vmoba::data {

// uint8 RGB [3, height, width] on the CPU: the image, or the frame that a video shows at `time_s`, resized to cover and
// cropped at its centre as training clips are; of `crop` alone where it is not empty. Throws Error(kInput) naming path
// and reason.
at::Tensor read_picture(const std::string& path, double time_s, int64_t height, int64_t width,
                        const CropBox& crop = {});

}  // namespace vmoba::data
