// Shape letters: B images, C channels, S tokens, E width, N heads, D head width.
#include "model/image/clip_image_encoder.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/check.h"
#include "core/json.h"
#include "model/common/encoder_block.h"
#include "model/common/norm.h"
#include "model/image/clip_preprocess.h"
#include "model/weights/encoder_weights.h"
#include "model/weights/model_folder.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kKey = "image_encoder.weights";
constexpr int64_t kPixels = 224;
constexpr int64_t kMaxConfigBytes = 1 << 20;

// What the weights do not say; without a config.json the values of ViT-H/14 (laion/CLIP-ViT-H-14).
EncoderBlockOptions read_options(const fs::path& folder) {
  EncoderBlockOptions options{16, 1e-5, exact_gelu};
  const fs::path file = folder / "config.json";
  if (!fs::exists(file)) return options;
  json config = read_json(file.string(), kMaxConfigBytes, "a model configuration");
  if (config.is_object() && config.contains("vision_config")) config = config["vision_config"];
  VMOBA_CHECK_INPUT(config.is_object(), "image_encoder.weights: expected a JSON object in '{}', found something else",
                    file.string());
  const std::string activation = config.contains("hidden_act") && config["hidden_act"].is_string()
                                     ? config["hidden_act"].get<std::string>()
                                     : "quick_gelu";  // transformers' default
  VMOBA_CHECK_INPUT(activation == "gelu" || activation == "quick_gelu",
                    "image_encoder.weights: expected hidden_act gelu or quick_gelu in '{}', found {}", file.string(),
                    activation);
  if (activation == "quick_gelu") options.activation = quick_gelu;
  const auto heads = config.find("num_attention_heads");
  VMOBA_CHECK_INPUT(heads != config.end() && heads->is_number_integer() && heads->get<int64_t>() > 0,
                    "image_encoder.weights: expected num_attention_heads in '{}', found none", file.string());
  options.heads = heads->get<int64_t>();
  if (config.contains("layer_norm_eps") && config["layer_norm_eps"].is_number())
    options.eps = config["layer_norm_eps"].get<double>();
  return options;
}

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
  ClipImageEncoder(const EncoderWeights& weights, at::Device device)
      : options_(read_options(weights.files().folder())), device_(device) {
    const NamedTensorSource read = [&](const std::string& name, const std::vector<int64_t>& shape) {
      return weights.read(name, shape, at::kFloat, device);
    };
    const std::vector<int64_t> patch = weights.shape("embeddings.patch_embedding.weight");
    VMOBA_CHECK_INPUT(patch.size() == 4 && patch[1] == 3 && patch[2] == patch[3] && patch[2] > 0 &&
                          kPixels % patch[2] == 0 && patch[0] > 0 && patch[0] % options_.heads == 0,
                      "image_encoder.weights: expected square patches of 3 channels that divide {} pixels and a width "
                      "that {} heads divide, found a patch embedding [{}]",
                      kPixels, options_.heads, fmt::join(patch, ", "));
    dim_ = patch[0];
    patch_ = patch[2];
    tokens_ = 1 + (kPixels / patch_) * (kPixels / patch_);
    patch_embedding_ = read("embeddings.patch_embedding.weight", patch);
    class_E_ = read("embeddings.class_embedding", {dim_});
    position_SE_ = read("embeddings.position_embedding.weight", {tokens_, dim_});
    norm_ = read_encoder_norm(read, "pre_layrnorm", dim_);
    // The last block is never computed and never read.
    for (int64_t layer = 0; weights.has(fmt::format("encoder.layers.{}.layer_norm1.weight", layer + 1)); ++layer) {
      const std::string name = fmt::format("encoder.layers.{}.", layer);
      blocks_.push_back(read_encoder_block(read, name, dim_, weights.matrix(name + "mlp.fc1.weight")[0]));
    }
    VMOBA_CHECK_INPUT(!blocks_.empty(),
                      "image_encoder.weights: expected a CLIP vision model of at least 2 layers, found 1");
  }

  int64_t dim() const override { return dim_; }
  int64_t tokens() const override { return tokens_; }

  at::Tensor encode(const at::Tensor& images_BCHW) const override {
    const at::NoGradGuard no_grad;
    const at::Tensor pixels_BCHW = clip_normalize(clip_resize(images_BCHW, kPixels).to(device_));
    const at::Tensor patches_BSE = at::conv2d(pixels_BCHW, patch_embedding_, {}, patch_).flatten(2).transpose(1, 2);
    at::Tensor x_BSE = at::cat({class_E_.expand({pixels_BCHW.size(0), 1, dim_}), patches_BSE}, 1) + position_SE_;
    x_BSE = layer_norm(x_BSE, norm_.weight, norm_.bias, options_.eps);
    for (const EncoderBlock& block : blocks_) x_BSE = run_encoder_block(block, x_BSE, options_);
    return x_BSE;
  }

 private:
  EncoderBlockOptions options_;
  at::Device device_;
  int64_t dim_ = 0, tokens_ = 0, patch_ = 0;
  at::Tensor patch_embedding_, class_E_, position_SE_;
  EncoderNorm norm_;
  std::vector<EncoderBlock> blocks_;
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
