// Media files made with the ffmpeg program while the tests run, and what that program says of them: the reference for
// the reader, which shares libav's decoders with it but not how frames are found, timed, cropped or coloured.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace vmoba::test {

// Runs `ffmpeg -v error -nostdin -y ARGUMENTS`; REQUIREs success.
void ffmpeg(const std::vector<std::string>& arguments);
// Standard output of ffprobe with -v error; REQUIREs success.
std::string ffprobe(const std::vector<std::string>& arguments);

// Display times of a video stream's frames in seconds, the first one's subtracted.
std::vector<double> frame_times(const std::string& path, int stream = 0);
// Frames as the ffmpeg program shows them, through `filters` ("" for none): uint8 RGB [F, 3, H, W].
at::Tensor ffmpeg_frames(const std::string& path, const std::string& filters, int64_t height, int64_t width,
                         int stream = 0);

// A picture in motion, `frames` of it, encoded with `encoder` (ffmpeg output arguments).
void make_moving_video(const std::string& path, int64_t frames, const std::string& size, const std::string& rate,
                       const std::vector<std::string>& encoder);
// Frame n is grey with a brightness that counting_index() reads back: up to 2500 frames.
void make_counting_video(const std::string& path, int64_t frames, const std::string& rate,
                         const std::vector<std::string>& encoder);
// Frame numbers of an [3, F, H, W] clip of a counting video.
std::vector<int64_t> counting_index(const at::Tensor& video_CFHW);
// Index of the entry of `times` nearest to each start + k / fps, the earlier one of equals.
std::vector<int64_t> nearest_frames(const std::vector<double>& times, double start_s, double fps, int64_t count);

// Raw planar frames of one colour (8-bit, or 10-bit little-endian where `bits` is 10) without any loss: FFV1 in .mkv,
// tagged with -colorspace `matrix` and -color_range `range`.
void make_flat_video(const std::string& path, int y, int u, int v, int bits, const std::string& size,
                     const std::string& matrix, const std::string& range);

std::string read_bytes(const std::string& path);
void write_bytes(const std::string& path, const std::string& bytes);
// Sets the display matrix (a b / c d, each -1, 0 or 1) of the first track of an .mp4.
void set_display_matrix(const std::string& path, int a, int b, int c, int d);

}  // namespace vmoba::test
