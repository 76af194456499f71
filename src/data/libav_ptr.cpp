#include "data/libav_ptr.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>
}

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <new>

#include "core/log.h"

namespace vmoba::data {
namespace {

thread_local std::string last_error;

void on_libav_message(void* object, int level, const char* format, va_list arguments) {
  if (level > AV_LOG_WARNING) return;
  char line[512];
  std::vsnprintf(line, sizeof line, format, arguments);
  std::string text(line);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  if (text.empty()) return;
  if (level <= AV_LOG_ERROR) last_error = text;
  log_debug("libav: {}", text);
}

}  // namespace

void LibavDeleter::operator()(AVFrame* frame) const {
  av_frame_free(&frame);
}
void LibavDeleter::operator()(AVPacket* packet) const {
  av_packet_free(&packet);
}
void LibavDeleter::operator()(AVCodecContext* codec) const {
  avcodec_free_context(&codec);
}
void LibavDeleter::operator()(SwsContext* scaler) const {
  sws_freeContext(scaler);
}
void InputDeleter::operator()(AVFormatContext* format) const {
  AVIOContext* file = format->pb;  // opened by us, see open_input in video_reader.cpp
  avformat_close_input(&format);
  avio_closep(&file);
}

FramePtr make_frame() {
  FramePtr frame(av_frame_alloc());
  if (!frame) throw std::bad_alloc();
  return frame;
}

PacketPtr make_packet() {
  PacketPtr packet(av_packet_alloc());
  if (!packet) throw std::bad_alloc();
  return packet;
}

void route_libav_log() {
  static std::once_flag once;
  std::call_once(once, [] { av_log_set_callback(on_libav_message); });
}

std::string libav_error(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  std::string message(text);
  if (!last_error.empty()) message += " (" + last_error + ")";
  return message;
}

const std::string& last_libav_error() {
  return last_error;
}

void clear_libav_error() {
  last_error.clear();
}

}  // namespace vmoba::data
