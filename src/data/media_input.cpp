#include "data/media_input.h"

extern "C" {
#include <libavformat/avformat.h>
#include <libavutil/display.h>
}

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "data/file_stamp.h"

namespace vmoba::data {
namespace {

// Containers of video, images and (to say "audio only") audio. Playlists and scripts, which could name other files,
// are not among them.
constexpr const char* kFormats =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,live_flv,asf,ogg,"
    "gif,apng,yuv4mpegpipe,mxf,nut,rm,dv,mjpeg,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe,ppm_pipe,"
    "pgm_pipe,pbm_pipe,pam_pipe,pfm_pipe,j2k_pipe,jpegls_pipe,qoi_pipe,psd_pipe,exr_pipe,dpx_pipe,sgi_pipe,pcx_pipe,"
    "dds_pipe,mp3,wav,flac,aac";

const int32_t* display_matrix(const AVStream& stream, const AVFrame& frame) {
  if (const AVFrameSideData* side = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX))
    return reinterpret_cast<const int32_t*>(side->data);
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
  const AVPacketSideData* side = av_packet_side_data_get(
      stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
  return side && side->size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t*>(side->data) : nullptr;
#else
  size_t size = 0;
  const uint8_t* data = av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
  return data && size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t*>(data) : nullptr;
#endif
}

// The matrix maps stored (x, y) to displayed (x, y) = (a x + c y, b x + d y).
Orientation orientation_of(const int32_t* matrix) {
  if (!matrix) return {};
  const double a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
  const double diagonal = std::max(std::abs(a), std::abs(d)), skew = std::max(std::abs(b), std::abs(c));
  if (diagonal == 0 && skew == 0) return {};
  if (std::min(diagonal, skew) > 0.02 * std::max(diagonal, skew))
    throw MediaError("unsupported: a display rotation that is not a multiple of 90 degrees; rotate the file first");
  Orientation out;
  out.mirror = a * d - b * c < 0;
  const double x = out.mirror ? -a : a, y = out.mirror ? -b : b;  // where a step right in the mirrored picture leads
  out.turns = diagonal > skew ? (x > 0 ? 0 : 2) : (y > 0 ? 1 : 3);
  return out;
}

bool is_picture_only(const AVStream& stream) {
  return (stream.disposition & (AV_DISPOSITION_ATTACHED_PIC | AV_DISPOSITION_TIMED_THUMBNAILS)) != 0;
}

void check_file(const std::string& path) {
  if (path.find('\0') != std::string::npos) throw MediaError("missing: the path contains a zero byte");
  const struct stat status = file_status(path);
  if (!S_ISREG(status.st_mode)) throw MediaError("unreadable: not a regular file");
  if (status.st_size == 0) throw MediaError("empty: the file has 0 bytes");
}

}  // namespace

int choose_stream(const AVFormatContext& input) {
  int best = -1;
  bool audio = false;
  std::pair<int, int64_t> best_rank;
  for (unsigned i = 0; i < input.nb_streams; ++i) {
    const AVStream& stream = *input.streams[i];
    audio |= stream.codecpar->codec_type == AVMEDIA_TYPE_AUDIO;
    if (stream.codecpar->codec_type != AVMEDIA_TYPE_VIDEO || is_picture_only(stream)) continue;
    const std::pair<int, int64_t> rank(stream.disposition & AV_DISPOSITION_DEFAULT ? 1 : 0,
                                       int64_t{stream.codecpar->width} * stream.codecpar->height);
    if (best < 0 || rank > best_rank) {
      best = static_cast<int>(i);
      best_rank = rank;
    }
  }
  if (best < 0) throw MediaError(audio ? "audio only: the file has no video stream" : "corrupt: no video stream");
  return best;
}

void check_storage(int file_error) {
  if (file_error >= 0 || file_error == AVERROR_EOF) return;
  throw MediaError(fmt::format("unreadable: {}", libav_error(file_error)), AVUNERROR(file_error));
}

// The file is opened here rather than by libavformat, so that a name with ':', '%' or '*' stays a name.
InputPtr open_input(const std::string& path, const MediaContent& content) {
  check_file(path);
  if (!content.unsupported.empty()) throw MediaError(fmt::format("unsupported: {}", content.unsupported));
  clear_libav_error();
  const AVInputFormat* demuxer = content.demuxer.empty() ? nullptr : av_find_input_format(content.demuxer.c_str());
  if (!demuxer && !content.demuxer.empty())
    throw MediaError(fmt::format("unsupported: this libavformat has no demuxer '{}'; convert the file to .png or .mp4",
                                 content.demuxer));
  AVIOContext* file = nullptr;
  int code = avio_open(&file, ("file:" + path).c_str(), AVIO_FLAG_READ);
  if (code < 0) throw MediaError(fmt::format("unreadable: {}", libav_error(code)), AVUNERROR(code));
  AVFormatContext* input = avformat_alloc_context();
  if (!input) throw std::bad_alloc();
  input->pb = file;
  // A picture comes as one packet: parsers cut it at what resembles another one.
  if (content.picture) input->flags |= AVFMT_FLAG_NOPARSE | AVFMT_FLAG_NOFILLIN;
  AVDictionary* options = nullptr;
  av_dict_set(&options, "format_whitelist", kFormats, 0);
  const size_t dot = path.find_last_of("./");
  std::string name = "x";
  if (dot != std::string::npos && path[dot] == '.') name.append(path, dot, std::string::npos);
  code = avformat_open_input(&input, name.c_str(), demuxer, &options);
  av_dict_free(&options);
  if (code < 0) {
    const int file_error = file->error;
    avio_closep(&file);  // avformat_open_input frees the context on failure, but not a caller's file
    check_storage(file_error);
    if (last_libav_error().find("not on whitelist") != std::string::npos)
      throw MediaError("unsupported: a format that is not read here; convert it to .png or .mp4");
    throw MediaError(fmt::format("corrupt: not a video or image, or cut off in its header: {}", libav_error(code)));
  }
  return InputPtr(input);
}

Orientation stored_orientation(const AVStream& stream, const AVFrame& frame) {
  return orientation_of(display_matrix(stream, frame));
}

bool is_interlaced(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
  return (frame.flags & AV_FRAME_FLAG_INTERLACED) != 0;
#else
  return frame.interlaced_frame != 0;
#endif
}

bool is_still(const AVFormatContext& input, const AVStream& stream) {
  const AVDictionaryEntry* brand = av_dict_get(input.metadata, "major_brand", nullptr, 0);
  if (!brand || stream.nb_frames > 1) return false;
  const std::string_view name(brand->value);
  return name == "avif" || name == "mif1" || name == "heic" || name == "heix" || name == "heim" || name == "heis";
}

namespace {

// The rate of the shortest frames over the average; 1 where the file does not say.
double rate_ratio(const AVStream& stream) {
  const AVRational average = stream.avg_frame_rate, least = stream.r_frame_rate;
  if (average.num <= 0 || average.den <= 0 || least.num <= 0 || least.den <= 0) return 1;
  return av_q2d(least) / av_q2d(average);
}

bool is_near(double ratio, double wanted) {
  constexpr double kNear = 0.03;
  return std::abs(ratio - wanted) < kNear * wanted;
}

}  // namespace

bool is_steady(const AVStream& stream) {
  const double ratio = rate_ratio(stream);
  return is_near(ratio, 1) || is_near(ratio, 2);  // interlaced codecs count fields
}

bool is_numbered(const AVStream& stream, bool interlaced) {
  const double ratio = rate_ratio(stream);
  return is_near(ratio, 1) || (interlaced && is_near(ratio, 2));
}

double frame_duration(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
  return static_cast<double>(frame.duration);
#else
  return static_cast<double>(frame.pkt_duration);
#endif
}

}  // namespace vmoba::data
