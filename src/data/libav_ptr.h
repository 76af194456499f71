// Owners for libav objects, without libav's headers: only .cpp files of this folder see those.
#pragma once
#include <memory>
#include <string>

struct AVCodecContext;
struct AVFormatContext;
struct AVFrame;
struct AVPacket;
struct SwsContext;

namespace vmoba::data {

struct LibavDeleter {
  void operator()(AVFrame* frame) const;
  void operator()(AVPacket* packet) const;
  void operator()(AVCodecContext* codec) const;
  void operator()(SwsContext* scaler) const;
};
using FramePtr = std::unique_ptr<AVFrame, LibavDeleter>;
using PacketPtr = std::unique_ptr<AVPacket, LibavDeleter>;
using CodecPtr = std::unique_ptr<AVCodecContext, LibavDeleter>;
using ScalerPtr = std::unique_ptr<SwsContext, LibavDeleter>;

// Input files only; a muxer closes its own output (video_writer.cpp).
struct InputDeleter {
  void operator()(AVFormatContext* format) const;
};
using InputPtr = std::unique_ptr<AVFormatContext, InputDeleter>;

FramePtr make_frame();
PacketPtr make_packet();

// Sends libav's messages to log_debug and keeps each thread's last error for libav_error(). Idempotent.
void route_libav_log();
// "Invalid data found when processing input (moov atom not found)": the code's text and, where this thread logged an
// error since clear_libav_error(), that.
std::string libav_error(int code);
void clear_libav_error();
// This thread's last error as libav logged it, or "".
const std::string& last_libav_error();

}  // namespace vmoba::data
