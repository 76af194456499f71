// Shape letters: B samples, S own video rows, L own text rows, Z both, G runs of video tokens, E width = N heads x D,
// P = D/2 rotated pairs, F width of the feed-forward.
#include "model/hunyuan/hunyuan_block.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>

#include "model/common/kept.h"
#include "model/common/learnt.h"
#include "model/common/pointwise.h"

namespace vmoba::model {
namespace {

// `parts` rows of width E for each run: the map multiplies in the compute dtype and the result is precise.
std::vector<at::Tensor> modulation(const at::Tensor& vec_BGE, const Linear& map, int64_t parts, at::ScalarType dtype) {
  const at::Tensor rows = linear(at::silu(vec_BGE).to(dtype), map).to(vec_BGE.scalar_type());
  return rows.unflatten(2, {parts, -1}).unbind(2);
}

// Of the last run: the text's.
at::Tensor last_run(const at::Tensor& vec_BGE) {
  return vec_BGE.narrow(1, vec_BGE.size(1) - 1, 1);
}

struct HeadNames {
  const char *to_q, *to_k, *to_v, *to_out, *up, *down;
};
constexpr HeadNames kVideoNames = {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"};
constexpr HeadNames kTextNames = {"attn.add_q_proj", "attn.add_k_proj",       "attn.add_v_proj",
                                  "attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2"};

// Attention over the own rows of video and text of q, k and v [B, Z, N, D].
at::Tensor joint_attention(const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                           const std::vector<at::Tensor>& learnt, const HunyuanBlockContext& context, Kept& kept) {
  const JointShare& share = context.share;
  JointShare::Heads q = share.begin_to_heads(q_BZND), k = share.begin_to_heads(k_BZND),
                    v = share.begin_to_heads(v_BZND);
  const at::Tensor q_all = q.wait(), k_all = k.wait(), v_all = v.wait();
  attention::LayerAttention layer = context.layer;
  layer.first_head = share.video().first_head(context.config.heads);
  const std::vector<at::Tensor> own_learnt = learnt_for(layer, context.config, learnt, q_all);
  const auto attend = [&](attention::ResultTape* tape) {
    return attention::self_attention(q_all, k_all, v_all, context.grid, share.text_tokens(), layer, context.stats,
                                     context.text_lengths, own_learnt, tape);
  };
  return share.to_rows(kept_attention(attend, kept, "attn")).flatten(2);
}

struct Qkv {
  at::Tensor q_BSND, k_BSND, v_BSND;
};

Qkv stream_qkv(const at::Tensor& x_BSE, const StreamWeights& weights, const HeadNames& names, const at::Tensor& rope_SP,
               const ModelConfig& config, Kept& kept) {
  const std::vector<at::Tensor> maps = kept_linears(
      config, x_BSE, {{weights.to_q, names.to_q}, {weights.to_k, names.to_k}, {weights.to_v, names.to_v}}, kept);
  return {norm_of_each_head(config, maps[0], weights.norm_q, rope_SP),
          norm_of_each_head(config, maps[1], weights.norm_k, rope_SP),
          maps[2].unflatten(-1, {config.heads, config.head_dim})};
}

// What follows attention in a stream of a double block; `parts`: shift, scale and gate of attention, then of the
// feed-forward.
at::Tensor stream_end(const at::Tensor& x_BSE, const at::Tensor& attended_BSE, const std::vector<at::Tensor>& parts,
                      const StreamWeights& weights, const HeadNames& names, const ModelConfig& config, Kept& kept) {
  const bool sums = sums_for_biases(config, x_BSE);
  const Linear to_out = without_bias_gradient(weights.to_out, sums), down = without_bias_gradient(weights.down, sums);
  const at::Tensor out_BSE = kept_linear(config, attended_BSE, {to_out, names.to_out}, kept);
  const auto [with_BSE, norm_BSE] =
      sum_norm(config, {x_BSE, out_BSE, parts[2], weights.to_out.bias}, {parts[4], parts[3]});
  const at::Tensor fed_BSE = kept_feed_forward(config, norm_BSE, {weights.up, names.up}, {down, names.down}, kept);
  return gated_sum(config, with_BSE, fed_BSE, parts[5], weights.down.bias);
}

}  // namespace

at::Tensor hunyuan_double_block(const HunyuanBlockInput& input, const DoubleBlockWeights& weights,
                                const HunyuanBlockContext& context, Kept& kept) {
  const ModelConfig& config = context.config;
  const JointShare& share = context.share;
  const at::ScalarType dtype = input.x_BZE.scalar_type();
  const auto [video_BSE, text_BLE] = share.split(input.x_BZE);
  std::vector<at::Tensor> of_video = modulation(input.vec_BGE, weights.video_modulation, 6, dtype);
  for (at::Tensor& rows_BGE : of_video) rows_BGE = share.video().own_runs(rows_BGE);
  const std::vector<at::Tensor> of_text = modulation(last_run(input.vec_BGE), weights.text_modulation, 6, dtype);

  const SumAndNorm of_video_rows = norm_beside(config, video_BSE, of_video[1], of_video[0]),
                   of_text_rows = norm_beside(config, text_BLE, of_text[1], of_text[0]);
  const Qkv video = stream_qkv(of_video_rows.norm_BSE, weights.video, kVideoNames,
                               context.rope_ZP.narrow(0, 0, video_BSE.size(1)), config, kept);
  const Qkv text = stream_qkv(of_text_rows.norm_BSE, weights.text, kTextNames, {}, config, kept);
  const at::Tensor attended_BZE =
      joint_attention(at::cat({video.q_BSND, text.q_BSND}, 1), at::cat({video.k_BSND, text.k_BSND}, 1),
                      at::cat({video.v_BSND, text.v_BSND}, 1), weights.learnt, context, kept);
  const auto [attended_BSE, attended_BLE] = share.split(attended_BZE);
  return at::cat({stream_end(of_video_rows.sum_BSE, attended_BSE, of_video, weights.video, kVideoNames, config, kept),
                  stream_end(of_text_rows.sum_BSE, attended_BLE, of_text, weights.text, kTextNames, config, kept)},
                 1);
}

at::Tensor hunyuan_single_block(const HunyuanBlockInput& input, const SingleBlockWeights& weights,
                                const HunyuanBlockContext& context, Kept& kept) {
  const ModelConfig& config = context.config;
  const JointShare& share = context.share;
  const at::Tensor& x_BZE = input.x_BZE;
  std::vector<at::Tensor> parts = modulation(input.vec_BGE, weights.modulation, 3, x_BZE.scalar_type());
  std::vector<at::Tensor> of_text;
  for (at::Tensor& rows_BGE : parts) {
    of_text.push_back(last_run(rows_BGE));
    rows_BGE = share.video().own_runs(rows_BGE);
  }
  // With one run, all rows have the same conditions; else video and text go apart.
  const bool one_run = parts[0].size(1) == 1;
  const auto of_streams = [&](const at::Tensor& rows_BZE, const auto& of_stream) {
    if (one_run) return of_stream(x_BZE, rows_BZE, parts);
    const auto [x_video, x_text] = share.split(x_BZE);
    const auto [video, text] = share.split(rows_BZE);
    return at::cat({of_stream(x_video, video, parts), of_stream(x_text, text, of_text)}, 1);
  };

  const at::Tensor norm_BZE = of_streams(x_BZE, [&](const auto& rows, const auto&, const auto& of_rows) {
    return modulated_norm(config, rows, of_rows[1], of_rows[0]);
  });
  const std::vector<at::Tensor> maps = kept_linears(
      config, norm_BZE,
      {{weights.to_q, "attn.to_q"}, {weights.to_k, "attn.to_k"}, {weights.to_v, "attn.to_v"}, {weights.up, "proj_mlp"}},
      kept);
  const at::Tensor attended_BZE =
      joint_attention(norm_of_each_head(config, maps[0], weights.norm_q, context.rope_ZP),
                      norm_of_each_head(config, maps[1], weights.norm_k, context.rope_ZP),
                      maps[2].unflatten(-1, {config.heads, config.head_dim}), weights.learnt, context, kept);
  const at::Tensor joined = at::cat({attended_BZE, at::gelu(maps[3], "tanh")}, -1);
  const at::Tensor out_BZE = kept_linear(config, joined, {weights.out, "proj_out"}, kept);
  return of_streams(out_BZE, [&](const auto& rows, const auto& branch, const auto& of_rows) {
    return gated_sum(config, rows, branch, of_rows[2]);
  });
}

}  // namespace vmoba::model
