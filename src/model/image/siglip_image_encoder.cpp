// Shape letters: B images, C channels, S tokens, E width.
#include "model/image/siglip_image_encoder.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"
#include "model/common/encoder_block.h"
#include "model/common/norm.h"
#include "model/image/clip_preprocess.h"
#include "model/weights/encoder_weights.h"
#include "model/weights/model_folder.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kKey = "image_encoder.weights";
constexpr const char* kPatch = "embeddings.patch_embedding.weight";
constexpr const char* kPosition = "embeddings.position_embedding.weight";
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMostPixels = 1 << 14;

struct SiglipOptions {
  int64_t pixels = 384;  // a side of the model's images
  EncoderBlockOptions block{16, 1e-6, tanh_gelu};
};

// Without a config.json the values of siglip-so400m-patch14-384; a single file may lie among other models' files.
SiglipOptions read_options(const EncoderWeights& weights) {
  SiglipOptions options;
  const fs::path file = fs::path(weights.files().folder()) / "config.json";
  if (fs::is_regular_file(weights.path()) || !fs::exists(file)) return options;
  json config = read_json(file.string(), kMaxConfigBytes, "a model configuration");
  return use_json(file.string(), [&] {
    if (config.contains("vision_config")) config = json(config.at("vision_config"));
    options.pixels = config.value("image_size", options.pixels);
    options.block.heads = config.value("num_attention_heads", options.block.heads);
    options.block.eps = config.value("layer_norm_eps", options.block.eps);
    const std::string activation = config.value("hidden_act", "gelu_pytorch_tanh");
    VMOBA_CHECK_INPUT(activation == "gelu_pytorch_tanh" && options.block.heads > 0 && options.pixels > 0 &&
                          options.pixels <= kMostPixels,
                      "{}: expected hidden_act gelu_pytorch_tanh, heads and an image_size of 1 to {} in '{}', found "
                      "{}, {} and {}",
                      kKey, kMostPixels, file.string(), activation.substr(0, 100), options.block.heads, options.pixels);
    return options;
  });
}

// transformers' versions before 5 put a prefix before every name.
EncoderWeights open(const WeightFiles& files, const std::string& path) {
  for (const char* prefix : {"vision_model.", ""}) {
    const EncoderWeights weights(files, path, kKey, prefix);
    if (weights.has(kPatch) && !weights.has("embeddings.class_embedding")) return weights;
  }
  throw_input("{}: expected a SigLIP vision model (vision_model.{}, no class embedding) at '{}', found {}", kKey,
              kPatch, path, EncoderWeights(files, path, kKey).other_tensors());
}

class SiglipImageEncoder : public ImageEncoder {
 public:
  SiglipImageEncoder(const EncoderWeights& weights, at::Device device)
      : options_(read_options(weights)), device_(device) {
    const NamedTensorSource read = [&](const std::string& name, const std::vector<int64_t>& shape) {
      return weights.read(name, shape, at::kFloat, device);
    };
    const std::vector<int64_t> patch = weights.shape(kPatch);
    VMOBA_CHECK_INPUT(patch.size() == 4 && patch[1] == 3 && patch[2] == patch[3] && patch[2] > 0 &&
                          patch[2] <= options_.pixels && patch[0] > 0 && patch[0] % options_.block.heads == 0,
                      "{}: expected square patches of 3 channels within {} pixels and a width that {} heads divide, "
                      "found a patch embedding [{}]",
                      kKey, options_.pixels, options_.block.heads, fmt::join(patch, ", "));
    dim_ = patch[0];
    patch_ = patch[2];
    // Pixels behind the last whole patch are not seen.
    tokens_ = (options_.pixels / patch_) * (options_.pixels / patch_);
    patch_embedding_ = {read(kPatch, patch), read("embeddings.patch_embedding.bias", {dim_})};
    position_SE_ = read(kPosition, {tokens_, dim_});
    for (int64_t layer = 0; weights.has(fmt::format("encoder.layers.{}.layer_norm1.weight", layer)); ++layer) {
      const std::string name = fmt::format("encoder.layers.{}.", layer);
      blocks_.push_back(read_encoder_block(read, name, dim_, weights.matrix(name + "mlp.fc1.weight")[0]));
    }
    norm_ = read_encoder_norm(read, "post_layernorm", dim_);
  }

  int64_t dim() const override { return dim_; }
  int64_t tokens() const override { return tokens_; }

  at::Tensor encode(const at::Tensor& images_BCHW) const override {
    const at::NoGradGuard no_grad;
    const at::Tensor pixels_BCHW =
        siglip_normalize(bicubic_resize(images_BCHW, options_.pixels, options_.pixels).to(device_));
    at::Tensor x_BSE =
        at::conv2d(pixels_BCHW, patch_embedding_.weight, patch_embedding_.bias, patch_).flatten(2).transpose(1, 2) +
        position_SE_;
    for (const EncoderBlock& block : blocks_) x_BSE = run_encoder_block(block, x_BSE, options_.block);
    return layer_norm(x_BSE, norm_.weight, norm_.bias, options_.block.eps);
  }

 private:
  SiglipOptions options_;
  at::Device device_;
  int64_t dim_ = 0, tokens_ = 0, patch_ = 0;
  Linear patch_embedding_;
  at::Tensor position_SE_;
  std::vector<EncoderBlock> blocks_;
  EncoderNorm norm_;
};

}  // namespace

std::unique_ptr<ImageEncoder> make_siglip_image_encoder(const ImageEncoderConfig& config, at::Device device) {
  VMOBA_CHECK_INPUT(
      !config.weights.empty(),
      "{}: expected SigLIP's vision model for image_encoder.type siglip (diffusers' image_encoder/ folder "
      "or sigclip_vision_patch14_384.safetensors), found nothing",
      kKey);
  const std::string place = model_folder(config.weights, "image_encoder", kKey);
  const WeightFiles files(place, {});
  return std::make_unique<SiglipImageEncoder>(open(files, place), device);
}

}  // namespace vmoba::model
