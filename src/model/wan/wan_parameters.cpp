#include "model/wan/wan_parameters.h"

#include <cmath>

#include <fmt/format.h>

#include "model/common/learnt.h"
#include "model/common/spec_list.h"
#include "model/wan/wan_config.h"

namespace vmoba::model {
namespace {

void attention_specs(SpecList& specs, const std::string& name, int64_t width) {
  for (const char* map : {".to_q", ".to_k", ".to_v", ".to_out.0"}) specs.linear(name + map, width, width);
  specs.tensor(name + ".norm_q.weight", {width}, constant(1));
  specs.tensor(name + ".norm_k.weight", {width}, constant(1));
}

// What cross attention to image tokens adds.
void image_attention_specs(SpecList& specs, int64_t width) {
  specs.linear("attn2.add_k_proj", width, width);
  specs.linear("attn2.add_v_proj", width, width);
  specs.tensor("attn2.norm_added_k.weight", {width}, constant(1));
}

void image_embedder_specs(SpecList& specs, const ModelConfig& config) {
  const std::string name = "condition_embedder.image_embedder";
  if (config.own<WanConfig>().image_pos_tokens > 0)
    specs.tensor(name + ".pos_embed", {1, config.own<WanConfig>().image_pos_tokens, config.image_dim}, constant(0));
  specs.layer_norm(name + ".norm1", config.image_dim);
  specs.linear(name + ".ff.net.0.proj", config.image_dim, config.image_dim);
  specs.linear(name + ".ff.net.2", config.image_dim, config.heads * config.head_dim);
  specs.layer_norm(name + ".norm2", config.heads * config.head_dim);
}

// Those of Wan's parts.
class WanCursor : public WeightCursor {
 public:
  WanCursor(const std::vector<Weight>& weights, const ModelConfig& config) : WeightCursor(weights), config_(config) {}
  WanAttentionWeights attention() {
    WanAttentionWeights out;
    for (Linear* map : {&out.to_q, &out.to_k, &out.to_v, &out.to_out}) *map = linear();
    out.norm_q = tensor();
    out.norm_k = tensor();
    return out;
  }
  WanAttentionWeights cross_attention() {
    WanAttentionWeights out = attention();
    if (config_.image_dim == 0) return out;
    out.add_k = linear();
    out.add_v = linear();
    out.norm_added_k = tensor();
    return out;
  }
  WanImageWeights image() {
    WanImageWeights out;
    if (config_.image_dim == 0) return out;
    if (config_.own<WanConfig>().image_pos_tokens > 0) out.position = tensor();
    out.norm1_weight = tensor();
    out.norm1_bias = tensor();
    out.up = linear();
    out.down = linear();
    out.norm2_weight = tensor();
    out.norm2_bias = tensor();
    return out;
  }

 private:
  const ModelConfig& config_;
};

int64_t patch_values(const ModelConfig& config) {
  return config.patch_size[0] * config.patch_size[1] * config.patch_size[2];
}

}  // namespace

std::vector<ParameterSpec> wan_outer_specs(const ModelConfig& config) {
  const int64_t width = config.heads * config.head_dim;
  const int64_t patch_in = config.in_channels * patch_values(config);
  SpecList specs("");
  specs.tensor("scale_shift_table", {1, 2, width}, normal(1 / std::sqrt(double(width))));
  specs.tensor("patch_embedding.weight",
               {width, config.in_channels, config.patch_size[0], config.patch_size[1], config.patch_size[2]},
               xavier_uniform(patch_in, width));
  specs.tensor("patch_embedding.bias", {width}, uniform(1 / std::sqrt(double(patch_in))));
  specs.linear("condition_embedder.time_embedder.linear_1", config.own<WanConfig>().freq_dim, width, normal(0.02));
  specs.linear("condition_embedder.time_embedder.linear_2", width, width, normal(0.02));
  specs.linear("condition_embedder.time_proj", width, 6 * width);
  specs.linear("condition_embedder.text_embedder.linear_1", config.text_dim, width, normal(0.02));
  specs.linear("condition_embedder.text_embedder.linear_2", width, width, normal(0.02));
  if (config.image_dim > 0) image_embedder_specs(specs, config);
  specs.linear("proj_out", width, config.out_channels * patch_values(config), constant(0));
  return specs.take();
}

std::vector<ParameterSpec> wan_block_specs(const ModelConfig& config, int64_t layer) {
  const int64_t width = config.heads * config.head_dim;
  SpecList specs(fmt::format("blocks.{}.", layer));
  specs.tensor("scale_shift_table", {1, 6, width}, normal(1 / std::sqrt(double(width))));
  attention_specs(specs, "attn1", width);
  attention_specs(specs, "attn2", width);
  if (config.image_dim > 0) image_attention_specs(specs, width);
  if (config.own<WanConfig>().cross_attn_norm) specs.layer_norm("norm2", width);
  specs.linear("ffn.net.0.proj", width, config.own<WanConfig>().ffn_dim);
  specs.linear("ffn.net.2", config.own<WanConfig>().ffn_dim, width);
  learnt_specs(specs, "attn1", config, layer);
  return specs.take();
}

std::vector<ParameterSpec> wan_parameter_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs = wan_outer_specs(config);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    for (ParameterSpec& spec : wan_block_specs(config, layer)) specs.push_back(std::move(spec));
  }
  return specs;
}

WanOuterWeights wan_outer_weights(const std::vector<Weight>& weights, const ModelConfig& config) {
  WanCursor cursor(weights, config);
  WanOuterWeights out;
  out.scale_shift_table = cursor.tensor();
  for (Linear* map :
       {&out.patch_embedding, &out.time_up, &out.time_down, &out.time_proj, &out.text_up, &out.text_down}) {
    *map = cursor.linear();
  }
  out.image = cursor.image();
  out.proj_out = cursor.linear();
  cursor.finish();
  return out;
}

WanBlockWeights wan_block_weights(const std::vector<Weight>& weights, const ModelConfig& config) {
  WanCursor cursor(weights, config);
  WanBlockWeights out;
  out.scale_shift_table = cursor.tensor();
  out.attn1 = cursor.attention();
  out.attn2 = cursor.cross_attention();
  if (config.own<WanConfig>().cross_attn_norm) {
    out.norm2_weight = cursor.tensor();
    out.norm2_bias = cursor.tensor();
  }
  out.ffn_up = cursor.linear();
  out.ffn_down = cursor.linear();
  out.learnt = cursor.rest();
  return out;
}

}  // namespace vmoba::model
