#include "model/image_encoder.h"

#include "core/registry.h"
#include "model/image/clip_image_encoder.h"

namespace vmoba::model {
namespace {

using MakeImageEncoder = std::unique_ptr<ImageEncoder> (*)(const ImageEncoderConfig&, at::Device);

std::unique_ptr<ImageEncoder> make_no_image_encoder(const ImageEncoderConfig& config, at::Device) {
  VMOBA_CHECK_INPUT(config.weights.empty(),
                    "image_encoder.weights: expected empty for image_encoder.type none, found {}", config.weights);
  return nullptr;
}

// One line per image encoder.
const Registry<MakeImageEncoder>& image_encoders() {
  static const Registry<MakeImageEncoder> table("image_encoder.type",
                                                {{"none", make_no_image_encoder}, {"clip", make_clip_image_encoder}});
  return table;
}

}  // namespace

void ImageEncoderConfig::visit(ConfigVisitor& v) {
  v.field("type", type, "Encoder of the conditioning image: `clip` for Wan2.1 image-to-video, else `none`.",
          one_of(image_encoders().names()));
  v.field(
      "weights", weights,
      "CLIP's vision model: a diffusers model or its image_encoder/ folder, or ComfyUI's clip_vision_h.safetensors; "
      "empty for `none`.");
}

std::unique_ptr<ImageEncoder> make_image_encoder(const ImageEncoderConfig& config, at::Device device) {
  return image_encoders().find(config.type)(config, device);
}

}  // namespace vmoba::model
