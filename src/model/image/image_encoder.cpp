#include "model/image_encoder.h"

#include "core/check.h"

namespace vmoba::model {

void ImageEncoderConfig::visit(ConfigVisitor& v) {
  v.field("type", type, "Encoder of the conditioning image: `clip` for Wan2.1 image-to-video, else `none`.",
          one_of({"none", "clip"}));
  v.field("weights", weights, "File or folder of the pretrained encoder; empty for `none`.");
}

std::unique_ptr<ImageEncoder> make_image_encoder(const ImageEncoderConfig& config, at::Device) {
  VMOBA_CHECK_INPUT(config.type == "none", "image_encoder.type: expected none in this build, found {}", config.type);
  return nullptr;
}

}  // namespace vmoba::model
