#include "data/jpeg.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavutil/avutil.h>
#include <libswscale/swscale.h>
}

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/check.h"
#include "data/libav_ptr.h"
#include "data/still_encoder.h"

namespace vmoba::data {
namespace {

constexpr int kQuantizer = 3;  // of 1 to 31

CodecPtr open_encoder(int width, int height) {
  const AVCodec* jpeg = avcodec_find_encoder(AV_CODEC_ID_MJPEG);
  VMOBA_CHECK(jpeg != nullptr, "expected a JPEG encoder in libavcodec, found none; install a complete FFmpeg");
  CodecPtr encoder(avcodec_alloc_context3(jpeg));
  encoder->width = width;
  encoder->height = height;
  encoder->pix_fmt = AV_PIX_FMT_YUVJ420P;
  encoder->color_range = AVCOL_RANGE_JPEG;
  encoder->time_base = {1, 25};
  encoder->thread_count = 1;
  encoder->flags |= AV_CODEC_FLAG_QSCALE | AV_CODEC_FLAG_BITEXACT;
  encoder->global_quality = FF_QP2LAMBDA * kQuantizer;
  const int code = avcodec_open2(encoder.get(), jpeg, nullptr);
  VMOBA_CHECK(code >= 0, "expected a JPEG encoder for {}x{}, failed: {}", width, height, libav_error(code));
  return encoder;
}

// In full range, as JPEG has it.
void convert(const at::Tensor& rgb_CHW, AVFrame& frame) {
  const at::Tensor planes = rgb_CHW.contiguous();
  const auto* data = planes.data_ptr<uint8_t>();
  const int64_t plane = planes.size(1) * planes.size(2);
  const ScalerPtr scaler(sws_getContext(frame.width, frame.height, AV_PIX_FMT_GBRP, frame.width, frame.height,
                                        AV_PIX_FMT_YUVJ420P, SWS_BICUBIC | SWS_ACCURATE_RND, nullptr, nullptr,
                                        nullptr));
  VMOBA_CHECK(scaler != nullptr, "expected a colour converter for {}x{}, found none", frame.width, frame.height);
  const uint8_t* sources[4] = {data + plane, data + 2 * plane, data, nullptr};
  const int strides[4] = {frame.width, frame.width, frame.width, 0};
  sws_scale(scaler.get(), sources, strides, 0, frame.height, frame.data, frame.linesize);
}

}  // namespace

std::string encode_jpeg(const at::Tensor& rgb_CHW) {
  VMOBA_CHECK(rgb_CHW.dim() == 3 && rgb_CHW.size(0) == 3 && rgb_CHW.scalar_type() == at::kByte &&
                  rgb_CHW.device().is_cpu() && rgb_CHW.numel() > 0 && rgb_CHW.size(1) <= 16384 &&
                  rgb_CHW.size(2) <= 16384,
              "expected uint8 [3, H, W] on the CPU for a JPEG, found {} {}", rgb_CHW.toString(),
              fmt::join(rgb_CHW.sizes(), "x"));
  route_libav_log();
  clear_libav_error();
  const CodecPtr encoder = open_encoder(int(rgb_CHW.size(2)), int(rgb_CHW.size(1)));
  return encode_still(*encoder, "JPEG", [&](AVFrame& frame) { convert(rgb_CHW, frame); });
}

}  // namespace vmoba::data
