#include "model/image_encoder.h"

#include "core/registry.h"
#include "model/image/clip_image_encoder.h"
#include "model/image/siglip_image_encoder.h"

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
  static const Registry<MakeImageEncoder> table(
      "image_encoder.type",
      {{"none", make_no_image_encoder}, {"clip", make_clip_image_encoder}, {"siglip", make_siglip_image_encoder}});
  return table;
}

}  // namespace

void ImageEncoderConfig::visit(ConfigVisitor& v) {
  v.field("type", type,
          "Encoder of the conditioning image: `clip` for Wan2.1 image-to-video, `siglip` for that of HunyuanVideo 1.5, "
          "else `none`.",
          one_of(image_encoders().names()));
  v.field(
      "weights", weights,
      "Its vision model: a diffusers model or its image_encoder/ folder, or ComfyUI's file (clip_vision_h.safetensors, "
      "sigclip_vision_patch14_384.safetensors); empty for `none`.");
}

std::unique_ptr<ImageEncoder> make_image_encoder(const ImageEncoderConfig& config, at::Device device) {
  return image_encoders().find(config.type)(config, device);
}

}  // namespace vmoba::model
