// Shape letters: L tokens, E width, N heads, D head width.
#include "model/text/umt5_encoder.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <functional>
#include <map>
#include <optional>

#include "core/check.h"
#include "model/common/norm.h"

namespace vmoba::model {
namespace {

constexpr double kEps = 1e-6;
constexpr double kMaxDistance = 128;

constexpr const char* kBlockNames[] = {
    "layer.0.layer_norm.weight",          "layer.0.SelfAttention.q.weight",
    "layer.0.SelfAttention.k.weight",     "layer.0.SelfAttention.v.weight",
    "layer.0.SelfAttention.o.weight",     "layer.0.SelfAttention.relative_attention_bias.weight",
    "layer.1.layer_norm.weight",          "layer.1.DenseReluDense.wi_0.weight",
    "layer.1.DenseReluDense.wi_1.weight", "layer.1.DenseReluDense.wo.weight",
};

// The tensors of the files, by transformers' names.
class Names {
 public:
  Names(const WeightFiles& files, const std::string& path) : files_(files), path_(path) {
    VMOBA_CHECK_INPUT(has(block(0, 1)),
                      "text.weights: expected a UMT5 encoder ({} or blocks.0.attn.q.weight) at '{}', found {} other "
                      "tensors such as '{}'",
                      "encoder.block.0.layer.0.SelfAttention.q.weight", path, files.entries().size(),
                      files.entries().empty() ? "" : files.entries().begin()->first);
    while (has(block(layers_, 0)) || has(block(layers_, 1))) ++layers_;
  }

  int64_t layers() const { return layers_; }
  std::string embedding() const { return has("shared.weight") ? "shared.weight" : "encoder.embed_tokens.weight"; }
  std::string norm() const { return "encoder.final_layer_norm.weight"; }
  std::string block(int64_t layer, size_t part) const {
    return fmt::format("encoder.block.{}.{}", layer, kBlockNames[part]);
  }

  std::vector<int64_t> shape(const std::string& name) const {
    VMOBA_CHECK_INPUT(has(name), "text.weights: expected a tensor '{}' at '{}', found none", name, path_);
    return files_.info(name).shape;
  }
  void expect(const std::string& name, const std::vector<int64_t>& wanted) const {
    const std::vector<int64_t> found = shape(name);
    VMOBA_CHECK_INPUT(found == wanted && at::isFloatingType(files_.info(name).dtype),
                      "text.weights: expected '{}' of shape {} at '{}', found {} {}", name, fmt::join(wanted, "x"),
                      path_, c10::toString(files_.info(name).dtype), fmt::join(found, "x"));
  }
  // Beside the encoder a file may hold the tied copy of the embedding and ComfyUI's tokenizer.
  void refuse_others(int64_t expected) const {
    int64_t extra = 0;
    for (const char* known : {"encoder.embed_tokens.weight", "spiece_model"})
      extra += has(known) && embedding() != known ? 1 : 0;
    const auto count = int64_t(files_.entries().size());
    VMOBA_CHECK_INPUT(count == expected + extra,
                      "text.weights: expected the {} tensors of a UMT5 encoder of {} layers at '{}', found {}",
                      expected, layers_, path_, count - extra);
  }

 private:
  bool has(const std::string& name) const { return files_.entries().contains(name); }

  const WeightFiles& files_;
  std::string path_;
  int64_t layers_ = 0;
};

Umt5Shape check_names(const Names& names) {
  Umt5Shape s;
  const auto matrix = [&](const std::string& name) {
    const std::vector<int64_t> shape = names.shape(name);
    VMOBA_CHECK_INPUT(shape.size() == 2 && shape[0] > 0 && shape[1] > 0,
                      "text.weights: expected a matrix '{}', found shape [{}]", name, fmt::join(shape, ", "));
    return shape;
  };
  s.layers = names.layers();
  s.vocabulary = matrix(names.embedding())[0];
  s.width = matrix(names.embedding())[1];
  s.inner = matrix(names.block(0, 1))[0];
  s.buckets = matrix(names.block(0, 5))[0];
  s.heads = matrix(names.block(0, 5))[1];
  s.ffn = matrix(names.block(0, 7))[0];
  VMOBA_CHECK_INPUT(
      s.inner % s.heads == 0 && s.buckets >= 4 && s.buckets % 4 == 0,
      "text.weights: expected {} rows of '{}' to be a multiple of its {} heads and a multiple of 4 position "
      "buckets, found {}",
      s.inner, names.block(0, 1), s.heads, s.buckets);
  const std::vector<int64_t> in = {s.inner, s.width}, up = {s.ffn, s.width};
  const std::vector<int64_t> wanted[] = {
      {s.width}, in, in, in, {s.width, s.inner}, {s.buckets, s.heads}, {s.width}, up, up, {s.width, s.ffn}};
  constexpr size_t kParts = std::size(kBlockNames);
  static_assert(kParts == std::size(wanted));
  for (int64_t layer = 0; layer < s.layers; ++layer)
    for (size_t part = 0; part < kParts; ++part) names.expect(names.block(layer, part), wanted[part]);
  names.expect(names.embedding(), {s.vocabulary, s.width});
  names.expect(names.norm(), {s.width});
  names.refuse_others(s.layers * int64_t(kParts) + 2);
  return s;
}

}  // namespace

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

Umt5Shape check_umt5(const WeightFiles& files, const std::string& path) {
  return check_names(Names(files, path));
}

at::Tensor umt5_position_buckets(int64_t tokens, int64_t buckets) {
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

Umt5Encoder::Umt5Encoder(const WeightFiles& files, const std::string& path, at::ScalarType dtype, at::Device device) {
  const Names names(files, path);
  shape_ = check_names(names);
  const auto read = [&](const std::string& name) { return files.read(name, dtype, device); };
  embedding_ = read(names.embedding());
  norm_ = read(names.norm());
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    Block block;
    size_t part = 0;
    for (at::Tensor* tensor : {&block.norm1, &block.q, &block.k, &block.v, &block.o, &block.position_bias, &block.norm2,
                               &block.gate, &block.up, &block.down})
      *tensor = read(names.block(layer, part++));
    blocks_.push_back(std::move(block));
  }
}

at::Tensor Umt5Encoder::attention(const Block& block, const at::Tensor& x_LE, const at::Tensor& bucket_LL) const {
  const auto heads = [&](const at::Tensor& weight) {
    return at::linear(x_LE, weight).unflatten(-1, {shape_.heads, shape_.inner / shape_.heads}).transpose(0, 1);
  };
  const at::Tensor q_NLD = heads(block.q), k_NLD = heads(block.k), v_NLD = heads(block.v);
  const at::Tensor bias_NLL = at::embedding(block.position_bias, bucket_LL).permute({2, 0, 1});
  const at::Tensor scores_NLL = (at::matmul(q_NLD, k_NLD.transpose(1, 2)) + bias_NLL).to(at::kFloat);
  const at::Tensor out_NLD = at::matmul(at::softmax(scores_NLL, -1).to(v_NLD.scalar_type()), v_NLD);
  return at::linear(out_NLD.transpose(0, 1).flatten(1), block.o);
}

at::Tensor Umt5Encoder::feed_forward(const Block& block, const at::Tensor& x_LE) const {
  return at::linear(at::gelu(at::linear(x_LE, block.gate), "tanh") * at::linear(x_LE, block.up), block.down);
}

at::Tensor Umt5Encoder::forward(const std::vector<int64_t>& ids) const {
  const at::NoGradGuard no_grad;
  const at::Tensor ids_L = at::tensor(ids, at::kLong).to(embedding_.device());
  const at::Tensor bucket_LL = umt5_position_buckets(ids_L.size(0), shape_.buckets).to(embedding_.device());
  at::Tensor x_LE = at::embedding(embedding_, ids_L);
  for (const Block& block : blocks_) {
    x_LE = x_LE + attention(block, rms_norm(x_LE, block.norm1, kEps), bucket_LL);
    x_LE = x_LE + feed_forward(block, rms_norm(x_LE, block.norm2, kEps));
  }
  return rms_norm(x_LE, norm_, kEps);
}

}  // namespace vmoba::model
