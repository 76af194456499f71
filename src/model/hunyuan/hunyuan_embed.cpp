// Shape letters: B samples, G runs of video tokens with a timestep each, L text tokens, J glyph tokens, I image tokens,
// N heads, D head size, E width.
#include "model/hunyuan/hunyuan_embed.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "attention/attention.h"
#include "model/common/linear.h"
#include "model/common/mlp.h"
#include "model/common/modulation.h"
#include "model/common/norm.h"
#include "model/common/pointwise.h"
#include "model/hunyuan/hunyuan_config.h"

namespace vmoba::model {
namespace {

constexpr double kOtherTokensEps = 1e-5;  // of the norms of glyph and image tokens, whatever model.eps is
constexpr double kGuidanceFactor = 1000;

// Sinusoids of fp32 values, as published also where all else is fp64, then two maps in the precise dtype.
at::Tensor embedded(const at::Tensor& values, const EmbedderWeights& weights, at::ScalarType precise) {
  return silu_mlp(timestep_embedding(values.to(at::kFloat), kWaveChannels).to(precise), weights.up, weights.down);
}

// Mean of the first rows of each sample.
at::Tensor mean_rows(const at::Tensor& rows_BLE, const std::vector<int64_t>& lengths) {
  std::vector<at::Tensor> out;
  for (size_t b = 0; b < lengths.size(); ++b) out.push_back(rows_BLE[int64_t(b)].narrow(0, 0, lengths[b]).mean(0));
  return at::stack(out);
}

int64_t longest(const std::vector<int64_t>& lengths) {
  return *std::max_element(lengths.begin(), lengths.end());
}

at::Tensor refiner_attention(const at::Tensor& x_BLE, const StreamWeights& weights, const std::vector<int64_t>& lengths,
                             const ModelConfig& config) {
  const auto heads = [&](const Linear& map) {
    return linear(x_BLE, map).unflatten(-1, {config.heads, config.head_dim});
  };
  const at::Tensor out_BLND =
      attention::cross_attention(heads(weights.to_q), heads(weights.to_k), heads(weights.to_v), lengths);
  return linear(out_BLND.flatten(2), weights.to_out);
}

// `condition_B1E` precise. Modulated by gates alone.
at::Tensor refiner_block(const at::Tensor& x_BLE, const at::Tensor& condition_B1E, const RefinerBlockWeights& weights,
                         const std::vector<int64_t>& lengths, const ModelConfig& config) {
  const auto gates = linear(at::silu(condition_B1E), weights.gates).unflatten(2, {2, -1}).unbind(2);
  const at::Tensor norm1_BLE = affine_norm(config, x_BLE, weights.norm1.weight, weights.norm1.bias);
  const at::Tensor attended =
      gated_sum(config, x_BLE, refiner_attention(norm1_BLE, weights.stream, lengths, config), gates[0]);
  const at::Tensor norm2_BLE = affine_norm(config, attended, weights.norm2.weight, weights.norm2.bias);
  return gated_sum(config, attended, silu_mlp(norm2_BLE, weights.stream.up, weights.stream.down), gates[1]);
}

at::Tensor refined(const at::Tensor& timestep_B, const at::Tensor& tokens_BLE, const std::vector<int64_t>& lengths,
                   const HunyuanOuterWeights& weights, const ModelConfig& config, at::ScalarType dtype) {
  const at::ScalarType precise = precise_type(dtype);
  const at::Tensor condition_BE =
      embedded(timestep_B, weights.refiner_time, precise) +
      silu_mlp(mean_rows(tokens_BLE.to(precise), lengths), weights.refiner_text.up, weights.refiner_text.down);
  at::Tensor x_BLE = linear(tokens_BLE.to(dtype), weights.refiner_in);
  for (const RefinerBlockWeights& block : weights.refiner)
    x_BLE = refiner_block(x_BLE, condition_BE.unsqueeze(1), block, lengths, config);
  return x_BLE;
}

at::Tensor glyph_rows(const at::Tensor& glyphs_BJU, const GlyphWeights& weights, at::ScalarType dtype) {
  const at::Tensor norm = layer_norm(glyphs_BJU.to(dtype), weights.norm.weight, weights.norm.bias, kOtherTokensEps);
  return linear(at::gelu(exact_gelu_mlp(norm.to(dtype), weights.up, weights.middle)), weights.down);
}

at::Tensor image_rows(const at::Tensor& image_BIM, const ImageTokenWeights& weights, at::ScalarType dtype) {
  const at::Tensor norm =
      layer_norm(image_BIM.to(dtype), weights.norm_in.weight, weights.norm_in.bias, kOtherTokensEps);
  const at::Tensor out = exact_gelu_mlp(norm.to(dtype), weights.up, weights.down);
  return layer_norm(out, weights.norm_out.weight, weights.norm_out.bias, kOtherTokensEps).to(dtype);
}

// Tokens of one kind and how many of them each sample has.
struct Kind {
  at::Tensor rows_BLE;
  std::vector<int64_t> lengths;
};

// The kinds one behind the other, each sample's rows in front and zeros behind them.
HunyuanText packed_rows(const std::vector<Kind>& kinds) {
  HunyuanText out;
  const size_t batch = kinds.front().lengths.size();
  for (size_t b = 0; b < batch; ++b) {
    out.lengths.push_back(0);
    for (const Kind& kind : kinds) out.lengths[b] += kind.lengths[b];
  }
  std::vector<at::Tensor> samples;
  for (size_t b = 0; b < batch; ++b) {
    std::vector<at::Tensor> rows;
    for (const Kind& kind : kinds) rows.push_back(kind.rows_BLE[int64_t(b)].narrow(0, 0, kind.lengths[b]));
    samples.push_back(at::constant_pad_nd(at::cat(rows), {0, 0, 0, longest(out.lengths) - out.lengths[b]}));
  }
  out.rows_BLE = at::stack(samples);
  return out;
}

// Without tokens of a kind its maps run on no rows: they then have gradients, which are zero.
at::Tensor or_no_rows(const at::Tensor& tokens, const at::Tensor& like_BLE, int64_t width) {
  return tokens.defined() ? tokens : at::zeros({like_BLE.size(0), 0, width}, like_BLE.options().requires_grad(false));
}

}  // namespace

std::vector<int64_t> lengths_of(const at::Tensor& tokens_BLE, const at::Tensor& length_B) {
  if (!length_B.defined()) return std::vector<int64_t>(size_t(tokens_BLE.size(0)), tokens_BLE.size(1));
  const at::Tensor contiguous = length_B.contiguous();
  const int64_t* values = contiguous.const_data_ptr<int64_t>();
  return {values, values + contiguous.numel()};
}

at::Tensor hunyuan_vector(const at::Tensor& timestep_BG, const Conditions& conditions,
                          const HunyuanOuterWeights& weights, const ModelConfig& config, at::ScalarType dtype) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  const at::ScalarType precise = precise_type(dtype);
  at::Tensor vec_BGE = embedded(timestep_BG, weights.time, precise);
  if (hunyuan.meanflow)
    vec_BGE = vec_BGE + embedded(conditions.next_timestep_B, weights.next_time, precise).unsqueeze(1);
  if (hunyuan.guidance_embed) {
    at::Tensor guidance_B = conditions.guidance_B.to(at::kFloat) * kGuidanceFactor;
    // As in the published pipelines, whose samples a user knows: 6000 becomes 6016.
    if (dtype == at::kBFloat16) guidance_B = guidance_B.to(dtype);
    at::Tensor added_BGE = embedded(guidance_B, weights.guidance, precise).unsqueeze(1);
    // Given tokens are not guided.
    if (hunyuan.image_condition == "replace") added_BGE = added_BGE * timestep_BG.ne(0).unsqueeze(2).to(precise);
    vec_BGE = vec_BGE + added_BGE;
  }
  if (hunyuan.pooled_dim > 0)
    vec_BGE =
        vec_BGE + silu_mlp(conditions.text.pooled_BP.to(precise), weights.pooled.up, weights.pooled.down).unsqueeze(1);
  return vec_BGE;
}

HunyuanText hunyuan_text(const at::Tensor& timestep_B, const Conditions& conditions, const HunyuanOuterWeights& weights,
                         const ModelConfig& config, at::ScalarType dtype) {
  const TextEmbedding& text = conditions.text;
  HunyuanText out;
  out.lengths = lengths_of(text.tokens_BLE, text.length_B);
  const at::Tensor tokens_BLE = text.tokens_BLE.narrow(1, 0, longest(out.lengths));
  out.rows_BLE = refined(timestep_B, tokens_BLE, out.lengths, weights, config, dtype);
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  if (hunyuan.glyph_dim == 0) return out;

  const auto kinds = weights.kinds.to(dtype).unbind(0);
  const at::Tensor glyphs_BJU = or_no_rows(text.glyphs_BJU, tokens_BLE, hunyuan.glyph_dim);
  const at::Tensor image_BIM = or_no_rows(conditions.image_BIM, tokens_BLE, config.image_dim);
  return packed_rows(
      {{image_rows(image_BIM, weights.image, dtype) + kinds[2], lengths_of(image_BIM, conditions.image_length_B)},
       {glyph_rows(glyphs_BJU, weights.glyphs, dtype) + kinds[1], lengths_of(glyphs_BJU, text.glyph_length_B)},
       {out.rows_BLE + kinds[0], out.lengths}});
}

}  // namespace vmoba::model
