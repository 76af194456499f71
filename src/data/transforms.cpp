#include "data/transforms.h"

extern "C" {
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "data/libav_number.h"

namespace vmoba::data {
namespace {

// swscale's vector code writes whole groups of pixels: rows that end elsewhere go through padded scratch rows.
constexpr int64_t kRowGroup_pixels = 16;
constexpr int64_t kScratchAlign_pixels = 64;

int64_t round_to(double value, int64_t multiple) {
  return std::max<int64_t>(multiple, multiple * std::llround(value / static_cast<double>(multiple)));
}

// The full-range twins of the YUV formats are deprecated names for "full range".
AVPixelFormat plain_format(AVPixelFormat format, bool& full_range) {
  switch (format) {
    case AV_PIX_FMT_YUVJ420P:
      full_range = true;
      return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P:
      full_range = true;
      return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P:
      full_range = true;
      return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P:
      full_range = true;
      return AV_PIX_FMT_YUV440P;
    case AV_PIX_FMT_YUVJ411P:
      full_range = true;
      return AV_PIX_FMT_YUV411P;
    default:
      return format;
  }
}

bool is_grey(AVPixelFormat format) {
  const AVPixFmtDescriptor* description = av_pix_fmt_desc_get(format);
  constexpr uint64_t kColoured = AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL;
  return description && description->nb_components <= 2 && (description->flags & kColoured) == 0;
}

int matrix_of(int space, bool is_image, int width, int height) {
  switch (space) {
    case AVCOL_SPC_BT709:
      return SWS_CS_ITU709;
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M:
      return SWS_CS_ITU601;
    case AVCOL_SPC_FCC:
      return SWS_CS_FCC;
    case AVCOL_SPC_SMPTE240M:
      return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT2020_NCL:
      return SWS_CS_BT2020;
    case AVCOL_SPC_RGB:
    case AVCOL_SPC_UNSPECIFIED:
    case AVCOL_SPC_RESERVED:
      return !is_image && (width >= 1280 || height > 576) ? SWS_CS_ITU709 : SWS_CS_ITU601;
    default: {
      const bool known = space >= 0 && space < AVCOL_SPC_NB;
      const char* name = known ? av_color_space_name(AVColorSpace(space)) : nullptr;
      throw MediaError(name != nullptr ? fmt::format("unsupported: colour matrix '{}'", name)
                                       : fmt::format("corrupt: a colour matrix of number {}", space));
    }
  }
}

}  // namespace

CropBox cover_crop(const MediaInfo& info, int64_t out_width, int64_t out_height, int64_t align_x, int64_t align_y) {
  if (info.orientation.swaps_axes()) std::swap(out_width, out_height);
  const double width = static_cast<double>(info.width) * info.pixel_aspect, height = static_cast<double>(info.height);
  const double scale = std::max(static_cast<double>(out_width) / width, static_cast<double>(out_height) / height);
  CropBox box;
  box.width = std::min(info.width, round_to(static_cast<double>(out_width) / scale / info.pixel_aspect, align_x));
  box.height = std::min(info.height, round_to(static_cast<double>(out_height) / scale, align_y));
  box.x = (info.width - box.width) / 2 / align_x * align_x;
  box.y = (info.height - box.height) / 2 / align_y * align_y;
  return box;
}

CropBox stored_box(const MediaInfo& info, const CropBox& displayed) {
  if (displayed.width == 0 || displayed.height == 0) return {0, 0, info.width, info.height};
  const double width = static_cast<double>(info.width) * info.pixel_aspect;
  const int64_t seen_width = std::max<int64_t>(1, std::llround(width)), seen_height = info.height;
  CropBox box = displayed;
  switch (info.orientation.turns) {
    case 1:
      box = {displayed.y, seen_height - displayed.x - displayed.width, displayed.height, displayed.width};
      break;
    case 2:
      box.x = seen_width - displayed.x - displayed.width;
      box.y = seen_height - displayed.y - displayed.height;
      break;
    case 3:
      box = {seen_width - displayed.y - displayed.height, displayed.x, displayed.height, displayed.width};
      break;
    default:
      break;
  }
  if (info.orientation.mirror) box.x = seen_width - box.x - box.width;
  const auto stored = [&](int64_t x) { return std::llround(static_cast<double>(x) / info.pixel_aspect); };
  const int64_t right = std::clamp<int64_t>(stored(box.x + box.width), 1, info.width);
  box.x = std::clamp<int64_t>(stored(box.x), 0, right - 1);
  box.width = right - box.x;
  box.y = std::clamp<int64_t>(box.y, 0, info.height - 1);
  box.height = std::clamp<int64_t>(box.height, 1, info.height - box.y);
  return box;
}

FrameScaler::FrameScaler(const MediaInfo& info, int64_t out_height, int64_t out_width, bool flip, const CropBox& part)
    : info_(info), out_height_(out_height), out_width_(out_width), flip_(flip), part_(part) {
  const bool swaps = info.orientation.swaps_axes();
  scaled_width_ = swaps ? out_height : out_width;
  scaled_height_ = swaps ? out_width : out_height;
  direct_ = !flip && !info.orientation.mirror && info.orientation.turns == 0 && out_width % kRowGroup_pixels == 0;
  if (direct_) return;
  scratch_stride_ = (scaled_width_ + kScratchAlign_pixels - 1) / kScratchAlign_pixels * kScratchAlign_pixels;
  scratch_.resize(static_cast<size_t>(3 * scratch_stride_ * scaled_height_ + kScratchAlign_pixels));
}

void FrameScaler::prepare(const Key& key) {
  const auto format = static_cast<AVPixelFormat>(key.format);
  const AVPixFmtDescriptor* description = av_pix_fmt_desc_get(format);
  if (!description || (description->flags & AV_PIX_FMT_FLAG_HWACCEL) || !sws_isSupportedInput(format))
    throw MediaError(fmt::format("unsupported: pixel format '{}'", description ? description->name : "none"));
  info_.width = key.width;
  info_.height = key.height;
  // Formats that pack pixels into bits can only be cut at bytes.
  const bool bits = (description->flags & AV_PIX_FMT_FLAG_BITSTREAM) != 0;
  const int64_t align_x = bits ? 8 : 1 << description->log2_chroma_w, align_y = 1 << description->log2_chroma_h;
  const CropBox seen = stored_box(info_, part_);
  MediaInfo part = info_;
  part.width = seen.width;
  part.height = seen.height;
  crop_ = cover_crop(part, out_width_, out_height_, align_x, align_y);
  crop_.x += seen.x / align_x * align_x;
  crop_.y += seen.y / align_y * align_y;
  key_ = {};  // until this succeeds
  unscaled_.reset();
  scaler_.reset();
  if (format == AV_PIX_FMT_YUV420P && crop_.width == scaled_width_ && crop_.height == scaled_height_)
    unscaled_.emplace(sws_getCoefficients(key.matrix), key.range != 0);
  else
    make_scaler(key, description->name, description->log2_chroma_h == 1);
  key_ = key;
}

void FrameScaler::make_scaler(const Key& key, const char* format_name, bool halves_rows) {
  SwsContext* scaler = sws_alloc_context();
  if (!scaler) throw std::bad_alloc();
  scaler_.reset(scaler);
  av_opt_set_int(scaler, "srcw", crop_.width, 0);
  av_opt_set_int(scaler, "srch", crop_.height, 0);
  av_opt_set_int(scaler, "src_format", key.format, 0);
  av_opt_set_int(scaler, "dstw", scaled_width_, 0);
  av_opt_set_int(scaler, "dsth", scaled_height_, 0);
  av_opt_set_int(scaler, "dst_format", AV_PIX_FMT_GBRP, 0);
  av_opt_set_int(scaler, "sws_flags", SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP, 0);
  if (halves_rows) av_opt_set_int(scaler, "src_v_chr_pos", 128, 0);
  if (sws_init_context(scaler, nullptr, nullptr) < 0)
    throw MediaError(fmt::format("unsupported: {} {}x{} cannot be scaled to {}x{}", format_name, crop_.width,
                                 crop_.height, scaled_width_, scaled_height_));
  sws_setColorspaceDetails(scaler, sws_getCoefficients(key.matrix), key.range, sws_getCoefficients(SWS_CS_DEFAULT), 1,
                           0, 1 << 16, 1 << 16);
}

void FrameScaler::convert(const AVFrame& cropped, uint8_t* const planes[4], const int strides[4]) {
  if (unscaled_)
    return unscaled_->run({cropped.data[0], cropped.data[1], cropped.data[2]},
                          {cropped.linesize[0], cropped.linesize[1], cropped.linesize[2]}, crop_.width, crop_.height,
                          {planes[2], planes[0], planes[1]}, strides[0]);
  if (sws_scale(scaler_.get(), cropped.data, cropped.linesize, 0, static_cast<int>(crop_.height), planes, strides) !=
      scaled_height_)
    throw MediaError("unsupported: the scaler gave up on a frame");
}

void FrameScaler::run(const AVFrame& frame, const RgbPlanes& out) {
  const int range = number_in(frame.color_range);
  bool full_range = range == AVCOL_RANGE_JPEG;
  const AVPixelFormat format = plain_format(static_cast<AVPixelFormat>(frame.format), full_range);
  full_range |= info_.is_image && range != AVCOL_RANGE_MPEG && is_grey(format);
  const int matrix = matrix_of(number_in(frame.colorspace), info_.is_image, frame.width, frame.height);
  const Key key{frame.width, frame.height, format, matrix, full_range ? 1 : 0};
  if (!(key == key_)) prepare(key);

  FramePtr cropped = make_frame();
  if (av_frame_ref(cropped.get(), &frame) < 0) throw std::bad_alloc();
  if ((av_pix_fmt_desc_get(format)->flags & AV_PIX_FMT_FLAG_BITSTREAM) != 0) {
    cropped->data[0] += crop_.y * cropped->linesize[0] + crop_.x / 8;
  } else {
    cropped->crop_left = static_cast<size_t>(crop_.x);
    cropped->crop_top = static_cast<size_t>(crop_.y);
    if (av_frame_apply_cropping(cropped.get(), AV_FRAME_CROP_UNALIGNED) < 0)
      throw MediaError("corrupt: a frame's crop does not fit it");
  }
  uint8_t* planes[4] = {out.green, out.blue, out.red, nullptr};
  int strides[4] = {static_cast<int>(out_width_), static_cast<int>(out_width_), static_cast<int>(out_width_), 0};
  if (!direct_) {
    auto* base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(scratch_.data()) + kScratchAlign_pixels - 1) /
                                            kScratchAlign_pixels * kScratchAlign_pixels);
    for (int i = 0; i < 3; ++i) {
      planes[i] = base + i * scratch_stride_ * scaled_height_;
      strides[i] = static_cast<int>(scratch_stride_);
    }
  }
  convert(*cropped, planes, strides);
  if (direct_) return;
  turn(planes[2], out.red);
  turn(planes[0], out.green);
  turn(planes[1], out.blue);
}

// Copies a scaled plane to its displayed place. Displayed (x, y) comes from offset + x * step_x + y * step_y.
void FrameScaler::turn(const uint8_t* from, uint8_t* to) const {
  const auto stored_at = [&](int64_t x, int64_t y) {
    if (flip_) x = out_width_ - 1 - x;
    int64_t sx = x, sy = y;
    switch (info_.orientation.turns) {
      case 1:
        sx = y, sy = scaled_height_ - 1 - x;
        break;
      case 2:
        sx = scaled_width_ - 1 - x, sy = scaled_height_ - 1 - y;
        break;
      case 3:
        sx = scaled_width_ - 1 - y, sy = x;
        break;
      default:
        break;
    }
    if (info_.orientation.mirror) sx = scaled_width_ - 1 - sx;
    return sy * scratch_stride_ + sx;
  };
  const int64_t offset = stored_at(0, 0), step_x = stored_at(1, 0) - offset, step_y = stored_at(0, 1) - offset;
  for (int64_t y = 0; y < out_height_; ++y) {
    const int64_t row = offset + y * step_y;
    if (step_x == 1) {
      std::memcpy(to + y * out_width_, from + row, static_cast<size_t>(out_width_));
    } else {
      for (int64_t x = 0; x < out_width_; ++x) to[y * out_width_ + x] = from[row + x * step_x];
    }
  }
}

}  // namespace vmoba::data
