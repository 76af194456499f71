// Shape letters: B samples, S video tokens, G runs of tokens with a timestep each, L text tokens, I image tokens, E
// width = N heads x D, P = D/2 rotated pairs, F width of the feed-forward.
#include "model/wan/wan_block.h"

#include "model/common/kept.h"
#include "model/common/learnt.h"
#include "model/common/pointwise.h"
#include "model/wan/wan_config.h"

namespace vmoba::model {
namespace {

at::Tensor split_heads(const at::Tensor& x_BSE, const ModelConfig& config) {
  return x_BSE.unflatten(-1, {config.heads, config.head_dim});
}

at::Tensor self_attention_branch(const at::Tensor& x_BSE, const WanBlockWeights& block, const WanBlockContext& context,
                                 Kept& kept) {
  const WanAttentionWeights& weights = block.attn1;
  const ModelConfig& config = context.config;
  const TokenShare& share = context.share;
  const bool sums = sums_for_biases(config, x_BSE);
  const Linear to_q = without_bias_gradient(weights.to_q, sums), to_k = without_bias_gradient(weights.to_k, sums);
  const std::vector<KeptMap> maps = {{to_q, "attn1.to_q"}, {to_k, "attn1.to_k"}, {weights.to_v, "attn1.to_v"}};
  // With ranks one after the other: each exchange hides behind the next map.
  const std::vector<at::Tensor> together =
      share.has_ranks() ? std::vector<at::Tensor>() : kept_linears(config, x_BSE, maps, kept);
  const auto project = [&](size_t i) {
    return together.empty() ? kept_linear(config, x_BSE, maps[i], kept) : together[i];
  };
  const auto normed = [&](size_t i, const at::Tensor& weight, const Linear& map) {
    return norm_of_heads(config, project(i), weight, context.rope_SP, map.bias);
  };
  TokenShare::Heads q = share.begin_to_heads(normed(0, weights.norm_q, weights.to_q));
  TokenShare::Heads k = share.begin_to_heads(normed(1, weights.norm_k, weights.to_k));
  TokenShare::Heads v = share.begin_to_heads(split_heads(project(2), config));
  const at::Tensor q_BSND = q.wait(), k_BSND = k.wait(), v_BSND = v.wait();
  attention::LayerAttention layer = context.layer;
  layer.first_head = share.first_head(config.heads);
  const std::vector<at::Tensor> learnt = learnt_for(layer, config, block.learnt, q_BSND);
  const auto attend = [&](attention::ResultTape* tape) {
    return attention::self_attention(q_BSND, k_BSND, v_BSND, context.grid, /*text_tokens=*/0, layer, context.stats, {},
                                     learnt, tape);
  };
  const at::Tensor out_BSND = kept_attention(attend, kept, "attn1");
  const Linear to_out = without_bias_gradient(weights.to_out, sums);
  return kept_linear(config, share.to_tokens(out_BSND).flatten(2), {to_out, "attn1.to_out.0"}, kept);
}

// Text and image each have keys, values and a softmax of their own; the two results are added.
at::Tensor cross_attention_branch(const at::Tensor& x_BSE, const at::Tensor& text_BLE, const at::Tensor& image_BIE,
                                  const WanAttentionWeights& weights, const ModelConfig& config, Kept& kept) {
  const bool sums = sums_for_biases(config, x_BSE);
  const Linear to_q = without_bias_gradient(weights.to_q, sums), to_out = without_bias_gradient(weights.to_out, sums);
  const at::Tensor q_BSND = norm_of_heads(config, kept_linear(config, x_BSE, {to_q, "attn2.to_q"}, kept),
                                          weights.norm_q, /*table_SP=*/{}, weights.to_q.bias);
  const auto attend = [&](const at::Tensor& context, const Linear& to_k, const Linear& to_v, const at::Tensor& norm_k,
                          attention::ResultTape* tape) {
    const at::Tensor k = norm_of_heads(config, linear(context, to_k), norm_k);
    const at::Tensor v = split_heads(linear(context, to_v), config);
    return attention::cross_attention(q_BSND, k, v, {}, tape).flatten(2);
  };
  const auto attend_all = [&](attention::ResultTape* tape) {
    const at::Tensor text_BSE = attend(text_BLE, weights.to_k, weights.to_v, weights.norm_k, tape);
    if (!image_BIE.defined()) return text_BSE;
    return text_BSE + attend(image_BIE, weights.add_k, weights.add_v, weights.norm_added_k, tape);
  };
  return kept_linear(config, kept_attention(attend_all, kept, "attn2"), {to_out, "attn2.to_out.0"}, kept);
}

}  // namespace

at::Tensor wan_block(const WanBlockInput& input, const WanBlockWeights& weights, const WanBlockContext& context,
                     Kept& kept) {
  const ModelConfig& config = context.config;
  // Keys and values both use the text (and the image). Through these views their gradients meet inside the block, in
  // the same order of additions whether the block is recomputed or not.
  const at::Tensor text_BLE = input.text_BLE.view_as(input.text_BLE);
  const at::Tensor image_BIE = input.image_BIE.defined() ? input.image_BIE.view_as(input.image_BIE) : at::Tensor();
  const auto parts = (weights.scale_shift_table.to(input.time_BG6E.scalar_type()) + input.time_BG6E).unbind(2);
  const at::Tensor &shift_attn = parts[0], &scale_attn = parts[1], &gate_attn = parts[2];
  const at::Tensor &shift_ffn = parts[3], &scale_ffn = parts[4], &gate_ffn = parts[5];

  const bool sums = sums_for_biases(config, input.x_BSE);
  const SumAndNorm before = norm_beside(config, input.x_BSE, scale_attn, shift_attn);
  const Residual attended{before.sum_BSE, self_attention_branch(before.norm_BSE, weights, context, kept), gate_attn,
                          weights.attn1.to_out.bias};
  SumAndNorm after;  // of the residual so far
  if (config.own<WanConfig>().cross_attn_norm)
    after = sum_norm(config, attended, {weights.norm2_weight, weights.norm2_bias, /*modulated=*/false});
  else
    after.norm_BSE = after.sum_BSE = gated_sum(config, attended.x_BSE, attended.branch_BSE, gate_attn, attended.bias_E);

  const at::Tensor cross_BSE = cross_attention_branch(after.norm_BSE, text_BLE, image_BIE, weights.attn2, config, kept);
  after = sum_norm(config, {after.sum_BSE, cross_BSE, {}, weights.attn2.to_out.bias}, {scale_ffn, shift_ffn});

  const Linear down = without_bias_gradient(weights.ffn_down, sums);
  const at::Tensor fed_BSE =
      kept_feed_forward(config, after.norm_BSE, {weights.ffn_up, "ffn.net.0.proj"}, {down, "ffn.net.2"}, kept);
  return gated_sum(config, after.sum_BSE, fed_BSE, gate_ffn, weights.ffn_down.bias);
}

}  // namespace vmoba::model
