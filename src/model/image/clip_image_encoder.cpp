#include "model/image/clip_image_encoder.h"

#include "core/check.h"
#include "model/image/clip_vision.h"
#include "model/weights/model_folder.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

constexpr const char* kKey = "image_encoder.weights";
constexpr int64_t kPixels = 224;

// transformers' versions before 5 put a prefix before every name.
std::string prefix_of(const WeightFiles& files, const std::string& path) {
  const std::string first = "embeddings.patch_embedding.weight", prefix = "vision_model.";
  if (files.entries().contains(prefix + first)) return prefix;
  const EncoderWeights weights(files, path, kKey);
  VMOBA_CHECK_INPUT(weights.has(first), "{}: expected a CLIP vision model ({}{}) at '{}', found {}", kKey, prefix,
                    first, path, weights.other_tensors());
  return "";
}

class ClipImageEncoder : public ImageEncoder {
 public:
  // Without a config.json the values of ViT-H/14 (laion/CLIP-ViT-H-14).
  ClipImageEncoder(const EncoderWeights& weights, at::Device device)
      : vision_(weights, read_clip_vision_options(weights, {{16, 1e-5, exact_gelu}, kPixels}, /*heads_known=*/false),
                device) {}

  int64_t dim() const override { return vision_.dim(); }
  int64_t tokens() const override { return vision_.tokens(); }
  at::Tensor encode(const at::Tensor& images_BCHW) const override { return vision_.encode(images_BCHW); }

 private:
  ClipVision vision_;
};

}  // namespace

std::unique_ptr<ImageEncoder> make_clip_image_encoder(const ImageEncoderConfig& config, at::Device device) {
  VMOBA_CHECK_INPUT(!config.weights.empty(),
                    "image_encoder.weights: expected CLIP's vision model for image_encoder.type clip (diffusers' "
                    "image_encoder/ folder or clip_vision_h.safetensors), found nothing");
  const WeightFiles files(model_folder(config.weights, "image_encoder", kKey), {});
  return std::make_unique<ClipImageEncoder>(
      EncoderWeights(files, config.weights, kKey, prefix_of(files, config.weights)), device);
}

}  // namespace vmoba::model
