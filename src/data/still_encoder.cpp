#include "data/still_encoder.h"

extern "C" {
#include <libavcodec/avcodec.h>
}

#include "core/check.h"
#include "data/libav_ptr.h"

namespace vmoba::data {

std::string encode_still(AVCodecContext& encoder, const char* kind, const std::function<void(AVFrame&)>& fill) {
  const FramePtr frame = make_frame();
  const PacketPtr packet = make_packet();
  frame->format = encoder.pix_fmt;
  frame->width = encoder.width;
  frame->height = encoder.height;
  frame->quality = encoder.global_quality;
  int code = av_frame_get_buffer(frame.get(), 0);
  if (code >= 0) {
    fill(*frame);
    code = avcodec_send_frame(&encoder, frame.get());
  }
  if (code >= 0) code = avcodec_send_frame(&encoder, nullptr);
  if (code >= 0) code = avcodec_receive_packet(&encoder, packet.get());
  VMOBA_CHECK(code >= 0, "expected to encode a {} of {}x{}, failed: {}", kind, encoder.width, encoder.height,
              libav_error(code));
  return std::string(reinterpret_cast<const char*>(packet->data), static_cast<size_t>(packet->size));
}

}  // namespace vmoba::data
