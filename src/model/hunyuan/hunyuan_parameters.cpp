#include "model/hunyuan/hunyuan_parameters.h"

#include <fmt/format.h>

#include <cmath>

#include "model/common/learnt.h"
#include "model/common/spec_list.h"
#include "model/hunyuan/hunyuan_config.h"

namespace vmoba::model {
namespace {

int64_t width_of(const ModelConfig& config) {
  return config.heads * config.head_dim;
}

int64_t patch_values(const ModelConfig& config) {
  return config.patch_size[0] * config.patch_size[1] * config.patch_size[2];
}

void zero_linear(SpecList& specs, const std::string& name, int64_t in, int64_t out) {
  specs.linear(name, in, out, constant(0));
}

void embedder_specs(SpecList& specs, const std::string& name, int64_t in, int64_t width) {
  specs.linear(name + ".linear_1", in, width, normal(0.02));
  specs.linear(name + ".linear_2", width, width, normal(0.02));
}

void feed_forward_specs(SpecList& specs, const std::string& name, int64_t width, int64_t hidden) {
  specs.linear(name + ".net.0.proj", width, hidden);
  specs.linear(name + ".net.2", hidden, width);
}

// Maps of a double block's stream, by their names; `norms` are of queries and keys.
struct StreamNames {
  const char *to_q, *to_k, *to_v, *to_out, *norm_q, *norm_k, *feed_forward;
};
constexpr StreamNames kVideo = {"to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k", "ff"};
constexpr StreamNames kText = {"add_q_proj",   "add_k_proj",   "add_v_proj", "to_add_out",
                               "norm_added_q", "norm_added_k", "ff_context"};

void stream_specs(SpecList& specs, const ModelConfig& config, const StreamNames& names) {
  const int64_t width = width_of(config);
  for (const char* map : {names.to_q, names.to_k, names.to_v, names.to_out})
    specs.linear(std::string("attn.") + map, width, width);
  for (const char* norm : {names.norm_q, names.norm_k})
    specs.tensor(fmt::format("attn.{}.weight", norm), {config.head_dim}, constant(1));
  feed_forward_specs(specs, names.feed_forward, width, hunyuan_of(config).ffn_dim);
}

void refiner_specs(SpecList& specs, const ModelConfig& config) {
  const int64_t width = width_of(config);
  embedder_specs(specs, "context_embedder.time_text_embed.timestep_embedder", kWaveChannels, width);
  embedder_specs(specs, "context_embedder.time_text_embed.text_embedder", config.text_dim, width);
  specs.linear("context_embedder.proj_in", config.text_dim, width);
  for (int64_t i = 0; i < hunyuan_of(config).refiner_layers; ++i) {
    const std::string name = fmt::format("context_embedder.token_refiner.refiner_blocks.{}.", i);
    zero_linear(specs, name + "norm_out.linear", width, 2 * width);
    specs.layer_norm(name + "norm1", width);
    specs.layer_norm(name + "norm2", width);
    for (const char* map : {"to_q", "to_k", "to_v", "to_out.0"}) specs.linear(name + "attn." + map, width, width);
    feed_forward_specs(specs, name + "ff", width, kRefinerExpansion * width);
  }
}

// 1.5's tokens beside the text.
void other_token_specs(SpecList& specs, const ModelConfig& config) {
  const int64_t width = width_of(config), glyphs = hunyuan_of(config).glyph_dim;
  const int64_t hidden = hunyuan_of(config).glyph_hidden_dim;
  specs.layer_norm("context_embedder_2.norm", glyphs);
  specs.linear("context_embedder_2.linear_1", glyphs, hidden);
  specs.linear("context_embedder_2.linear_2", hidden, hidden);
  specs.linear("context_embedder_2.linear_3", hidden, width);
  specs.layer_norm("image_embedder.norm_in", config.image_dim);
  specs.linear("image_embedder.linear_1", config.image_dim, config.image_dim);
  specs.linear("image_embedder.linear_2", config.image_dim, width);
  specs.layer_norm("image_embedder.norm_out", width);
  specs.tensor("cond_type_embed.weight", {3, width}, normal(0.02));
}

void double_block_specs(SpecList& specs, const ModelConfig& config) {
  const int64_t width = width_of(config);
  zero_linear(specs, "norm1.linear", width, 6 * width);
  zero_linear(specs, "norm1_context.linear", width, 6 * width);
  stream_specs(specs, config, kVideo);
  stream_specs(specs, config, kText);
}

void single_block_specs(SpecList& specs, const ModelConfig& config) {
  const int64_t width = width_of(config), hidden = hunyuan_of(config).ffn_dim;
  zero_linear(specs, "norm.linear", width, 3 * width);
  for (const char* map : {"attn.to_q", "attn.to_k", "attn.to_v"}) specs.linear(map, width, width);
  for (const char* norm : {"attn.norm_q.weight", "attn.norm_k.weight"})
    specs.tensor(norm, {config.head_dim}, constant(1));
  specs.linear("proj_mlp", width, hidden);
  specs.linear("proj_out", width + hidden, width);
}

// Those of HunyuanVideo's parts.
class HunyuanCursor : public WeightCursor {
 public:
  using WeightCursor::WeightCursor;

  StreamWeights stream(bool norms) {
    StreamWeights out;
    for (Linear* map : {&out.to_q, &out.to_k, &out.to_v, &out.to_out}) *map = linear();
    if (norms) out.norm_q = tensor(), out.norm_k = tensor();
    out.up = linear();
    out.down = linear();
    return out;
  }
  EmbedderWeights embedder() {
    EmbedderWeights out;
    out.up = linear();
    out.down = linear();
    return out;
  }
  NormWeights norm() {
    NormWeights out;
    out.weight = tensor();
    out.bias = tensor();
    return out;
  }
  RefinerBlockWeights refiner_block() {
    RefinerBlockWeights out;
    out.gates = linear();
    out.norm1 = norm();
    out.norm2 = norm();
    out.stream = stream(/*norms=*/false);
    return out;
  }
  GlyphWeights glyphs() {
    GlyphWeights out;
    out.norm = norm();
    for (Linear* map : {&out.up, &out.middle, &out.down}) *map = linear();
    return out;
  }
  ImageTokenWeights image() {
    ImageTokenWeights out;
    out.norm_in = norm();
    out.up = linear();
    out.down = linear();
    out.norm_out = norm();
    return out;
  }
};

}  // namespace

std::vector<ParameterSpec> hunyuan_outer_specs(const ModelConfig& config) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  const int64_t width = width_of(config), patch_in = config.in_channels * patch_values(config);
  const std::string conditions = is_hunyuan_15(config) ? "time_embed" : "time_text_embed";
  SpecList specs("");
  specs.tensor("x_embedder.proj.weight",
               {width, config.in_channels, config.patch_size[0], config.patch_size[1], config.patch_size[2]},
               xavier_uniform(patch_in, width));
  specs.tensor("x_embedder.proj.bias", {width}, constant(0));
  embedder_specs(specs, conditions + ".timestep_embedder", kWaveChannels, width);
  if (hunyuan.meanflow) embedder_specs(specs, conditions + ".timestep_embedder_r", kWaveChannels, width);
  if (hunyuan.guidance_embed) embedder_specs(specs, conditions + ".guidance_embedder", kWaveChannels, width);
  if (hunyuan.pooled_dim > 0) embedder_specs(specs, conditions + ".text_embedder", hunyuan.pooled_dim, width);
  refiner_specs(specs, config);
  if (hunyuan.glyph_dim > 0) other_token_specs(specs, config);
  zero_linear(specs, "norm_out.linear", width, 2 * width);
  zero_linear(specs, "proj_out", width, config.out_channels * patch_values(config));
  return specs.take();
}

std::string hunyuan_block_prefix(const ModelConfig& config, int64_t layer) {
  if (layer < config.layers) return fmt::format("transformer_blocks.{}.", layer);
  return fmt::format("single_transformer_blocks.{}.", layer - config.layers);
}

std::vector<ParameterSpec> hunyuan_block_specs(const ModelConfig& config, int64_t layer) {
  SpecList specs(hunyuan_block_prefix(config, layer));
  if (layer < config.layers)
    double_block_specs(specs, config);
  else
    single_block_specs(specs, config);
  learnt_specs(specs, "attn", config, layer);
  return specs.take();
}

std::vector<ParameterSpec> hunyuan_parameter_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs = hunyuan_outer_specs(config);
  for (int64_t layer = 0; layer < layer_count(config); ++layer)
    for (ParameterSpec& spec : hunyuan_block_specs(config, layer)) specs.push_back(std::move(spec));
  return specs;
}

HunyuanOuterWeights hunyuan_outer_weights(const std::vector<Weight>& weights, const ModelConfig& config) {
  const HunyuanConfig& hunyuan = hunyuan_of(config);
  HunyuanCursor cursor(weights);
  HunyuanOuterWeights out;
  out.patch_embedding = cursor.linear();
  out.time = cursor.embedder();
  if (hunyuan.meanflow) out.next_time = cursor.embedder();
  if (hunyuan.guidance_embed) out.guidance = cursor.embedder();
  if (hunyuan.pooled_dim > 0) out.pooled = cursor.embedder();
  out.refiner_time = cursor.embedder();
  out.refiner_text = cursor.embedder();
  out.refiner_in = cursor.linear();
  for (int64_t i = 0; i < hunyuan.refiner_layers; ++i) out.refiner.push_back(cursor.refiner_block());
  if (hunyuan.glyph_dim > 0) {
    out.glyphs = cursor.glyphs();
    out.image = cursor.image();
    out.kinds = cursor.tensor();
  }
  out.head_modulation = cursor.linear();
  out.head = cursor.linear();
  cursor.finish();
  return out;
}

DoubleBlockWeights double_block_weights(const std::vector<Weight>& weights) {
  HunyuanCursor cursor(weights);
  DoubleBlockWeights out;
  out.video_modulation = cursor.linear();
  out.text_modulation = cursor.linear();
  out.video = cursor.stream(/*norms=*/true);
  out.text = cursor.stream(/*norms=*/true);
  out.learnt = cursor.rest();
  return out;
}

SingleBlockWeights single_block_weights(const std::vector<Weight>& weights) {
  HunyuanCursor cursor(weights);
  SingleBlockWeights out;
  for (Linear* map : {&out.modulation, &out.to_q, &out.to_k, &out.to_v}) *map = cursor.linear();
  out.norm_q = cursor.tensor();
  out.norm_k = cursor.tensor();
  out.up = cursor.linear();
  out.out = cursor.linear();
  out.learnt = cursor.rest();
  return out;
}

}  // namespace vmoba::model
