// From a stored frame to a training frame: colour, crop, scale, turn, mirror.
//
// Resize to cover, then centre crop, done as one scaling of the part of the stored frame that stays visible (bicubic,
// widened when shrinking). Colours: the frame's own matrix (BT.601, 709, 2020 constant-free, FCC, SMPTE 240M) and
// range; where the file does not say, BT.601 for images and for video up to 576 lines and 1279 columns, BT.709 above.
// 8-bit 4:2:0 video that needs no scaling takes a quicker way with linear chroma (yuv_to_rgb.h). High bit depths are
// rounded to 8 bits, grey images are full range unless they say otherwise, alpha is dropped, transfer curves (HDR) are
// left alone.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "data/libav_ptr.h"
#include "data/video_reader.h"
#include "data/yuv_to_rgb.h"

namespace vmoba::data {

struct CropBox {
  int64_t x = 0, y = 0, width = 0, height = 0;
  bool operator==(const CropBox&) const = default;
};

// The largest centred part of a stored frame with the aspect of `out_width` x `out_height` (both as displayed), in
// stored pixels. Its edges lie on multiples of `align_x` and `align_y` (chroma samples), or on the frame's own edges.
CropBox cover_crop(const MediaInfo& info, int64_t out_width, int64_t out_height, int64_t align_x, int64_t align_y);

// Where a part of the displayed picture lies in the stored frame; all of the frame where `displayed` is empty.
CropBox stored_box(const MediaInfo& info, const CropBox& displayed);

// Planes of one 8-bit RGB picture without row padding.
struct RgbPlanes {
  uint8_t* red = nullptr;
  uint8_t* green = nullptr;
  uint8_t* blue = nullptr;
};

// Reused for all frames of a clip; not thread-safe.
class FrameScaler {
 public:
  // `info` gives orientation and pixel aspect; size and colour are taken from each frame. `part` of the displayed
  // picture is all that is seen; empty: all of it is.
  FrameScaler(const MediaInfo& info, int64_t out_height, int64_t out_width, bool flip, const CropBox& part = {});
  // Throws MediaError where the frame's format cannot be converted.
  void run(const AVFrame& frame, const RgbPlanes& out);

 private:
  // What the scaler was built for; another key in mid-stream builds another one.
  struct Key {
    int width = 0, height = 0, format = -1, matrix = 0, range = 0;
    bool operator==(const Key&) const = default;
  };
  void prepare(const Key& key);
  void make_scaler(const Key& key, const char* format_name, bool halves_rows);
  void convert(const AVFrame& cropped, uint8_t* const planes[4], const int strides[4]);
  void turn(const uint8_t* from, uint8_t* to) const;

  MediaInfo info_;
  int64_t out_height_, out_width_;
  bool flip_;
  CropBox part_;
  bool direct_;  // scaled rows can go straight to the caller's planes
  int64_t scaled_width_, scaled_height_, scratch_stride_ = 0;
  std::vector<uint8_t> scratch_;
  Key key_;
  CropBox crop_;
  ScalerPtr scaler_;
  std::optional<YuvToRgb> unscaled_;  // instead of scaler_ where nothing is to be scaled
};

}  // namespace vmoba::data
