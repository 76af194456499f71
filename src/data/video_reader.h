// One video or image file through libav: what it holds, and its frames in display order.
//
// Time 0 is the first displayed frame, whatever the container's clock starts at (edit lists, negative or late first
// timestamps). Streams without presentation times are timed by their decoding times, streams without any by their rate.
// What a file is follows from its bytes, not from its name. seek() is exact: it lands before the wanted time on a frame
// that decodes cleanly, so that the caller meets every displayed frame from there on. The video stream is the one
// marked default with the most pixels; audio, subtitles, cover art and thumbnails are ignored.
//
// A reader belongs to one thread. Frames are owned by the reader and valid until the next call.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/storage.h"
#include "data/frame_parts.h"
#include "data/frame_sampler.h"
#include "data/libav_ptr.h"

namespace vmoba::data {

// Why a file cannot be used: the message is the reason alone ("truncated: ..."); the caller knows the path.
class MediaError : public StorageError {
 public:
  explicit MediaError(const std::string& reason, int error_number = 0, bool waited_out = false)
      : StorageError(ErrorKind::kInput, reason, error_number, waited_out) {}
};

// How a stored frame becomes the displayed one: mirror left-right first, then turn clockwise.
struct Orientation {
  bool mirror = false;
  int turns = 0;  // quarter turns clockwise
  bool swaps_axes() const { return turns % 2 != 0; }
  bool operator==(const Orientation&) const = default;
};

struct MediaInfo {
  int64_t width = 0, height = 0;  // stored pixels
  double pixel_aspect = 1;        // width of a stored pixel over its height
  Orientation orientation;
  int64_t displayed_width = 0, displayed_height = 0;  // square pixels, turned
  double fps = 0;                                     // average; 0 for images
  double duration_s = 0;                              // first frame's start to last frame's end; 0 for images
  bool is_image = false;
  bool steady = true;         // frames follow each other at fps (SourceRate)
  bool numbered = true;       // frame n is shown n / fps behind the first one
  bool is_animation = false;  // GIF, APNG: every frame stays as long as the file says
  bool interlaced = false, hdr = false;
  std::vector<FramePart> parts;  // set by measure_end(); one, unless the clock has gaps
  std::string codec;
  SourceRate rate() const { return {fps, steady}; }
};

struct TimedFrame {
  const AVFrame* frame = nullptr;
  double time_s = 0;
  double duration_s = 0;  // as stored; 0 where the file does not say
};

class VideoReader {
 public:
  // Opens the file and decodes its first frame. `threads`: libav's decoding threads. `watch`, where given, is told
  // of every packet; calls throw MediaError soon after it is cancelled. Throws MediaError.
  VideoReader(const std::string& path, int threads, ReadWatch* watch = nullptr);
  ~VideoReader();

  // duration_s is what the container says until measure_end() was called.
  const MediaInfo& info() const;
  // The container's video stream number, for comparison with other programs.
  int stream_index() const;

  // The next displayed frame; false at the end. Throws MediaError where a frame is damaged.
  bool next(TimedFrame& out);
  // Makes next() start at the last frame whose time is <= time_s, or at an earlier one.
  void seek(double time_s);
  // Reads the end of the file without decoding it, or all of it where its clock may have gaps: sets info().duration_s
  // and parts, or throws MediaError where the file is truncated or its clock goes back. next() needs a seek()
  // afterwards.
  void measure_end();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Opens, decodes the first frame, measures the end. Throws MediaError ("missing: ...", "empty: ...", "corrupt: ...",
// "truncated: ...", "audio only: ...", "unsupported: ...").
MediaInfo probe_media(const std::string& path, ReadWatch* watch = nullptr);

}  // namespace vmoba::data
