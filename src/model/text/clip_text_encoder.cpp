// Shape letters: S tokens, E width.
#include "model/text/clip_text_encoder.h"

#include <ATen/ATen.h>

#include <filesystem>

#include "core/check.h"
#include "core/json.h"
#include "model/common/norm.h"
#include "model/weights/encoder_weights.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kHeadDim = 64;  // of every published CLIP text model
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr const char* kEmbedding = "embeddings.token_embedding.weight";
constexpr const char* kPosition = "embeddings.position_embedding.weight";

std::string layer_name(int64_t layer) {
  return fmt::format("encoder.layers.{}.", layer);
}

// transformers' versions before 5 put a prefix before every name.
EncoderWeights open(const WeightFiles& files, const std::string& path, const std::string& key) {
  for (const char* prefix : {"text_model.", ""}) {
    const EncoderWeights weights(files, path, key, prefix);
    if (weights.has(kEmbedding)) return weights;
  }
  throw_input("{}: expected a CLIP text model (text_model.{}) at '{}', found {}", key, kEmbedding, path,
              EncoderWeights(files, path, key).other_tensors());
}

ClipTextShape shape_of(const EncoderWeights& weights) {
  ClipTextShape shape;
  shape.vocabulary = weights.matrix(kEmbedding)[0];
  shape.width = weights.matrix(kEmbedding)[1];
  shape.positions = weights.matrix(kPosition)[0];
  shape.hidden = weights.matrix(layer_name(0) + "mlp.fc1.weight")[0];
  while (weights.has(layer_name(shape.layers) + "layer_norm1.weight")) ++shape.layers;
  return shape;
}

// As published where config.json says nothing; a single file may lie among other models' files.
EncoderBlockOptions read_options(const EncoderWeights& weights, const ClipTextShape& shape) {
  EncoderBlockOptions options{std::max<int64_t>(1, shape.width / kHeadDim), 1e-5, quick_gelu, /*causal=*/true};
  const fs::path file = fs::path(weights.files().folder()) / "config.json";
  if (!fs::is_regular_file(weights.path()) && fs::exists(file)) {
    json config = read_json(file.string(), kMaxConfigBytes, "a model configuration");
    use_json(file.string(), [&] {
      if (config.contains("text_config")) config = json(config.at("text_config"));
      options.heads = config.value("num_attention_heads", options.heads);
      options.eps = config.value("layer_norm_eps", options.eps);
      const std::string activation = config.value("hidden_act", "quick_gelu");
      VMOBA_CHECK_INPUT(activation == "gelu" || activation == "quick_gelu",
                        "{}: expected hidden_act gelu or quick_gelu in '{}', found {}", weights.key(), file.string(),
                        activation);
      if (activation == "gelu") options.activation = exact_gelu;
      return 0;
    });
  }
  VMOBA_CHECK_INPUT(options.heads > 0 && shape.width % options.heads == 0 && options.eps > 0,
                    "{}: expected heads that divide the width {} at '{}', found {}", weights.key(), shape.width,
                    weights.path(), options.heads);
  return options;
}

// Gives every tensor of the model to `read`, block by block.
template <typename Read>
void visit_model(const ClipTextShape& shape, const Read& read, at::Tensor& embedding, at::Tensor& position,
                 std::vector<EncoderBlock>& blocks, EncoderNorm& norm) {
  embedding = read(kEmbedding, {shape.vocabulary, shape.width});
  position = read(kPosition, {shape.positions, shape.width});
  for (int64_t layer = 0; layer < shape.layers; ++layer)
    blocks.push_back(read_encoder_block(read, layer_name(layer), shape.width, shape.hidden));
  norm = read_encoder_norm(read, "final_layer_norm", shape.width);
}

}  // namespace

ClipTextShape check_clip_text(const WeightFiles& files, const std::string& path, const std::string& key) {
  const EncoderWeights weights = open(files, path, key);
  const ClipTextShape shape = shape_of(weights);
  read_options(weights, shape);
  const NamedTensorSource check = [&](const std::string& name, const std::vector<int64_t>& wanted) {
    weights.expect(name, wanted);
    return at::Tensor();
  };
  at::Tensor embedding, position;
  std::vector<EncoderBlock> blocks;
  EncoderNorm norm;
  visit_model(shape, check, embedding, position, blocks, norm);
  return shape;
}

ClipTextEncoder::ClipTextEncoder(const WeightFiles& files, const std::string& path, const std::string& key,
                                 at::Device device) {
  const EncoderWeights weights = open(files, path, key);
  shape_ = shape_of(weights);
  options_ = read_options(weights, shape_);
  const NamedTensorSource read = [&](const std::string& name, const std::vector<int64_t>& wanted) {
    return weights.read(name, wanted, at::kFloat, device);
  };
  visit_model(shape_, read, embedding_, position_, blocks_, norm_);
}

at::Tensor ClipTextEncoder::pooled(const std::vector<int64_t>& ids) const {
  const at::NoGradGuard no_grad;
  const auto tokens = int64_t(ids.size());
  VMOBA_CHECK(tokens > 0 && tokens <= shape_.positions, "expected 1 to {} tokens, found {}", shape_.positions, tokens);
  const at::Tensor ids_S = at::tensor(ids, at::kLong).to(embedding_.device());
  at::Tensor x_1SE = (at::embedding(embedding_, ids_S) + position_.narrow(0, 0, tokens)).unsqueeze(0);
  for (const EncoderBlock& block : blocks_) x_1SE = run_encoder_block(block, x_1SE, options_);
  return layer_norm(x_1SE[0][tokens - 1], norm_.weight, norm_.bias, options_.eps);
}

}  // namespace vmoba::model
