// Frames -> H.264 .mp4 (yuv420p, BT.709 limited, faststart) and PNG pictures.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace vmoba::data {

// video: uint8 [3, F, H, W], CPU. Odd sizes are padded by one pixel. Written to a temporary name, then renamed.
// Throws Error(kRuntime) where the folder cannot be written or no H.264 encoder is in libavcodec (names the package).
void write_video(const std::string& path, const at::Tensor& video_CFHW, double fps);

// Throws Error(kRuntime), as write_video would, where libavcodec has no H.264 encoder at all.
void check_video_encoder();

// The bytes of a PNG file. rgb: uint8 [3, H, W], CPU.
std::string encode_png(const at::Tensor& rgb_CHW);

}  // namespace vmoba::data
