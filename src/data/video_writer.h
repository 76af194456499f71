// Frames -> video files and PNG pictures. The name's end chooses: .mp4 (H.264, yuv420p, BT.709 limited, faststart),
// .webm (VP9), .gif (256 fixed colours), .mkv (FFV1 in RGB: lossless, for measurements), %04d.png (a picture for each
// frame, numbered from 0).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace vmoba::data {

// Throws Error(kInput) where the name says no kind of file, or one picture is asked for `frames` above 1, and
// Error(kRuntime) where libavcodec has no encoder for it (names the package). Touches no file.
void check_video_path(const std::string& path, int64_t frames);

// video: uint8 [3, F, H, W], CPU. For mp4 and webm odd sizes are padded by one pixel. Written to a temporary name, then
// renamed. Throws what check_video_path throws, and Error(kRuntime) where the folder cannot be written.
void write_video(const std::string& path, const at::Tensor& video_CFHW, double fps);

// Throws Error(kRuntime), as write_video would, where libavcodec has no H.264 encoder at all.
void check_video_encoder();

// The bytes of a PNG file. rgb: uint8 [3, H, W], CPU.
std::string encode_png(const at::Tensor& rgb_CHW);

}  // namespace vmoba::data
