#include "data/video_reader.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/pixdesc.h>
}

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <string_view>

namespace vmoba::data {
namespace {

// Containers of video, images and (to say "audio only") audio. Playlists and scripts, which could name other files,
// are not among them.
constexpr const char* kFormats =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,live_flv,asf,ogg,"
    "gif,apng,yuv4mpegpipe,mxf,nut,rm,dv,mjpeg,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe,ppm_pipe,"
    "pgm_pipe,pam_pipe,mp3,wav,flac,aac";
constexpr int64_t kMaxPixels = int64_t{1} << 27;  // of one frame; larger headers are taken for damage
constexpr int kMaxLeadingErrors = 64;             // damaged packets allowed before the first clean frame
constexpr double kEndWindow_s = 2.0;              // how much of the end measure_end reads
constexpr double kLongest_s = 1e6;                // longer videos (12 days) are taken for damaged timestamps
constexpr double kMissingEnd_s = 0.5;             // a container may promise this much more than it holds

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

void check_file(const std::string& path) {
  struct stat status {};
  if (path.find('\0') != std::string::npos) throw MediaError("missing: the path contains a zero byte");
  if (::stat(path.c_str(), &status) != 0)
    throw MediaError(errno == ENOENT || errno == ENOTDIR ? "missing: no such file"
                                                         : fmt::format("unreadable: {}", std::strerror(errno)),
                     errno);
  if (!S_ISREG(status.st_mode)) throw MediaError("unreadable: not a regular file");
  if (status.st_size == 0) throw MediaError("empty: the file has 0 bytes");
}

// Demuxers turn a failing disk into a short or damaged file; libav's own file knows better.
void check_storage(int file_error) {
  if (file_error >= 0 || file_error == AVERROR_EOF) return;
  throw MediaError(fmt::format("unreadable: {}", libav_error(file_error)), AVUNERROR(file_error));
}

// The file is opened here rather than by libavformat, so that a name with ':', '%' or '*' stays a name.
InputPtr open_input(const std::string& path) {
  check_file(path);
  clear_libav_error();
  AVIOContext* file = nullptr;
  int code = avio_open(&file, ("file:" + path).c_str(), AVIO_FLAG_READ);
  if (code < 0) throw MediaError(fmt::format("unreadable: {}", libav_error(code)), AVUNERROR(code));
  AVFormatContext* input = avformat_alloc_context();
  if (!input) throw std::bad_alloc();
  input->pb = file;
  AVDictionary* options = nullptr;
  av_dict_set(&options, "format_whitelist", kFormats, 0);
  const size_t dot = path.find_last_of("./");
  const std::string name = "x" + (dot != std::string::npos && path[dot] == '.' ? path.substr(dot) : std::string());
  code = avformat_open_input(&input, name.c_str(), nullptr, &options);
  av_dict_free(&options);
  if (code < 0) {
    const int file_error = file->error;
    avio_closep(&file);  // avformat_open_input frees the context on failure, but not a caller's file
    check_storage(file_error);
    throw MediaError(fmt::format("corrupt: not a video or image, or cut off in its header: {}", libav_error(code)));
  }
  return InputPtr(input);
}

double frame_duration(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
  return static_cast<double>(frame.duration);
#else
  return static_cast<double>(frame.pkt_duration);
#endif
}

}  // namespace

struct VideoReader::State {
  std::string path;
  int threads = 1;
  const std::atomic<bool>* cancel = nullptr;
  InputPtr input;
  CodecPtr codec;
  AVStream* stream = nullptr;
  PacketPtr packet = make_packet();
  FramePtr frame = make_frame();
  MediaInfo info;
  int64_t zero_ts = 0;               // timestamp of the first displayed frame
  int64_t last_ts = AV_NOPTS_VALUE;  // of the frame delivered last
  int64_t nominal_ts = 1;            // a frame's usual duration in ticks
  bool held = false;                 // `frame` is decoded and not delivered yet
  bool draining = false;
  bool clean = false;  // a frame was decoded since the last open or seek
  bool wait_for_key = false;
  bool fresh = true;           // nothing was delivered since opening
  int64_t decoded_frames = 0;  // since opening
  int leading_errors = 0;

  void open();        // the file; nothing is decoded
  void open_first();  // the same, with the first frame held
  void open_codec();
  void describe();
  bool decode();  // the next frame into `frame`
  bool feed();    // one packet to the decoder; false once all were sent
  void check_cancel() const {
    if (cancel && cancel->load(std::memory_order_relaxed)) throw MediaError("cancelled");
  }
  bool land(int64_t target_ts);  // decodes the first frame after a seek; true where it is early enough
  void flush();
  // Program streams and bare streams time only some of their frames: theirs are counted, from the start of the file.
  bool counts_frames() const {
    return (input->iformat->flags & AVFMT_NOTIMESTAMPS) != 0 || std::string_view(input->iformat->name) == "mpeg";
  }
  int64_t counted_ts(int64_t frames) const {
    return std::llround(static_cast<double>(frames) / info.fps / av_q2d(stream->time_base));
  }
  double seconds(int64_t ts) const { return static_cast<double>(ts) * av_q2d(stream->time_base); }
};

void VideoReader::State::open() {
  codec.reset();
  input.reset();
  input = open_input(path);
  int code = avformat_find_stream_info(input.get(), nullptr);
  check_storage(input->pb->error);
  if (code < 0) throw MediaError(fmt::format("corrupt: {}", libav_error(code)));
  const int index = choose_stream(*input);
  for (unsigned i = 0; i < input->nb_streams; ++i)
    input->streams[i]->discard = static_cast<int>(i) == index ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
  stream = input->streams[index];
  open_codec();
  draining = clean = held = wait_for_key = false;
  last_ts = AV_NOPTS_VALUE;
  leading_errors = 0;
  decoded_frames = 0;
  fresh = true;
}

void VideoReader::State::open_first() {
  open();
  if (!decode())
    throw MediaError(fmt::format("corrupt: no frame can be decoded: {}", libav_error(AVERROR_INVALIDDATA)));
  held = true;
}

void VideoReader::State::open_codec() {
  const AVCodecParameters& parameters = *stream->codecpar;
  const AVCodec* decoder = avcodec_find_decoder(parameters.codec_id);
  if (!decoder)
    throw MediaError(
        fmt::format("unsupported: this libavcodec has no decoder for '{}'", avcodec_get_name(parameters.codec_id)));
  codec.reset(avcodec_alloc_context3(decoder));
  if (!codec) throw std::bad_alloc();
  int code = avcodec_parameters_to_context(codec.get(), &parameters);
  if (code >= 0) {
    codec->pkt_timebase = stream->time_base;
    codec->thread_count = threads;
    codec->thread_type = FF_THREAD_FRAME | FF_THREAD_SLICE;
    codec->max_pixels = kMaxPixels;
    code = avcodec_open2(codec.get(), decoder, nullptr);
  }
  if (code < 0)
    throw MediaError(fmt::format("unsupported: the {} decoder refuses it: {}", decoder->name, libav_error(code)));
}

void VideoReader::State::describe() {
  info.width = frame->width;
  info.height = frame->height;
  const AVRational aspect = av_guess_sample_aspect_ratio(input.get(), stream, frame.get());
  info.pixel_aspect = aspect.num > 0 && aspect.den > 0 ? av_q2d(aspect) : 1.0;
  if (info.pixel_aspect < 1.0 / 16 || info.pixel_aspect > 16) info.pixel_aspect = 1.0;
  info.orientation = orientation_of(display_matrix(*stream, *frame));
  info.displayed_width = std::max<int64_t>(1, std::llround(static_cast<double>(info.width) * info.pixel_aspect));
  info.displayed_height = info.height;
  if (info.orientation.swaps_axes()) std::swap(info.displayed_width, info.displayed_height);
  info.codec = avcodec_get_name(stream->codecpar->codec_id);
  info.is_image = std::string_view(input->iformat->name).ends_with("_pipe") &&
                  std::string_view(input->iformat->name) != "yuv4mpegpipe";
  if (info.is_image) return;
  const AVRational rate = stream->avg_frame_rate.num > 0 ? stream->avg_frame_rate : stream->r_frame_rate;
  info.fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 25.0;
  nominal_ts = std::max<int64_t>(1, std::llround(1.0 / info.fps / av_q2d(stream->time_base)));
  zero_ts = frame->best_effort_timestamp == AV_NOPTS_VALUE ? 0 : frame->best_effort_timestamp;
  if (stream->duration > 0)
    info.duration_s = seconds(stream->duration);
  else if (input->duration > 0)
    info.duration_s = static_cast<double>(input->duration) / AV_TIME_BASE;
}

bool VideoReader::State::feed() {
  while (true) {
    check_cancel();
    av_packet_unref(packet.get());
    const int code = av_read_frame(input.get(), packet.get());
    if (code == AVERROR(EAGAIN)) continue;
    if (code < 0) check_storage(input->pb->error);
    if (code == AVERROR_EOF) {
      draining = true;
      avcodec_send_packet(codec.get(), nullptr);
      return false;
    }
    if (code < 0) throw MediaError(fmt::format("truncated or corrupt: {}", libav_error(code)));
    if (packet->stream_index != stream->index) continue;
    if (wait_for_key && !(packet->flags & AV_PKT_FLAG_KEY)) continue;
    wait_for_key = false;
    const int sent = avcodec_send_packet(codec.get(), packet.get());
    if (sent < 0 && sent != AVERROR(EAGAIN) && sent != AVERROR_EOF && (clean || ++leading_errors > kMaxLeadingErrors))
      throw MediaError(fmt::format("corrupt: a frame cannot be decoded: {}", libav_error(sent)));
    return true;
  }
}

bool VideoReader::State::decode() {
  while (true) {
    check_cancel();
    const int code = avcodec_receive_frame(codec.get(), frame.get());
    if (code == AVERROR_EOF) return false;
    if (code == AVERROR(EAGAIN)) {
      if (draining) return false;
      feed();
      continue;
    }
    if (code < 0) {
      if (clean || draining || ++leading_errors > kMaxLeadingErrors)
        throw MediaError(fmt::format("corrupt: a frame cannot be decoded: {}", libav_error(code)));
      continue;
    }
    if (frame->width <= 0 || frame->height <= 0) continue;
    if ((frame->flags & AV_FRAME_FLAG_CORRUPT) || frame->decode_error_flags) {
      if (clean) throw MediaError(fmt::format("corrupt: a frame is damaged: {}", libav_error(AVERROR_INVALIDDATA)));
      if (++leading_errors > kMaxLeadingErrors) throw MediaError("corrupt: no clean frame");
      continue;
    }
    clean = true;
    ++decoded_frames;
    if (counts_frames())
      frame->best_effort_timestamp = decoded_frames == 1 ? 0 : counted_ts(decoded_frames - 1);
    else if (frame->best_effort_timestamp == AV_NOPTS_VALUE)
      frame->best_effort_timestamp = last_ts == AV_NOPTS_VALUE ? zero_ts : last_ts + nominal_ts;
    return true;
  }
}

void VideoReader::State::flush() {
  avcodec_flush_buffers(codec.get());
  draining = clean = held = false;
  last_ts = AV_NOPTS_VALUE;
  leading_errors = 0;
  fresh = false;
}

bool VideoReader::State::land(int64_t target_ts) {
  flush();
  wait_for_key = true;
  if (!decode()) return false;
  held = true;
  return frame->best_effort_timestamp <= std::max(target_ts, zero_ts);
}

VideoReader::VideoReader(const std::string& path, int threads, const std::atomic<bool>* cancel)
    : state_(std::make_unique<State>()) {
  route_libav_log();
  state_->path = path;
  state_->threads = threads;
  state_->cancel = cancel;
  state_->open_first();
  state_->describe();
}

VideoReader::~VideoReader() = default;

const MediaInfo& VideoReader::info() const {
  return state_->info;
}
int VideoReader::stream_index() const {
  return state_->stream->index;
}

bool VideoReader::next(TimedFrame& out) {
  State& s = *state_;
  s.fresh = false;
  while (s.held || s.decode()) {
    s.held = false;
    const int64_t ts = s.frame->best_effort_timestamp;
    // A frame that is due no later than the one before it is never displayed.
    if (s.last_ts != AV_NOPTS_VALUE && ts <= s.last_ts) {
      if (s.seconds(s.last_ts - ts) > 1.0)
        throw MediaError(fmt::format("corrupt: timestamps go back {:.1f} s at {:.3f} s; remux the file",
                                     s.seconds(s.last_ts - ts), s.seconds(s.last_ts - s.zero_ts)));
      continue;
    }
    s.last_ts = ts;
    out = {s.frame.get(), s.seconds(ts - s.zero_ts),
           std::max(0.0, frame_duration(*s.frame) * av_q2d(s.stream->time_base))};
    return true;
  }
  return false;
}

void VideoReader::seek(double time_s) {
  State& s = *state_;
  if (s.fresh && time_s <= 0) return;
  const int64_t target =
      s.zero_ts + static_cast<int64_t>(std::floor(std::max(0.0, time_s) / av_q2d(s.stream->time_base)));
  const int64_t second = std::max<int64_t>(1, std::llround(1.0 / av_q2d(s.stream->time_base)));
  // B-frames, open groups and coarse indices can make a seek land late: each retry aims twice as far back.
  for (int64_t back = 0; target - back > s.zero_ts && !s.counts_frames(); back = back == 0 ? second : 2 * back) {
    if (avformat_seek_file(s.input.get(), s.stream->index, INT64_MIN, target - back, target - back, 0) < 0) break;
    if (s.land(target)) return;
  }
  s.open_first();
}

void VideoReader::measure_end() {
  State& s = *state_;
  if (s.info.is_image) return;
  const double promised_s = s.info.duration_s;
  const int64_t from = s.zero_ts + static_cast<int64_t>((promised_s - kEndWindow_s) / av_q2d(s.stream->time_base));
  if (promised_s > kEndWindow_s && !s.counts_frames() &&
      avformat_seek_file(s.input.get(), s.stream->index, INT64_MIN, from, from, 0) >= 0)
    s.flush();
  else
    s.open();
  int64_t end_ts = s.zero_ts, frames = 0;
  s.fresh = false;
  clear_libav_error();
  while (true) {
    av_packet_unref(s.packet.get());
    const int code = av_read_frame(s.input.get(), s.packet.get());
    if (code < 0) check_storage(s.input->pb->error);
    if (code == AVERROR_EOF) break;
    if (code == AVERROR(EAGAIN)) continue;
    if (code < 0) throw MediaError(fmt::format("truncated: the end cannot be read: {}", libav_error(code)));
    if (s.packet->stream_index != s.stream->index || (s.packet->flags & AV_PKT_FLAG_DISCARD)) continue;
    if (s.packet->flags & AV_PKT_FLAG_CORRUPT) throw MediaError("truncated: the last frame is incomplete");
    const int64_t ts = s.packet->pts != AV_NOPTS_VALUE ? s.packet->pts : s.packet->dts;
    ++frames;
    if (s.counts_frames())
      end_ts = s.counted_ts(frames);
    else if (ts != AV_NOPTS_VALUE)
      end_ts = std::max(end_ts, ts + (s.packet->duration > 0 ? s.packet->duration : s.nominal_ts));
  }
  const double end_s = s.seconds(end_ts - s.zero_ts);
  if (end_s + kMissingEnd_s + 2 / s.info.fps < promised_s && s.stream->duration > 0 && !s.counts_frames())
    throw MediaError(fmt::format("truncated: {:.2f} s of video promised, {:.2f} s found", promised_s, end_s));
  if (end_s > kLongest_s) throw MediaError(fmt::format("corrupt: timestamps reach {:.0f} s", end_s));
  s.info.duration_s = end_s;
}

MediaInfo probe_media(const std::string& path) {
  VideoReader reader(path, 1);
  reader.measure_end();
  return reader.info();
}

}  // namespace vmoba::data
