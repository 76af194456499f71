#include "data/clip_decoder.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "data/frame_sampler.h"
#include "data/transforms.h"

extern "C" {
#include <libavutil/frame.h>
}

namespace vmoba::data {
namespace {

class ClipWriter {
 public:
  ClipWriter(const MediaInfo& info, const ClipRequest& request)
      : request_(request),
        scaler_(info, request.height, request.width, request.flip, request.crop),
        video_CFHW_(at::empty({3, request.frames, request.height, request.width}, at::kByte)) {}

  // Puts the frame at `count` consecutive places.
  void put(const AVFrame& frame, int64_t count) {
    if (count == 0) return;
    scaler_.run(frame, {plane(0, written_), plane(1, written_), plane(2, written_)});
    const size_t bytes = static_cast<size_t>(request_.height * request_.width);
    for (int64_t i = 1; i < count; ++i)
      for (int64_t c = 0; c < 3; ++c) std::memcpy(plane(c, written_ + i), plane(c, written_), bytes);
    written_ += count;
  }
  at::Tensor take() { return std::move(video_CFHW_); }

 private:
  uint8_t* plane(int64_t channel, int64_t frame) {
    return video_CFHW_.data_ptr<uint8_t>() + (channel * request_.frames + frame) * request_.height * request_.width;
  }
  ClipRequest request_;
  FrameScaler scaler_;
  at::Tensor video_CFHW_;
  int64_t written_ = 0;
};

// A clip must not stand still where the clock of a file has a gap.
void check_gap(double time_s, double next_s, const ClipRequest& request) {
  constexpr double kClock_s = 1e-3;
  const double last_s = request.start_s + static_cast<double>(request.frames - 1) / request.fps;
  if (next_s > request.start_s + kClock_s && std::min(last_s, next_s) > time_s + kLongestHold_s)
    throw MediaError(fmt::format("corrupt: no frame between {:.3f} s and {:.3f} s", time_s, next_s));
}

}  // namespace

at::Tensor decode_clip(VideoReader& reader, const ClipRequest& request) {
  const MediaInfo& info = reader.info();
  ClipWriter writer(info, request);
  TimedFrame current;
  if (info.is_image) {
    if (!reader.next(current)) throw MediaError("corrupt: no frame");
    writer.put(*current.frame, request.frames);
    return writer.take();
  }
  reader.seek(request.start_s);
  ShownFrames shown(request.start_s, request.fps, request.frames, info.rate());
  // A frame's share of the clip is known once the next frame's time is.
  const FramePtr waiting = make_frame();
  TimedFrame previous;
  bool any = false;
  while (!shown.done() && reader.next(current)) {
    if (any && !info.is_animation) check_gap(previous.time_s, current.time_s, request);
    if (any) writer.put(*waiting, shown.take(previous.time_s, current.time_s));
    av_frame_unref(waiting.get());
    if (av_frame_ref(waiting.get(), current.frame) < 0) throw std::bad_alloc();
    previous = current;
    any = true;
  }
  if (any && !shown.done())
    writer.put(*waiting, shown.take_last(previous.time_s + std::max(previous.duration_s, 1.0 / info.fps)));
  if (!shown.done())
    throw MediaError(fmt::format("truncated: the video ends at {:.3f} s, the clip needs {:.3f} s", previous.time_s,
                                 request.start_s + needed_seconds(request.frames, info.rate(), request.fps)));
  return writer.take();
}

}  // namespace vmoba::data
