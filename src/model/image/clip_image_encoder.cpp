// Shape letters: B images, C channels, S tokens, E width, N heads, D head width.
#include "model/image/clip_image_encoder.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/check.h"
#include "core/json.h"
#include "model/common/linear.h"
#include "model/common/norm.h"
#include "model/image/clip_preprocess.h"
#include "model/weights/model_folder.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kPixels = 224;
constexpr int64_t kMaxConfigBytes = 1 << 20;

// What the weights do not say; the defaults are ViT-H/14's (laion/CLIP-ViT-H-14), for files without a config.json.
struct ClipOptions {
  int64_t heads = 16;
  double eps = 1e-5;
  bool quick_gelu = false;
};

ClipOptions read_options(const fs::path& folder) {
  ClipOptions options;
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
  options.quick_gelu = activation == "quick_gelu";
  const auto heads = config.find("num_attention_heads");
  VMOBA_CHECK_INPUT(heads != config.end() && heads->is_number_integer() && heads->get<int64_t>() > 0,
                    "image_encoder.weights: expected num_attention_heads in '{}', found none", file.string());
  options.heads = heads->get<int64_t>();
  if (config.contains("layer_norm_eps") && config["layer_norm_eps"].is_number())
    options.eps = config["layer_norm_eps"].get<double>();
  return options;
}

struct ClipNorm {
  at::Tensor weight, bias;
};

struct ClipBlock {
  ClipNorm norm1, norm2;
  Linear q, k, v, out, up, down;
};

// Reads tensors by transformers' names, with or without the prefix that its versions before 5 put before them.
class ClipReader {
 public:
  ClipReader(const std::string& path, at::Device device)
      : path_(path), files_(model_folder(path, "image_encoder", "image_encoder.weights"), {}), device_(device) {
    const std::string first = "embeddings.patch_embedding.weight";
    const bool prefixed = files_.entries().contains("vision_model." + first);
    VMOBA_CHECK_INPUT(prefixed || files_.entries().contains(first),
                      "image_encoder.weights: expected a CLIP vision model (vision_model.{}) at '{}', found {} other "
                      "tensors such as '{}'",
                      first, path, files_.entries().size(),
                      files_.entries().empty() ? "" : files_.entries().begin()->first);
    if (prefixed) prefix_ = "vision_model.";
  }

  const std::string& folder() const { return files_.folder(); }
  bool has(const std::string& name) const { return files_.entries().contains(prefix_ + name); }
  std::vector<int64_t> shape(const std::string& name) const {
    VMOBA_CHECK_INPUT(has(name), "image_encoder.weights: expected a tensor '{}' at '{}', found none", prefix_ + name,
                      path_);
    return files_.info(prefix_ + name).shape;
  }
  at::Tensor read(const std::string& name, const std::vector<int64_t>& wanted) const {
    const std::vector<int64_t> found = shape(name);
    VMOBA_CHECK_INPUT(found == wanted && at::isFloatingType(files_.info(prefix_ + name).dtype),
                      "image_encoder.weights: expected '{}' of shape {} at '{}', found {} {}", prefix_ + name,
                      fmt::join(wanted, "x"), path_, c10::toString(files_.info(prefix_ + name).dtype),
                      fmt::join(found, "x"));
    return files_.read(prefix_ + name, at::kFloat, device_);
  }
  Linear read_linear(const std::string& name, int64_t in, int64_t out) const {
    return {read(name + ".weight", {out, in}), read(name + ".bias", {out})};
  }
  ClipNorm read_norm(const std::string& name, int64_t width) const {
    return {read(name + ".weight", {width}), read(name + ".bias", {width})};
  }

 private:
  std::string path_;
  WeightFiles files_;
  at::Device device_;
  std::string prefix_;
};

ClipBlock read_block(const ClipReader& reader, int64_t layer, int64_t width) {
  const std::string name = fmt::format("encoder.layers.{}.", layer);
  const std::vector<int64_t> up = reader.shape(name + "mlp.fc1.weight");
  const int64_t hidden = up.empty() ? 0 : up[0];
  ClipBlock block;
  block.norm1 = reader.read_norm(name + "layer_norm1", width);
  block.norm2 = reader.read_norm(name + "layer_norm2", width);
  block.q = reader.read_linear(name + "self_attn.q_proj", width, width);
  block.k = reader.read_linear(name + "self_attn.k_proj", width, width);
  block.v = reader.read_linear(name + "self_attn.v_proj", width, width);
  block.out = reader.read_linear(name + "self_attn.out_proj", width, width);
  block.up = reader.read_linear(name + "mlp.fc1", width, hidden);
  block.down = reader.read_linear(name + "mlp.fc2", hidden, width);
  return block;
}

class ClipImageEncoder : public ImageEncoder {
 public:
  ClipImageEncoder(const ClipReader& reader, at::Device device)
      : options_(read_options(reader.folder())), device_(device) {
    const std::vector<int64_t> patch = reader.shape("embeddings.patch_embedding.weight");
    VMOBA_CHECK_INPUT(patch.size() == 4 && patch[1] == 3 && patch[2] == patch[3] && patch[2] > 0 &&
                          kPixels % patch[2] == 0 && patch[0] > 0 && patch[0] % options_.heads == 0,
                      "image_encoder.weights: expected square patches of 3 channels that divide {} pixels and a width "
                      "that {} heads divide, found a patch embedding [{}]",
                      kPixels, options_.heads, fmt::join(patch, ", "));
    dim_ = patch[0];
    patch_ = patch[2];
    tokens_ = 1 + (kPixels / patch_) * (kPixels / patch_);
    patch_embedding_ = reader.read("embeddings.patch_embedding.weight", patch);
    class_E_ = reader.read("embeddings.class_embedding", {dim_});
    position_SE_ = reader.read("embeddings.position_embedding.weight", {tokens_, dim_});
    norm_ = reader.read_norm("pre_layrnorm", dim_);
    // The last block is never computed and never read.
    for (int64_t layer = 0; reader.has(fmt::format("encoder.layers.{}.layer_norm1.weight", layer + 1)); ++layer)
      blocks_.push_back(read_block(reader, layer, dim_));
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
    x_BSE = normalized(x_BSE, norm_);
    for (const ClipBlock& block : blocks_) {
      x_BSE = x_BSE + attention(block, normalized(x_BSE, block.norm1));
      x_BSE = x_BSE + linear(activated(linear(normalized(x_BSE, block.norm2), block.up)), block.down);
    }
    return x_BSE;
  }

 private:
  at::Tensor normalized(const at::Tensor& x, const ClipNorm& norm) const {
    return layer_norm(x, norm.weight, norm.bias, options_.eps);
  }
  at::Tensor activated(const at::Tensor& x) const {
    return options_.quick_gelu ? x * at::sigmoid(1.702 * x) : at::gelu(x);
  }
  at::Tensor attention(const ClipBlock& block, const at::Tensor& x_BSE) const {
    const auto heads = [&](const Linear& map) {
      return linear(x_BSE, map).unflatten(-1, {options_.heads, dim_ / options_.heads}).transpose(1, 2);
    };
    const at::Tensor out_BNSD = at::scaled_dot_product_attention(heads(block.q), heads(block.k), heads(block.v));
    return linear(out_BNSD.transpose(1, 2).flatten(2), block.out);
  }

  ClipOptions options_;
  at::Device device_;
  int64_t dim_ = 0, tokens_ = 0, patch_ = 0;
  at::Tensor patch_embedding_, class_E_, position_SE_;
  ClipNorm norm_;
  std::vector<ClipBlock> blocks_;
};

}  // namespace

std::unique_ptr<ImageEncoder> make_clip_image_encoder(const ImageEncoderConfig& config, at::Device device) {
  VMOBA_CHECK_INPUT(!config.weights.empty(),
                    "image_encoder.weights: expected CLIP's vision model for image_encoder.type clip (diffusers' "
                    "image_encoder/ folder or clip_vision_h.safetensors), found nothing");
  return std::make_unique<ClipImageEncoder>(ClipReader(config.weights, device), device);
}

}  // namespace vmoba::model
