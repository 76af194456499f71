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
#include <cctype>
#include <cmath>
#include <cstdio>
#include <vector>

#include "core/check.h"
#include "core/file.h"
#include "data/libav_ptr.h"
#include "data/still_encoder.h"

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

// How the frames of one kind of file are encoded.
struct Encoding {
  const char* extension;
  const char* container;
  AVCodecID codec;
  std::vector<const char*> encoders;  // by name, the best first; then any that libavcodec has for the codec
  AVPixelFormat format;
  bool even;  // sizes that are odd are padded
  const char* cure;
};

const std::vector<Encoding>& encodings() {
  static const std::vector<Encoding> table = {
      {".mp4",
       "mp4",
       AV_CODEC_ID_H264,
       {"libx264"},
       AV_PIX_FMT_YUV420P,
       true,
       "install libx264 (Debian, Ubuntu: apt-get install libavcodec-extra)"},
      {".webm", "webm", AV_CODEC_ID_VP9, {"libvpx-vp9"}, AV_PIX_FMT_YUV420P, true, "install an FFmpeg with libvpx"},
      {".gif", "gif", AV_CODEC_ID_GIF, {}, AV_PIX_FMT_RGB8, false, "install a complete FFmpeg"},
      {".mkv", "matroska", AV_CODEC_ID_FFV1, {}, AV_PIX_FMT_0RGB32, false, "install a complete FFmpeg"},
  };
  return table;
}

// Whatever its case.
bool ends_with(const std::string& path, const std::string& extension) {
  return path.size() >= extension.size() &&
         std::equal(extension.begin(), extension.end(), path.end() - ptrdiff_t(extension.size()),
                    [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
}

const Encoding* find_encoding(const std::string& path) {
  for (const Encoding& encoding : encodings())
    if (ends_with(path, encoding.extension)) return &encoding;
  return nullptr;
}

class VideoFile {
 public:
  // `path` is where the bytes go; `name` is what messages call it.
  VideoFile(const Encoding& encoding, const std::string& path, const std::string& name, int width, int height,
            AVRational rate);
  ~VideoFile();
  VideoFile(const VideoFile&) = delete;
  VideoFile& operator=(const VideoFile&) = delete;
  // Planes of tightly packed 8-bit RGB rows.
  void add(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int64_t number);
  void finish();

 private:
  void open_encoder(int width, int height, AVRational rate);
  bool try_encoder(const AVCodec& encoder, int width, int height, AVRational rate);
  void make_scaler(int width, int height);
  void drain(const AVFrame* frame);
  void check(int code, const char* doing) const {
    VMOBA_CHECK(code >= 0, "expected to write the video {}, failed {}: {}; check the folder and its free space", name_,
                doing, libav_error(code));
  }

  const Encoding& encoding_;
  std::string name_;
  AVFormatContext* output_ = nullptr;
  AVStream* stream_ = nullptr;
  CodecPtr encoder_;
  ScalerPtr scaler_;
  FramePtr frame_ = make_frame();
  PacketPtr packet_ = make_packet();
};

// What belongs to an encoder of this name.
void set_quality(const std::string& encoder, AVCodecContext& context, AVDictionary** options) {
  if (encoder == "libx264") {
    context.bit_rate = 0;
    av_dict_set(options, "crf", kQuality, 0);
    av_dict_set(options, "x264-params", kEncoderParameters, 0);
  } else if (encoder == "libvpx-vp9") {
    context.bit_rate = 0;
    av_dict_set(options, "crf", kQuality, 0);
  }
}

bool VideoFile::try_encoder(const AVCodec& encoder, int width, int height, AVRational rate) {
  encoder_.reset(avcodec_alloc_context3(&encoder));
  if (!encoder_) throw std::bad_alloc();
  encoder_->width = width;
  encoder_->height = height;
  encoder_->pix_fmt = encoding_.format;
  encoder_->time_base = av_inv_q(rate);
  encoder_->framerate = rate;
  encoder_->sample_aspect_ratio = {1, 1};
  if (encoding_.format == AV_PIX_FMT_YUV420P) {
    encoder_->color_range = AVCOL_RANGE_MPEG;
    encoder_->colorspace = AVCOL_SPC_BT709;
    encoder_->color_primaries = AVCOL_PRI_BT709;
    encoder_->color_trc = AVCOL_TRC_BT709;
    encoder_->bit_rate = int64_t{width} * height * 4;  // where the encoder knows no crf
  }
  encoder_->thread_count = kEncoderThreads;
  encoder_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  AVDictionary* options = nullptr;
  set_quality(encoder.name, *encoder_, &options);
  const int code = avcodec_open2(encoder_.get(), &encoder, &options);
  av_dict_free(&options);
  return code >= 0;
}

void VideoFile::open_encoder(int width, int height, AVRational rate) {
  for (const char* name : encoding_.encoders)
    if (const AVCodec* encoder = avcodec_find_encoder_by_name(name);
        encoder && try_encoder(*encoder, width, height, rate))
      return;
  void* iterator = nullptr;
  while (const AVCodec* encoder = av_codec_iterate(&iterator))
    if (encoder->id == encoding_.codec && av_codec_is_encoder(encoder) && try_encoder(*encoder, width, height, rate))
      return;
  throw_runtime("expected an encoder for {} in libavcodec that takes {}x{}, found none; {}", encoding_.extension, width,
                height, encoding_.cure);
}

void VideoFile::make_scaler(int width, int height) {
  scaler_.reset(sws_getContext(width, height, AV_PIX_FMT_GBRP, width, height, encoding_.format,
                               SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, nullptr, nullptr, nullptr));
  VMOBA_CHECK(scaler_ != nullptr, "expected a colour converter for {}x{}, found none", width, height);
  if (encoding_.format == AV_PIX_FMT_YUV420P)
    sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(SWS_CS_ITU709), 1, sws_getCoefficients(SWS_CS_ITU709),
                             0, 0, 1 << 16, 1 << 16);
}

VideoFile::VideoFile(const Encoding& encoding, const std::string& path, const std::string& name, int width, int height,
                     AVRational rate)
    : encoding_(encoding), name_(name) {
  route_libav_log();
  clear_libav_error();
  open_encoder(width, height, rate);
  check(avformat_alloc_output_context2(&output_, nullptr, encoding_.container, ("file:" + path).c_str()),
        "making the container");
  stream_ = avformat_new_stream(output_, nullptr);
  if (!stream_) throw std::bad_alloc();
  stream_->time_base = encoder_->time_base;
  stream_->avg_frame_rate = rate;
  check(avcodec_parameters_from_context(stream_->codecpar, encoder_.get()), "describing the stream");
  check(avio_open(&output_->pb, ("file:" + path).c_str(), AVIO_FLAG_WRITE), "opening the file");
  AVDictionary* options = nullptr;
  if (encoding_.codec == AV_CODEC_ID_H264)
    av_dict_set(&options, "movflags", "+faststart", 0);
  else
    output_->flags |= AVFMT_FLAG_BITEXACT;  // Matroska and WebM would draw identifiers at random
  const int code = avformat_write_header(output_, &options);
  av_dict_free(&options);
  check(code, "writing the header");

  frame_->format = encoding_.format;
  frame_->width = width;
  frame_->height = height;
  check(av_frame_get_buffer(frame_.get(), 0), "allocating a frame");
  make_scaler(width, height);
}

VideoFile::~VideoFile() {
  if (output_) {
    avio_closep(&output_->pb);
    avformat_free_context(output_);
  }
}

void VideoFile::drain(const AVFrame* frame) {
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

void VideoFile::add(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int64_t number) {
  check(av_frame_make_writable(frame_.get()), "allocating a frame");
  const uint8_t* planes[4] = {green, blue, red, nullptr};
  const int strides[4] = {frame_->width, frame_->width, frame_->width, 0};
  sws_scale(scaler_.get(), planes, strides, 0, frame_->height, frame_->data, frame_->linesize);
  frame_->pts = number;
  drain(frame_.get());
}

void VideoFile::finish() {
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

namespace {

void check_frames(const std::string& path, const at::Tensor& video_CFHW, double fps) {
  VMOBA_CHECK(video_CFHW.dim() == 4 && video_CFHW.size(0) == 3 && video_CFHW.scalar_type() == at::kByte &&
                  video_CFHW.device().is_cpu() && video_CFHW.numel() > 0,
              "expected uint8 [3, F, H, W] on the CPU for {}, found {} {}", path, video_CFHW.toString(),
              fmt::join(video_CFHW.sizes(), "x"));
  VMOBA_CHECK(std::isfinite(fps) && fps > 0 && fps <= 1000,
              "expected frames per second above 0 and up to 1000 for {}, found {}", path, fps);
}

void write_encoded(const Encoding& encoding, const std::string& path, const at::Tensor& video_CFHW, double fps) {
  const at::Tensor video = encoding.even ? pad_to_even(video_CFHW) : video_CFHW.contiguous();
  const int64_t frames = video.size(1), height = video.size(2), width = video.size(3);
  VMOBA_CHECK(height <= 16384 && width <= 16384, "expected at most 16384x16384 for {}, found {}x{}", path, width,
              height);
  const std::string temporary = path + ".partial";
  try {
    VideoFile file(encoding, temporary, path, static_cast<int>(width), static_cast<int>(height), exact_rate(fps));
    const uint8_t* data = video.data_ptr<uint8_t>();
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

// Where "%04d" or "%d" stands in the name of a series of pictures, and how many digits it asks for.
struct NumberPlace {
  size_t begin = std::string::npos, length = 0;
  int digits = 0;
};

NumberPlace number_place(const std::string& path) {
  const size_t begin = path.rfind('%');
  size_t at = begin == std::string::npos ? begin : begin + 1;
  if (begin == std::string::npos) return {};
  int digits = 0;
  while (at < path.size() && std::isdigit(static_cast<unsigned char>(path[at])))
    digits = digits * 10 + (path[at++] - '0');
  if (at >= path.size() || path[at] != 'd' || digits > 9) return {};
  return {begin, at + 1 - begin, digits};
}

}  // namespace

void check_video_path(const std::string& path, int64_t frames) {
  if (ends_with(path, ".png")) {
    VMOBA_CHECK_INPUT(
        frames == 1 || number_place(path).begin != std::string::npos,
        "expected a name with a number for the {} pictures of a video, such as frames/%04d.png, found '{}'", frames,
        path);
    return;
  }
  const Encoding* encoding = find_encoding(path);
  VMOBA_CHECK_INPUT(encoding != nullptr,
                    "expected a video's name that ends in .mp4, .webm, .gif, .mkv (lossless) or %04d.png (pictures), "
                    "found '{}'",
                    path);
  VMOBA_CHECK(avcodec_find_encoder(encoding->codec) != nullptr,
              "expected an encoder for {} in libavcodec, found none; {}", encoding->extension, encoding->cure);
}

void write_video(const std::string& path, const at::Tensor& video_CFHW, double fps) {
  check_frames(path, video_CFHW, fps);
  check_video_path(path, video_CFHW.size(1));
  if (const Encoding* encoding = find_encoding(path)) return write_encoded(*encoding, path, video_CFHW, fps);
  const NumberPlace place = number_place(path);
  for (int64_t f = 0; f < video_CFHW.size(1); ++f) {
    std::string name = path;
    if (place.begin != std::string::npos)
      name.replace(place.begin, place.length, fmt::format("{:0{}d}", f, place.digits));
    write_file_atomically(name, encode_png(video_CFHW.select(1, f)));
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
  encoder->width = static_cast<int>(rgb_HWC.size(1));
  encoder->height = static_cast<int>(rgb_HWC.size(0));
  encoder->pix_fmt = AV_PIX_FMT_RGB24;
  encoder->time_base = {1, 25};
  const int code = avcodec_open2(encoder.get(), png, nullptr);
  VMOBA_CHECK(code >= 0, "expected to encode a PNG of {}x{}, failed: {}", encoder->width, encoder->height,
              libav_error(code));
  return encode_still(*encoder, "PNG", [&](AVFrame& frame) {
    const auto row_bytes = static_cast<size_t>(3 * rgb_HWC.size(1));
    for (int64_t y = 0; y < rgb_HWC.size(0); ++y)
      std::copy_n(rgb_HWC.data_ptr<uint8_t>() + y * static_cast<int64_t>(row_bytes), row_bytes,
                  frame.data[0] + y * frame.linesize[0]);
  });
}

void check_video_encoder() {
  VMOBA_CHECK(avcodec_find_encoder(AV_CODEC_ID_H264) != nullptr,
              "expected an H.264 encoder in libavcodec, found none; install libx264 (Debian, Ubuntu: apt-get install "
              "libavcodec-extra)");
}

}  // namespace vmoba::data
