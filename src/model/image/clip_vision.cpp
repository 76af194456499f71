// Shape letters: B images, C channels, S tokens, E width.
#include "model/image/clip_vision.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"
#include "model/common/norm.h"
#include "model/image/clip_preprocess.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kPatch = "embeddings.patch_embedding.weight";
constexpr const char* kPosition = "embeddings.position_embedding.weight";
constexpr int64_t kMaxConfigBytes = 1 << 20;

}  // namespace

ClipVisionOptions read_clip_vision_options(const EncoderWeights& weights, ClipVisionOptions options, bool heads_known) {
  const fs::path file = fs::path(weights.files().folder()) / "config.json";
  if (!fs::exists(file)) return options;
  json config = read_json(file.string(), kMaxConfigBytes, "a model configuration");
  if (config.is_object() && config.contains("vision_config")) config = json(config["vision_config"]);
  VMOBA_CHECK_INPUT(config.is_object(), "{}: expected a JSON object in '{}', found something else", weights.key(),
                    file.string());
  const std::string activation = config.contains("hidden_act") && config["hidden_act"].is_string()
                                     ? config["hidden_act"].get<std::string>()
                                     : "quick_gelu";  // transformers' default
  VMOBA_CHECK_INPUT(activation == "gelu" || activation == "quick_gelu",
                    "{}: expected hidden_act gelu or quick_gelu in '{}', found {}", weights.key(), file.string(),
                    activation);
  options.block.activation = activation == "quick_gelu" ? quick_gelu : exact_gelu;
  const auto heads = config.find("num_attention_heads");
  const bool stated = heads != config.end() && heads->is_number_integer() && heads->get<int64_t>() > 0;
  VMOBA_CHECK_INPUT(stated || heads_known, "{}: expected num_attention_heads in '{}', found none", weights.key(),
                    file.string());
  if (stated) options.block.heads = heads->get<int64_t>();
  if (config.contains("layer_norm_eps") && config["layer_norm_eps"].is_number())
    options.block.eps = config["layer_norm_eps"].get<double>();
  return options;
}

ClipVision::ClipVision(const EncoderWeights& weights, const ClipVisionOptions& options, at::Device device)
    : options_(options), device_(device) {
  const NamedTensorSource read = [&](const std::string& name, const std::vector<int64_t>& shape) {
    return weights.read(name, shape, at::kFloat, device);
  };
  const std::vector<int64_t> patch = weights.shape(kPatch);
  if (options_.pixels == 0 && patch.size() == 4) {
    const auto side = int64_t(std::lround(std::sqrt(double(weights.matrix(kPosition)[0] - 1))));
    options_.pixels = side * patch[3];
  }
  VMOBA_CHECK_INPUT(patch.size() == 4 && patch[1] == 3 && patch[2] == patch[3] && patch[2] > 0 && options_.pixels > 0 &&
                        options_.pixels % patch[2] == 0 && patch[0] > 0 && patch[0] % options_.block.heads == 0,
                    "{}: expected square patches of 3 channels that divide {} pixels and a width that {} heads divide, "
                    "found a patch embedding [{}]",
                    weights.key(), options_.pixels, options_.block.heads, fmt::join(patch, ", "));
  dim_ = patch[0];
  patch_ = patch[2];
  tokens_ = 1 + (options_.pixels / patch_) * (options_.pixels / patch_);
  patch_embedding_ = read(kPatch, patch);
  class_E_ = read("embeddings.class_embedding", {dim_});
  position_SE_ = read(kPosition, {tokens_, dim_});
  norm_ = read_encoder_norm(read, "pre_layrnorm", dim_);
  for (int64_t layer = 0; weights.has(fmt::format("encoder.layers.{}.layer_norm1.weight", layer + 1)); ++layer) {
    const std::string name = fmt::format("encoder.layers.{}.", layer);
    blocks_.push_back(read_encoder_block(read, name, dim_, weights.matrix(name + "mlp.fc1.weight")[0]));
  }
  VMOBA_CHECK_INPUT(!blocks_.empty(), "{}: expected a CLIP vision model of at least 2 layers, found 1", weights.key());
}

at::Tensor ClipVision::encode(const at::Tensor& images_BCHW) const {
  const at::NoGradGuard no_grad;
  const at::Tensor pixels_BCHW = clip_normalize(clip_resize(images_BCHW, options_.pixels).to(device_));
  const at::Tensor patches_BSE = at::conv2d(pixels_BCHW, patch_embedding_, {}, patch_).flatten(2).transpose(1, 2);
  at::Tensor x_BSE = at::cat({class_E_.expand({pixels_BCHW.size(0), 1, dim_}), patches_BSE}, 1) + position_SE_;
  x_BSE = layer_norm(x_BSE, norm_.weight, norm_.bias, options_.block.eps);
  for (const EncoderBlock& block : blocks_) x_BSE = run_encoder_block(block, x_BSE, options_.block);
  return x_BSE;
}

}  // namespace vmoba::model
