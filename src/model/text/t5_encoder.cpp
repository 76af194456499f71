// Shape letters: L tokens, E width, N heads, D head width.
#include "model/text/t5_encoder.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "core/check.h"
#include "model/common/norm.h"
#include "model/weights/encoder_weights.h"

namespace vmoba::model {
namespace {

constexpr double kEps = 1e-6;
constexpr double kMaxDistance = 128;

constexpr const char* kPositionBias = "layer.0.SelfAttention.relative_attention_bias.weight";
constexpr const char* kNorm = "encoder.final_layer_norm.weight";
constexpr const char* kEmbeddings[] = {"shared.weight", "encoder.embed_tokens.weight"};  // the same twice, or one

std::string block_name(int64_t layer, const std::string& part) {
  return fmt::format("encoder.block.{}.{}", layer, part);
}

struct Part {
  const char* name;
  std::vector<int64_t> shape;
};

// Of a layer, in the order of T5Encoder::Block.
std::vector<Part> parts_of(const T5Shape& s) {
  const std::vector<int64_t> in = {s.inner, s.width}, up = {s.ffn, s.width};
  return {{"layer.0.layer_norm.weight", {s.width}},
          {"layer.0.SelfAttention.q.weight", in},
          {"layer.0.SelfAttention.k.weight", in},
          {"layer.0.SelfAttention.v.weight", in},
          {"layer.0.SelfAttention.o.weight", {s.width, s.inner}},
          {kPositionBias, {s.buckets, s.heads}},
          {"layer.1.layer_norm.weight", {s.width}},
          {"layer.1.DenseReluDense.wi_0.weight", up},
          {"layer.1.DenseReluDense.wi_1.weight", up},
          {"layer.1.DenseReluDense.wo.weight", {s.width, s.ffn}}};
}

bool has_part(const T5Kind& kind, int64_t layer, const Part& part) {
  return !kind.shared_bias || layer == 0 || std::string(part.name) != kPositionBias;
}

std::string embedding_of(const EncoderWeights& weights) {
  return weights.has(kEmbeddings[0]) ? kEmbeddings[0] : kEmbeddings[1];
}

// Beside the encoder a file may hold the tied copy of the embedding and ComfyUI's tokenizer.
void refuse_others(const EncoderWeights& weights, const T5Kind& kind, int64_t layers, int64_t expected) {
  int64_t extra = weights.has(kEmbeddings[0]) && weights.has(kEmbeddings[1]) ? 1 : 0;
  for (const std::string& known : kind.passed_over) extra += weights.has(known) ? 1 : 0;
  const auto count = int64_t(weights.files().entries().size());
  VMOBA_CHECK_INPUT(count == expected + extra, "{}: expected the {} tensors of {} of {} layers at '{}', found {}",
                    kind.key, expected, kind.title, layers, weights.path(), count - extra);
}

T5Shape check_names(const EncoderWeights& weights, const T5Kind& kind) {
  const std::string first = block_name(0, "layer.0.SelfAttention.q.weight");
  VMOBA_CHECK_INPUT(weights.has(first), "{}: expected {} ({}) at '{}', found {}", kind.key, kind.title, first,
                    weights.path(), weights.other_tensors());
  T5Shape s;
  while (weights.has(block_name(s.layers, "layer.0.layer_norm.weight")) ||
         weights.has(block_name(s.layers, "layer.0.SelfAttention.q.weight")))
    ++s.layers;
  const std::string embedding = embedding_of(weights);
  s.vocabulary = weights.matrix(embedding)[0];
  s.width = weights.matrix(embedding)[1];
  s.inner = weights.matrix(first)[0];
  s.buckets = weights.matrix(block_name(0, kPositionBias))[0];
  s.heads = weights.matrix(block_name(0, kPositionBias))[1];
  s.ffn = weights.matrix(block_name(0, "layer.1.DenseReluDense.wi_0.weight"))[0];
  VMOBA_CHECK_INPUT(s.inner % s.heads == 0 && s.buckets >= 4 && s.buckets % 4 == 0,
                    "{}: expected {} rows of '{}' to be a multiple of its {} heads and a multiple of 4 position "
                    "buckets, found {}",
                    kind.key, s.inner, first, s.heads, s.buckets);
  int64_t expected = 2;
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    for (const Part& part : parts_of(s)) {
      if (!has_part(kind, layer, part)) continue;
      weights.expect(block_name(layer, part.name), part.shape);
      ++expected;
    }
  }
  weights.expect(embedding, {s.vocabulary, s.width});
  weights.expect(kNorm, {s.width});
  if (kind.alone) refuse_others(weights, kind, s.layers, expected);
  return s;
}

}  // namespace

const T5Kind& umt5_kind() {
  static const T5Kind kind = {"a UMT5 encoder", "text.weights", false, true, {"spiece_model"}};
  return kind;
}

const T5Kind& byt5_kind() {
  static const T5Kind kind = {"a ByT5 encoder", "text.weights_2", true, /*alone=*/false};
  return kind;
}

const std::vector<Layout>& umt5_layouts() {
  // Wan-Video/Wan2.1 wan/modules/t5.py
  static const std::vector<Layout> layouts = {
      {"transformers", "transformers", {}, {"encoder.block.", "shared."}, {}},
      {"original",
       "original",
       {},
       {"token_embedding."},
       {{{"shared", "token_embedding"}, {"encoder.final_layer_norm", "norm"}},
        {{"encoder.block.",
          "blocks.",
          {{"layer.0.layer_norm", "norm1"},
           {"layer.0.SelfAttention.q", "attn.q"},
           {"layer.0.SelfAttention.k", "attn.k"},
           {"layer.0.SelfAttention.v", "attn.v"},
           {"layer.0.SelfAttention.o", "attn.o"},
           {"layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"},
           {"layer.1.layer_norm", "norm2"},
           {"layer.1.DenseReluDense.wi_0", "ffn.gate.0"},
           {"layer.1.DenseReluDense.wi_1", "ffn.fc1"},
           {"layer.1.DenseReluDense.wo", "ffn.fc2"}}}}}}};
  return layouts;
}

const std::vector<Layout>& byt5_layouts() {
  // The published glyph encoder, a checkpoint of a whole training, has its text tower behind prefixes.
  static const std::vector<Layout> layouts = {
      {"transformers", "transformers", {}, {"encoder.block.", "shared."}, {}},
      {"original",
       "original",
       {"module.text_tower.", "text_tower.", "byt5.", "text_encoders.byt5_small.transformer."},
       {"encoder.block.", "shared."},
       {}}};
  return layouts;
}

T5Shape check_t5(const WeightFiles& files, const std::string& path, const T5Kind& kind) {
  return check_names(EncoderWeights(files, path, kind.key), kind);
}

at::Tensor t5_position_buckets(int64_t tokens, int64_t buckets) {
  const int64_t half = buckets / 2;  // the other half is for keys behind the query
  const int64_t exact = half / 2;    // distances with a bucket of their own
  const at::Tensor position_L = at::arange(tokens, at::kLong);
  const at::Tensor relative_LL = position_L.unsqueeze(0) - position_L.unsqueeze(1);
  const at::Tensor distance_LL = relative_LL.abs();
  const at::Tensor share_LL =
      at::log(distance_LL.to(at::kFloat) / double(exact)) / std::log(kMaxDistance / double(exact));
  const at::Tensor far_LL = (exact + (share_LL * double(half - exact)).to(at::kLong)).clamp_max(half - 1);
  return relative_LL.gt(0).to(at::kLong) * half + at::where(distance_LL.lt(exact), distance_LL, far_LL);
}

T5Encoder::T5Encoder(const WeightFiles& files, const std::string& path, const T5Kind& kind, at::ScalarType dtype,
                     at::Device device) {
  const EncoderWeights weights(files, path, kind.key);
  shape_ = check_names(weights, kind);
  embedding_ = files.read(embedding_of(weights), dtype, device);
  norm_ = files.read(kNorm, dtype, device);
  const std::vector<Part> parts = parts_of(shape_);
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    Block block;
    size_t part = 0;
    for (at::Tensor* tensor : {&block.norm1, &block.q, &block.k, &block.v, &block.o, &block.position_bias, &block.norm2,
                               &block.gate, &block.up, &block.down}) {
      const bool own = has_part(kind, layer, parts[part]);
      *tensor = own ? files.read(block_name(layer, parts[part].name), dtype, device) : blocks_.front().position_bias;
      ++part;
    }
    blocks_.push_back(std::move(block));
  }
}

at::Tensor T5Encoder::attention(const Block& block, const at::Tensor& x_LE, const at::Tensor& bucket_LL) const {
  const auto heads = [&](const at::Tensor& weight) {
    return at::linear(x_LE, weight).unflatten(-1, {shape_.heads, shape_.inner / shape_.heads}).transpose(0, 1);
  };
  const at::Tensor q_NLD = heads(block.q), k_NLD = heads(block.k), v_NLD = heads(block.v);
  const at::Tensor bias_NLL = at::embedding(block.position_bias, bucket_LL).permute({2, 0, 1});
  const at::Tensor scores_NLL = (at::matmul(q_NLD, k_NLD.transpose(1, 2)) + bias_NLL).to(at::kFloat);
  const at::Tensor out_NLD = at::matmul(at::softmax(scores_NLL, -1).to(v_NLD.scalar_type()), v_NLD);
  return at::linear(out_NLD.transpose(0, 1).flatten(1), block.o);
}

at::Tensor T5Encoder::feed_forward(const Block& block, const at::Tensor& x_LE) const {
  return at::linear(at::gelu(at::linear(x_LE, block.gate), "tanh") * at::linear(x_LE, block.up), block.down);
}

at::Tensor T5Encoder::forward(const std::vector<int64_t>& ids) const {
  const at::NoGradGuard no_grad;
  const at::Tensor ids_L = at::tensor(ids, at::kLong).to(embedding_.device());
  const at::Tensor bucket_LL = t5_position_buckets(ids_L.size(0), shape_.buckets).to(embedding_.device());
  at::Tensor x_LE = at::embedding(embedding_, ids_L);
  for (const Block& block : blocks_) {
    x_LE = x_LE + attention(block, rms_norm(x_LE, block.norm1, kEps), bucket_LL);
    x_LE = x_LE + feed_forward(block, rms_norm(x_LE, block.norm2, kEps));
  }
  return rms_norm(x_LE, norm_, kEps);
}

}  // namespace vmoba::model
