#include "data/video_writer.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "core/check.h"
#include "core/file.h"
#include "data/libav_ptr.h"

namespace vmoba::data {
namespace {

// The same frames give the same file: x264's output depends on its thread count, and with AVX-512 its macroblock tree
// on what the memory held before (versions around 164).
constexpr int kEncoderThreads = 4;
constexpr const char* kEncoderParameters = "mbtree=0";
constexpr const char* kQuality = "18";  // constant rate factor: visually lossless

// 24000/1001 for 23.976 and the like, else the simplest near fraction.
AVRational exact_rate(double fps) {
  const double ntsc = std::round(fps * 1.001);
  if (std::abs(fps * 1.001 - ntsc) < 5e-5 * ntsc && std::abs(fps - ntsc) > 1e-6)
    return {static_cast<int>(ntsc) * 1000, 1001};
  return av_d2q(fps, 100'000);
}

class Mp4File {
 public:
  // `path` is where the bytes go; `name` is what messages call it.
  Mp4File(const std::string& path, const std::string& name, int width, int height, AVRational rate);
  ~Mp4File();
  Mp4File(const Mp4File&) = delete;
  Mp4File& operator=(const Mp4File&) = delete;
  // Planes of tightly packed 8-bit RGB rows.
  void add(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int64_t number);
  void finish();

 private:
  void open_encoder(int width, int height, AVRational rate);
  bool try_encoder(const AVCodec& encoder, int width, int height, AVRational rate);
  void drain(const AVFrame* frame);
  void check(int code, const char* doing) const {
    VMOBA_CHECK(code >= 0, "expected to write the video {}, failed {}: {}; check the folder and its free space", name_,
                doing, libav_error(code));
  }

  std::string name_;
  AVFormatContext* output_ = nullptr;
  AVStream* stream_ = nullptr;
  CodecPtr encoder_;
  ScalerPtr scaler_;
  FramePtr frame_ = make_frame();
  PacketPtr packet_ = make_packet();
};

bool Mp4File::try_encoder(const AVCodec& encoder, int width, int height, AVRational rate) {
  encoder_.reset(avcodec_alloc_context3(&encoder));
  if (!encoder_) throw std::bad_alloc();
  encoder_->width = width;
  encoder_->height = height;
  encoder_->pix_fmt = AV_PIX_FMT_YUV420P;
  encoder_->time_base = av_inv_q(rate);
  encoder_->framerate = rate;
  encoder_->sample_aspect_ratio = {1, 1};
  encoder_->color_range = AVCOL_RANGE_MPEG;
  encoder_->colorspace = AVCOL_SPC_BT709;
  encoder_->color_primaries = AVCOL_PRI_BT709;
  encoder_->color_trc = AVCOL_TRC_BT709;
  encoder_->thread_count = kEncoderThreads;
  encoder_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  encoder_->bit_rate = int64_t{width} * height * 4;  // where the encoder knows no crf
  AVDictionary* options = nullptr;
  if (std::string(encoder.name) == "libx264") {
    encoder_->bit_rate = 0;
    av_dict_set(&options, "crf", kQuality, 0);
    av_dict_set(&options, "x264-params", kEncoderParameters, 0);
  }
  const int code = avcodec_open2(encoder_.get(), &encoder, &options);
  av_dict_free(&options);
  return code >= 0;
}

void Mp4File::open_encoder(int width, int height, AVRational rate) {
  if (const AVCodec* x264 = avcodec_find_encoder_by_name("libx264"); x264 && try_encoder(*x264, width, height, rate))
    return;
  void* iterator = nullptr;
  while (const AVCodec* encoder = av_codec_iterate(&iterator))
    if (encoder->id == AV_CODEC_ID_H264 && av_codec_is_encoder(encoder) && try_encoder(*encoder, width, height, rate))
      return;
  throw_runtime(
      "expected an H.264 encoder in libavcodec that takes {}x{}, found none; install libx264 (Debian, Ubuntu: apt-get "
      "install libavcodec-extra)",
      width, height);
}

Mp4File::Mp4File(const std::string& path, const std::string& name, int width, int height, AVRational rate)
    : name_(name) {
  route_libav_log();
  clear_libav_error();
  open_encoder(width, height, rate);
  check(avformat_alloc_output_context2(&output_, nullptr, "mp4", ("file:" + path).c_str()), "making the container");
  stream_ = avformat_new_stream(output_, nullptr);
  if (!stream_) throw std::bad_alloc();
  stream_->time_base = encoder_->time_base;
  stream_->avg_frame_rate = rate;
  check(avcodec_parameters_from_context(stream_->codecpar, encoder_.get()), "describing the stream");
  check(avio_open(&output_->pb, ("file:" + path).c_str(), AVIO_FLAG_WRITE), "opening the file");
  AVDictionary* options = nullptr;
  av_dict_set(&options, "movflags", "+faststart", 0);
  const int code = avformat_write_header(output_, &options);
  av_dict_free(&options);
  check(code, "writing the header");

  frame_->format = AV_PIX_FMT_YUV420P;
  frame_->width = width;
  frame_->height = height;
  check(av_frame_get_buffer(frame_.get(), 0), "allocating a frame");
  scaler_.reset(sws_getContext(width, height, AV_PIX_FMT_GBRP, width, height, AV_PIX_FMT_YUV420P,
                               SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, nullptr, nullptr, nullptr));
  VMOBA_CHECK(scaler_ != nullptr, "expected a colour converter for {}x{}, found none", width, height);
  sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(SWS_CS_ITU709), 1, sws_getCoefficients(SWS_CS_ITU709), 0,
                           0, 1 << 16, 1 << 16);
}

Mp4File::~Mp4File() {
  if (output_) {
    avio_closep(&output_->pb);
    avformat_free_context(output_);
  }
}

void Mp4File::drain(const AVFrame* frame) {
  check(avcodec_send_frame(encoder_.get(), frame), "encoding");
  while (true) {
    const int code = avcodec_receive_packet(encoder_.get(), packet_.get());
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
    check(code, "encoding");
    packet_->stream_index = stream_->index;
    packet_->duration = 1;
    av_packet_rescale_ts(packet_.get(), encoder_->time_base, stream_->time_base);
    check(av_interleaved_write_frame(output_, packet_.get()), "writing a frame");
  }
}

void Mp4File::add(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int64_t number) {
  check(av_frame_make_writable(frame_.get()), "allocating a frame");
  const uint8_t* planes[4] = {green, blue, red, nullptr};
  const int strides[4] = {frame_->width, frame_->width, frame_->width, 0};
  sws_scale(scaler_.get(), planes, strides, 0, frame_->height, frame_->data, frame_->linesize);
  frame_->pts = number;
  drain(frame_.get());
}

void Mp4File::finish() {
  drain(nullptr);
  check(av_write_trailer(output_), "finishing");
  avio_flush(output_->pb);
  check(output_->pb->error, "writing");
  check(avio_closep(&output_->pb), "closing");
}

at::Tensor pad_to_even(const at::Tensor& video_CFHW) {
  at::Tensor out = video_CFHW;
  for (const int64_t dim : {2, 3})
    if (out.size(dim) % 2 != 0) out = at::cat({out, out.narrow(dim, out.size(dim) - 1, 1)}, dim);
  return out.contiguous();
}

}  // namespace

void write_video(const std::string& path, const at::Tensor& video_CFHW, double fps) {
  VMOBA_CHECK(video_CFHW.dim() == 4 && video_CFHW.size(0) == 3 && video_CFHW.scalar_type() == at::kByte &&
                  video_CFHW.device().is_cpu() && video_CFHW.numel() > 0,
              "expected uint8 [3, F, H, W] on the CPU for {}, found {} {}", path, video_CFHW.toString(),
              fmt::join(video_CFHW.sizes(), "x"));
  VMOBA_CHECK(std::isfinite(fps) && fps > 0 && fps <= 1000,
              "expected frames per second above 0 and up to 1000 for {}, found {}", path, fps);
  const at::Tensor even = pad_to_even(video_CFHW);
  const int64_t frames = even.size(1), height = even.size(2), width = even.size(3);
  VMOBA_CHECK(height <= 16384 && width <= 16384, "expected at most 16384x16384 for {}, found {}x{}", path, width,
              height);
  const std::string temporary = path + ".partial";
  try {
    Mp4File file(temporary, path, static_cast<int>(width), static_cast<int>(height), exact_rate(fps));
    const uint8_t* data = even.data_ptr<uint8_t>();
    for (int64_t f = 0; f < frames; ++f)
      file.add(data + f * height * width, data + (frames + f) * height * width,
               data + (2 * frames + f) * height * width, f);
    file.finish();
    sync_path(temporary);
    VMOBA_CHECK(std::rename(temporary.c_str(), path.c_str()) == 0,
                "expected to rename {} to {}, failed; check the folder", temporary, path);
  } catch (...) {
    std::remove(temporary.c_str());
    throw;
  }
}

std::string encode_png(const at::Tensor& rgb_CHW) {
  VMOBA_CHECK(rgb_CHW.dim() == 3 && rgb_CHW.size(0) == 3 && rgb_CHW.scalar_type() == at::kByte &&
                  rgb_CHW.device().is_cpu() && rgb_CHW.numel() > 0,
              "expected uint8 [3, H, W] on the CPU for a PNG, found {} {}", rgb_CHW.toString(),
              fmt::join(rgb_CHW.sizes(), "x"));
  route_libav_log();
  clear_libav_error();
  const at::Tensor rgb_HWC = rgb_CHW.permute({1, 2, 0}).contiguous();
  const AVCodec* png = avcodec_find_encoder(AV_CODEC_ID_PNG);
  VMOBA_CHECK(png != nullptr, "expected a PNG encoder in libavcodec, found none; install a complete FFmpeg");
  const CodecPtr encoder(avcodec_alloc_context3(png));
  const FramePtr frame = make_frame();
  const PacketPtr packet = make_packet();
  encoder->width = frame->width = static_cast<int>(rgb_HWC.size(1));
  encoder->height = frame->height = static_cast<int>(rgb_HWC.size(0));
  encoder->pix_fmt = AV_PIX_FMT_RGB24;
  encoder->time_base = {1, 25};
  frame->format = AV_PIX_FMT_RGB24;
  int code = avcodec_open2(encoder.get(), png, nullptr);
  if (code >= 0) code = av_frame_get_buffer(frame.get(), 0);
  if (code >= 0) {
    const auto row_bytes = static_cast<size_t>(3 * rgb_HWC.size(1));
    for (int64_t y = 0; y < rgb_HWC.size(0); ++y)
      std::copy_n(rgb_HWC.data_ptr<uint8_t>() + y * static_cast<int64_t>(row_bytes), row_bytes,
                  frame->data[0] + y * frame->linesize[0]);
    code = avcodec_send_frame(encoder.get(), frame.get());
  }
  if (code >= 0) code = avcodec_send_frame(encoder.get(), nullptr);
  if (code >= 0) code = avcodec_receive_packet(encoder.get(), packet.get());
  VMOBA_CHECK(code >= 0, "expected to encode a PNG of {}x{}, failed: {}", frame->width, frame->height,
              libav_error(code));
  return std::string(reinterpret_cast<const char*>(packet->data), static_cast<size_t>(packet->size));
}

void check_video_encoder() {
  VMOBA_CHECK(avcodec_find_encoder(AV_CODEC_ID_H264) != nullptr,
              "expected an H.264 encoder in libavcodec, found none; install libx264 (Debian, Ubuntu: apt-get install "
              "libavcodec-extra)");
}

}  // namespace vmoba::data
