#include "data/video_reader.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
}

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "data/libav_number.h"
#include "data/media_content.h"
#include "data/media_input.h"

namespace vmoba::data {
namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 27;  // of one frame; larger headers are taken for damage
constexpr int kMaxLeadingErrors = 64;             // damaged packets allowed before the first clean frame
constexpr double kEndWindow_s = 2.0;              // how much of the end measure_end reads
constexpr double kLongest_s = 1e6;                // longer videos (12 days) are taken for damaged timestamps
constexpr double kMissingEnd_s = 0.5;             // a container may promise this much more than it holds
constexpr double kWindowGrowth = 8;               // of the end that measure_end reads, until it meets a frame
constexpr int64_t kMaxScan_bytes = 1 << 30;       // larger files without an index are not read whole for their clock
constexpr double kClockBack_s = 1;                // decoding times that go back further are of another recording

// When the packets of a stream are shown, from the first displayed frame on.
struct PacketTimes {
  std::vector<double> shown_s;
  double end_s = 0;
  bool whole = false;  // of all of the file
};

}  // namespace

struct VideoReader::State {
  std::string path;
  int threads = 1;
  ReadWatch* watch = nullptr;
  MediaContent content;
  InputPtr input;
  CodecPtr codec;
  AVStream* stream = nullptr;
  PacketPtr packet = make_packet();
  FramePtr frame = make_frame();
  MediaInfo info;
  int64_t zero_ts = 0;                 // timestamp of the first displayed frame
  int64_t last_ts = AV_NOPTS_VALUE;    // of the frame delivered last
  int64_t nominal_ts = 1;              // a frame's usual duration in ticks
  int64_t first_dts = AV_NOPTS_VALUE;  // of the file, where its packets have decoding times only
  int64_t key_dts = AV_NOPTS_VALUE;    // of the packet that decoding began with
  bool held = false;                   // `frame` is decoded and not delivered yet
  bool draining = false;
  bool clean = false;  // a frame was decoded since the last open or seek
  bool wait_for_key = false;
  bool fresh = true;           // nothing was delivered since opening
  int64_t decoded_frames = 0;  // since opening
  int leading_errors = 0;

  void open();        // the file; nothing is decoded
  void open_first();  // the same, with the first frame held
  void open_codec();
  bool holds_one_frame();  // reads the packets of an animation
  void describe(bool is_image);
  bool decode();  // the next frame into `frame`
  bool feed();    // one packet to the decoder; false once all were sent
  // Without decoding: from where the file stands to its end, the end alone, and whether more than that is needed.
  PacketTimes read_times();
  PacketTimes read_end(double promised_s);
  bool clock_may_have_gaps() const;
  void check_cancel() const {
    if (watch && watch->part_read()) throw MediaError("cancelled");
  }
  bool land(int64_t target_ts);  // decodes the first frame after a seek; true where it is early enough
  void flush();
  // Program streams and bare streams time only some of their frames, or none: theirs are counted, from the start of the
  // file.
  bool counts_frames() const {
    const std::string_view name(input->iformat->name);
    for (const char* bare : {"mpeg", "mpegvideo", "m4v", "h264", "hevc", "obu", "av1"})
      if (name == bare) return true;
    return (input->iformat->flags & AVFMT_NOTIMESTAMPS) != 0;
  }
  // Matroska times every packet; what has no time lies before its zero, and no player shows it.
  bool is_before_zero() const {
    return std::string_view(input->iformat->name).starts_with("matroska") && frame->pts == AV_NOPTS_VALUE &&
           frame->pkt_dts == AV_NOPTS_VALUE;
  }
  int64_t counted_ts(int64_t frames) const {
    return std::llround(static_cast<double>(frames) / info.fps / av_q2d(stream->time_base));
  }
  double seconds(int64_t ts) const { return static_cast<double>(ts) * av_q2d(stream->time_base); }
  // Of a packet that has a decoding time only: frames leave the decoder a constant time after it.
  double shown_by_dts(int64_t dts) const { return seconds(dts - (first_dts == AV_NOPTS_VALUE ? zero_ts : first_dts)); }
  // Of a frame that carries no time.
  int64_t guessed_ts() const {
    if (last_ts != AV_NOPTS_VALUE) return last_ts + nominal_ts;
    return key_dts == AV_NOPTS_VALUE ? zero_ts : zero_ts + key_dts - first_dts;
  }
};

void VideoReader::State::open() {
  codec.reset();
  input.reset();
  input = open_input(path, content);
  int code = avformat_find_stream_info(input.get(), nullptr);
  check_storage(input->pb->error);
  if (code < 0) throw MediaError(fmt::format("corrupt: {}", libav_error(code)));
  const int index = choose_stream(*input);
  for (unsigned i = 0; i < input->nb_streams; ++i)
    input->streams[i]->discard = static_cast<int>(i) == index ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
  stream = input->streams[index];
  open_codec();
  draining = clean = held = wait_for_key = false;
  last_ts = key_dts = AV_NOPTS_VALUE;
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

bool VideoReader::State::holds_one_frame() {
  open();
  return read_times().shown_s.size() == 1;
}

void VideoReader::State::describe(bool is_image) {
  info.width = frame->width;
  info.height = frame->height;
  const AVRational aspect = av_guess_sample_aspect_ratio(input.get(), stream, frame.get());
  info.pixel_aspect = aspect.num > 0 && aspect.den > 0 ? av_q2d(aspect) : 1.0;
  if (info.pixel_aspect < 1.0 / 16 || info.pixel_aspect > 16) info.pixel_aspect = 1.0;
  info.is_image = is_image || is_still(*input, *stream);
  const auto turned = info.is_image ? picture_orientation(path) : std::nullopt;
  info.orientation = turned ? *turned : stored_orientation(*stream, *frame);
  info.displayed_width = std::max<int64_t>(1, std::llround(static_cast<double>(info.width) * info.pixel_aspect));
  info.displayed_height = info.height;
  if (info.orientation.swaps_axes()) std::swap(info.displayed_width, info.displayed_height);
  info.codec = avcodec_get_name(stream->codecpar->codec_id);
  info.interlaced = is_interlaced(*frame);
  const int transfer = number_in(frame->color_trc);
  info.hdr = transfer == AVCOL_TRC_SMPTE2084 || transfer == AVCOL_TRC_ARIB_STD_B67;
  info.is_animation = content.animation;
  if (info.is_image) return;
  AVRational rate = stream->avg_frame_rate.num > 0 ? stream->avg_frame_rate : stream->r_frame_rate;
  // AVI may count empty places between frames.
  if (first_dts != AV_NOPTS_VALUE && stream->r_frame_rate.num > 0 && av_cmp_q(stream->r_frame_rate, rate) < 0)
    rate = stream->r_frame_rate;
  info.fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 25.0;
  info.steady = !content.animation && (counts_frames() || is_steady(*stream));
  info.numbered = info.steady && (counts_frames() || is_numbered(*stream, info.interlaced));
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
    if (key_dts == AV_NOPTS_VALUE && packet->pts == AV_NOPTS_VALUE) {
      key_dts = packet->dts;
      if (first_dts == AV_NOPTS_VALUE) first_dts = key_dts;
    }
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
    if (is_before_zero()) continue;
    ++decoded_frames;
    if (counts_frames())
      frame->best_effort_timestamp = decoded_frames == 1 ? 0 : counted_ts(decoded_frames - 1);
    else if (frame->best_effort_timestamp == AV_NOPTS_VALUE)
      frame->best_effort_timestamp = guessed_ts();
    return true;
  }
}

void VideoReader::State::flush() {
  avcodec_flush_buffers(codec.get());
  draining = clean = held = false;
  last_ts = key_dts = AV_NOPTS_VALUE;
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

VideoReader::VideoReader(const std::string& path, int threads, ReadWatch* watch) : state_(std::make_unique<State>()) {
  route_libav_log();
  state_->path = path;
  state_->threads = threads;
  state_->watch = watch;
  state_->content = media_content(path);
  const bool still = state_->content.animation && state_->holds_one_frame();
  try {
    state_->open_first();
  } catch (const MediaError& error) {
    if (state_->content.way_out.empty() || !std::string_view(error.what()).starts_with("corrupt")) throw;
    throw MediaError(fmt::format("unsupported: {} ({})", state_->content.way_out, error.what()));
  }
  const std::string_view demuxer(state_->input->iformat->name);
  state_->describe(still || (demuxer.ends_with("_pipe") && demuxer != "yuv4mpegpipe"));
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

PacketTimes VideoReader::State::read_times() {
  PacketTimes out;
  int64_t last_dts = AV_NOPTS_VALUE;
  bool last_incomplete = false;
  fresh = false;
  clear_libav_error();
  while (true) {
    check_cancel();
    av_packet_unref(packet.get());
    const int code = av_read_frame(input.get(), packet.get());
    if (code < 0) check_storage(input->pb->error);
    if (code == AVERROR_EOF) break;
    if (code == AVERROR(EAGAIN)) continue;
    if (code < 0) throw MediaError(fmt::format("truncated: the end cannot be read: {}", libav_error(code)));
    if (packet->stream_index != stream->index || (packet->flags & AV_PKT_FLAG_DISCARD)) continue;
    last_incomplete = (packet->flags & AV_PKT_FLAG_CORRUPT) != 0;
    const int64_t dts = packet->dts;
    if (last_dts != AV_NOPTS_VALUE && dts != AV_NOPTS_VALUE && seconds(last_dts - dts) > kClockBack_s)
      throw MediaError(
          fmt::format("corrupt: timestamps go back {:.1f} s at {:.3f} s, as in joined files; remux the file",
                      seconds(last_dts - dts), shown_by_dts(last_dts)));
    if (dts != AV_NOPTS_VALUE) last_dts = dts;
    const auto frames = static_cast<int64_t>(out.shown_s.size());
    int64_t frame_ts = packet->duration > 0 ? packet->duration : nominal_ts;
    if (packet->pts == AV_NOPTS_VALUE) frame_ts = std::max(frame_ts, nominal_ts);
    if (counts_frames()) {
      out.shown_s.push_back(seconds(counted_ts(frames)));
      out.end_s = seconds(counted_ts(frames + 1));
    } else if (packet->pts != AV_NOPTS_VALUE || dts != AV_NOPTS_VALUE) {
      out.shown_s.push_back(packet->pts != AV_NOPTS_VALUE ? seconds(packet->pts - zero_ts) : shown_by_dts(dts));
      out.end_s = std::max(out.end_s, out.shown_s.back() + seconds(frame_ts));
    }
  }
  if (last_incomplete) throw MediaError("truncated: the last frame is incomplete");
  return out;
}

// The container may promise more than the video has, because its sound is longer: the window grows until it holds some.
PacketTimes VideoReader::State::read_end(double promised_s) {
  for (double window_s = kEndWindow_s; window_s < promised_s && !counts_frames(); window_s *= kWindowGrowth) {
    const int64_t from = zero_ts + static_cast<int64_t>((promised_s - window_s) / av_q2d(stream->time_base));
    if (avformat_seek_file(input.get(), stream->index, INT64_MIN, from, from, 0) < 0) break;
    flush();
    if (PacketTimes out = read_times(); !out.shown_s.empty()) return out;
  }
  open();
  PacketTimes out = read_times();
  out.whole = true;
  return out;
}

// Containers with an index tell; others are read whole.
bool VideoReader::State::clock_may_have_gaps() const {
  if (info.is_animation || counts_frames()) return false;
  const std::string_view name(input->iformat->name);
  const bool small = avio_size(input->pb) <= kMaxScan_bytes;
  const int entries = avformat_index_get_entries_count(stream);
  if ((!name.starts_with("mov") && !name.starts_with("matroska") && name != "avi") || entries == 0) return small;
  int64_t last_ts_in_index = zero_ts;
  for (int i = 0; i < entries; ++i) {
    const AVIndexEntry* entry = avformat_index_get_entry(stream, i);
    if (seconds(entry->timestamp - last_ts_in_index) > kLongestHold_s) return true;
    last_ts_in_index = std::max(last_ts_in_index, entry->timestamp);
  }
  return false;
}

void VideoReader::measure_end() {
  State& s = *state_;
  if (s.info.is_image) return;
  const double promised_s = s.info.duration_s;
  PacketTimes times = s.read_end(promised_s);
  if (!times.whole && s.clock_may_have_gaps()) {
    s.open();
    times = s.read_times();
    times.whole = true;
  }
  const double end_s = times.end_s;
  if (end_s + kMissingEnd_s + 2 / s.info.fps < promised_s && s.stream->duration > 0 && !s.counts_frames())
    throw MediaError(fmt::format("truncated: {:.2f} s of video promised, {:.2f} s found", promised_s, end_s));
  if (end_s > kLongest_s) throw MediaError(fmt::format("corrupt: timestamps reach {:.0f} s", end_s));
  s.info.duration_s = end_s;
  s.info.parts = {{0, end_s}};
  if (times.whole && !s.info.is_animation) s.info.parts = frame_parts(std::move(times.shown_s), end_s);
}

MediaInfo probe_media(const std::string& path, ReadWatch* watch) {
  VideoReader reader(path, 1, watch);
  reader.measure_end();
  return reader.info();
}

}  // namespace vmoba::data
