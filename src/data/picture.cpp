#include "data/picture.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "data/clip_decoder.h"

namespace vmoba::data {

at::Tensor read_picture(const std::string& path, double time_s, int64_t height, int64_t width, const CropBox& crop) {
  try {
    VideoReader reader(path, /*threads=*/1);
    ClipRequest request;
    request.start_s = time_s;
    request.height = height;
    request.width = width;
    request.crop = crop;
    return decode_clip(reader, request).select(1, 0).contiguous();
  } catch (const MediaError& e) {
    throw StorageError(e.kind(), fmt::format("expected an image or video at '{}', found {}", path, e.what()),
                       e.error_number());
  }
}

}  // namespace vmoba::data
