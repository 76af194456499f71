// RGB pixels -> the bytes of a JPEG file, for small pictures on pages.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace vmoba::data {

// rgb: uint8 [3, H, W], CPU, at most 16384 pixels a side. Of a quality at which photographs look unharmed. Throws
// Error(kRuntime) where libavcodec has no encoder.
std::string encode_jpeg(const at::Tensor& rgb_CHW);

}  // namespace vmoba::data
