// Shape letters: L tokens, E width, N heads, D head width.
#include "model/text/llama_encoder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "core/json.h"
#include "model/common/norm.h"
#include "model/weights/encoder_weights.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kKey = "text.weights";
constexpr const char* kEmbedding = "embed_tokens.weight";
constexpr int64_t kUnusedLayers = 2;  // hidden_states[-3]
constexpr int64_t kPublishedHeadDim = 128;
constexpr int64_t kMaxConfigBytes = 1 << 20;

std::string layer_name(int64_t layer, const std::string& part) {
  return fmt::format("layers.{}.{}", layer, part);
}

// The part of config.json that describes the language model; null without a file. A single file may lie among other
// models: then no config.json is its own.
json language_config(const WeightFiles& files, const std::string& path) {
  const fs::path file = fs::path(files.folder()) / "config.json";
  if ((fs::is_regular_file(path) && !path.ends_with(".json")) || !fs::exists(file)) return nullptr;
  const json config = read_json(file.string(), kMaxConfigBytes, "a model configuration");
  VMOBA_CHECK_INPUT(config.is_object(), "{}: expected a JSON object in '{}', found something else", kKey,
                    file.string());
  return config.contains("text_config") && config["text_config"].is_object() ? config["text_config"] : config;
}

double number_of(const json& config, const std::string& key, double otherwise) {
  const auto found = config.find(key);
  return found != config.end() && found->is_number() ? found->get<double>() : otherwise;
}

// Published values where config.json says nothing. Versions of transformers differ in where theta stands.
LlamaKind stated_kind(LlamaKind kind, const json& config) {
  if (!config.is_object()) return kind;
  kind.eps = number_of(config, "rms_norm_eps", kind.eps);
  kind.rope_theta = number_of(config, "rope_theta", kind.rope_theta);
  if (config.contains("rope_parameters") && config["rope_parameters"].is_object())
    kind.rope_theta = number_of(config["rope_parameters"], "rope_theta", kind.rope_theta);
  VMOBA_CHECK_INPUT(
      kind.eps > 0 && kind.rope_theta > 1,
      "{}: expected rms_norm_eps above 0 and rope_theta above 1 in the config.json of {}, found {} and {}", kKey,
      kind.title, kind.eps, kind.rope_theta);
  return kind;
}

// 0 of a number that is no count.
int64_t count_of(const json& config, const std::string& key, int64_t otherwise) {
  const auto found = config.find(key);
  return found != config.end() && found->is_number() ? json_count(*found).value_or(0) : otherwise;
}

int64_t head_dim_of(const json& config, int64_t inner) {
  if (!config.is_object()) return kPublishedHeadDim;
  constexpr int64_t kUnsaid = -1;
  const int64_t heads = count_of(config, "num_attention_heads", kUnsaid);
  const int64_t derived = heads > 0 ? inner / heads : heads == kUnsaid ? kPublishedHeadDim : 0;
  return count_of(config, "head_dim", derived);
}

struct Part {
  const char* name;
  std::vector<int64_t> shape;
};

std::vector<Part> parts_of(const LlamaShape& s, bool biases) {
  const int64_t inner = s.heads * s.head_dim, keys = s.key_heads * s.head_dim;
  std::vector<Part> parts = {
      {"input_layernorm.weight", {s.width}},         {"self_attn.q_proj.weight", {inner, s.width}},
      {"self_attn.k_proj.weight", {keys, s.width}},  {"self_attn.v_proj.weight", {keys, s.width}},
      {"self_attn.o_proj.weight", {s.width, inner}}, {"post_attention_layernorm.weight", {s.width}},
      {"mlp.gate_proj.weight", {s.ffn, s.width}},    {"mlp.up_proj.weight", {s.ffn, s.width}},
      {"mlp.down_proj.weight", {s.width, s.ffn}}};
  if (!biases) return parts;
  for (const auto& [name, rows] :
       {std::pair{"self_attn.q_proj.bias", inner}, {"self_attn.k_proj.bias", keys}, {"self_attn.v_proj.bias", keys}})
    parts.push_back({name, {rows}});
  return parts;
}

// A file of another model may have these names and more.
void refuse_other_parts(const EncoderWeights& weights, const LlamaShape& shape, const LlamaKind& kind) {
  const auto parts = parts_of(shape, kind.biases);
  for (const auto& [name, entry] : weights.files().entries()) {
    if (!name.starts_with("layers.") || name.ends_with(".rotary_emb.inv_freq")) continue;
    const std::string part = name.substr(std::min(name.find('.', 7), name.size() - 1) + 1);
    VMOBA_CHECK_INPUT(std::any_of(parts.begin(), parts.end(), [&](const Part& p) { return part == p.name; }),
                      "{}: expected {} at '{}', found a tensor '{}', which it does not have", kKey, kind.title,
                      weights.path(), name);
  }
}

LlamaShape check_shapes(const EncoderWeights& weights, const LlamaKind& kind) {
  const std::string first = layer_name(0, "self_attn.q_proj.weight");
  VMOBA_CHECK_INPUT(weights.has(first) && weights.has(kEmbedding),
                    "{}: expected {} (tensors {} and {}) at '{}', found {}", kKey, kind.title, kEmbedding, first,
                    weights.path(), weights.other_tensors());
  LlamaShape s;
  while (weights.has(layer_name(s.layers, "self_attn.q_proj.weight"))) ++s.layers;
  VMOBA_CHECK_INPUT(s.layers > kUnusedLayers, "{}: expected {} with more than {} layers at '{}', found {}", kKey,
                    kind.title, kUnusedLayers, weights.path(), s.layers);
  s.vocabulary = weights.matrix(kEmbedding)[0];
  s.width = weights.matrix(kEmbedding)[1];
  s.ffn = weights.matrix(layer_name(0, "mlp.gate_proj.weight"))[0];
  const int64_t inner = weights.matrix(first)[0], keys = weights.matrix(layer_name(0, "self_attn.k_proj.weight"))[0];
  s.head_dim = head_dim_of(language_config(weights.files(), weights.path()), inner);
  VMOBA_CHECK_INPUT(
      s.head_dim > 0 && s.head_dim % 2 == 0 && inner % s.head_dim == 0 && keys % s.head_dim == 0 && inner % keys == 0,
      "{}: expected heads of an even width that divides the {} rows of queries and {} of keys at '{}', "
      "found {}; a config.json beside the weights says num_attention_heads",
      kKey, inner, keys, weights.path(), s.head_dim);
  s.heads = inner / s.head_dim;
  s.key_heads = keys / s.head_dim;
  refuse_other_parts(weights, s, kind);
  weights.expect(kEmbedding, {s.vocabulary, s.width});
  for (int64_t layer = 0; layer < s.layers; ++layer)
    for (const Part& part : parts_of(s, kind.biases)) weights.expect(layer_name(layer, part.name), part.shape);
  return s;
}

// The halves of a head's width are the two coordinates of its planes.
at::Tensor rotated(const at::Tensor& x_NLD, const at::Tensor& cos_LD, const at::Tensor& sin_LD) {
  const at::Tensor x = x_NLD.to(at::kFloat);
  const std::vector<at::Tensor> halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos_LD - halves[1] * sin_LD, halves[1] * cos_LD + halves[0] * sin_LD}, -1)
      .to(x_NLD.scalar_type());
}

}  // namespace

LlamaKind llama3_kind() {
  return {"the LLaMA-3 8B language model of HunyuanVideo", 500000, 1e-5, false};
}

LlamaKind qwen25_vl_kind() {
  return {"the Qwen2.5-VL 7B language model of HunyuanVideo 1.5", 1e6, 1e-6, true};
}

const std::vector<Layout>& llama_layouts() {
  static const std::vector<Layout> layouts = {
      {"transformers", "transformers", {}, {"layers.0."}, {}},
      {"prefixed",
       "transformers",
       {"language_model.model.", "model.language_model.", "language_model.", "model."},
       {"layers.0."},
       {}}};
  return layouts;
}

LlamaShape check_llama(const WeightFiles& files, const std::string& path, const LlamaKind& kind) {
  return check_shapes(EncoderWeights(files, path, kKey), kind);
}

LlamaEncoder::LlamaEncoder(const WeightFiles& files, const std::string& path, LlamaKind kind, at::ScalarType dtype,
                           at::Device device)
    : kind_(stated_kind(std::move(kind), language_config(files, path))) {
  const EncoderWeights weights(files, path, kKey);
  shape_ = check_shapes(weights, kind_);
  embedding_ = files.read(kEmbedding, dtype, device);
  for (int64_t layer = 0; layer < shape_.layers - kUnusedLayers; ++layer) {
    Block block;
    std::vector<at::Tensor*> tensors = {&block.norm1, &block.q,    &block.k,  &block.v,   &block.o,
                                        &block.norm2, &block.gate, &block.up, &block.down};
    if (kind_.biases) tensors.insert(tensors.end(), {&block.q_bias, &block.k_bias, &block.v_bias});
    const std::vector<Part> parts = parts_of(shape_, kind_.biases);
    for (size_t i = 0; i < parts.size(); ++i) *tensors[i] = files.read(layer_name(layer, parts[i].name), dtype, device);
    blocks_.push_back(std::move(block));
  }
}

// In fp32, as transformers has it.
LlamaEncoder::Rotation LlamaEncoder::rotation(int64_t tokens) const {
  const auto options = at::TensorOptions(at::kFloat).device(embedding_.device());
  const at::Tensor exponent_D = at::arange(0, shape_.head_dim, 2, options) / double(shape_.head_dim);
  const at::Tensor frequency_D = 1 / at::pow(kind_.rope_theta, exponent_D);
  const at::Tensor angle_LD = at::arange(tokens, options).unsqueeze(1) * frequency_D;
  return {angle_LD.cos(), angle_LD.sin()};
}

at::Tensor LlamaEncoder::attention(const Block& block, const at::Tensor& x_LE, const Rotation& rotation) const {
  const auto heads = [&](const at::Tensor& weight, const at::Tensor& bias) {
    return at::linear(x_LE, weight, bias).unflatten(-1, {-1, shape_.head_dim}).transpose(0, 1);
  };
  const at::Tensor q_NLD = rotated(heads(block.q, block.q_bias), rotation.cos_LD, rotation.sin_LD);
  const at::Tensor k_NLD = rotated(heads(block.k, block.k_bias), rotation.cos_LD, rotation.sin_LD);
  const at::Tensor out_NLD =
      at::scaled_dot_product_attention(q_NLD.unsqueeze(0), k_NLD.unsqueeze(0),
                                       heads(block.v, block.v_bias).unsqueeze(0), {}, /*dropout_p=*/0,
                                       /*is_causal=*/true, /*scale=*/std::nullopt, /*enable_gqa=*/true)
          .squeeze(0);
  return at::linear(out_NLD.transpose(0, 1).flatten(1), block.o);
}

at::Tensor LlamaEncoder::forward(const std::vector<int64_t>& ids, const at::Tensor& picture_IE, int64_t place) const {
  const at::NoGradGuard no_grad;
  const at::Tensor ids_L = at::tensor(ids, at::kLong).to(embedding_.device());
  at::Tensor x_LE = at::embedding(embedding_, ids_L);
  if (picture_IE.defined())
    x_LE = at::cat({x_LE.slice(0, 0, place), picture_IE.to(x_LE.options()), x_LE.slice(0, place + 1)});
  const Rotation positions = rotation(x_LE.size(0));
  for (const Block& block : blocks_) {
    x_LE = x_LE + attention(block, rms_norm(x_LE, block.norm1, kind_.eps), positions);
    const at::Tensor h_LE = rms_norm(x_LE, block.norm2, kind_.eps);
    x_LE = x_LE + at::linear(at::silu(at::linear(h_LE, block.gate)) * at::linear(h_LE, block.up), block.down);
  }
  return x_LE;
}

}  // namespace vmoba::model
