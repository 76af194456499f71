#include "model/wan/wan_config_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"
#include "model/wan/wan_config.h"
#include "model/weights/stored_shapes.h"

namespace vmoba::model {
namespace {

using nlohmann::json;

constexpr const char* kClassName = "WanTransformer3DModel";
constexpr const char* kOriginalClassName = "WanModel";
constexpr int64_t kPublishedHeadDim = 128;

json from_original(const json& original, const std::string& path) {
  json out = {{"_class_name", kClassName}};
  const auto take = [&](const char* from, const char* to) {
    if (original.contains(from)) out[to] = original[from];
  };
  take("num_heads", "num_attention_heads");
  take("num_layers", "num_layers");
  take("ffn_dim", "ffn_dim");
  take("freq_dim", "freq_dim");
  take("in_dim", "in_channels");
  take("out_dim", "out_channels");
  take("text_dim", "text_dim");
  take("patch_size", "patch_size");
  take("eps", "eps");
  take("cross_attn_norm", "cross_attn_norm");
  const auto whole = [&](const char* key) {
    VMOBA_CHECK_INPUT(original[key].is_number_unsigned() && original[key].get<int64_t>() > 0,
                      "expected a positive whole number {} in '{}', found {}", key, path, json_text(original[key]));
    return original[key].get<int64_t>();
  };
  if (original.contains("dim") && original.contains("num_heads"))
    out["attention_head_dim"] = whole("dim") / whole("num_heads");
  return out;
}

// config.json's, else what divides into the heads or the head size that the user wrote, else as published.
int64_t head_dim_of(const json& beside, int64_t width, const std::set<std::string>& given, const ModelConfig& config) {
  const json stated = beside.value("attention_head_dim", json());
  if (stated.is_number_integer()) return stated.get<int64_t>();
  if (given.contains("head_dim")) return config.head_dim;
  if (given.contains("heads") && width % config.heads == 0) return width / config.heads;
  return kPublishedHeadDim;
}

}  // namespace

json wan_diffusers_config(const json& found, const std::string& path) {
  const bool original = found.contains("num_heads") || found.value("_class_name", json()) == kOriginalClassName;
  return original ? from_original(found, path) : found;
}

void read_wan_sizes(const WeightFiles& files, const json& beside, const std::set<std::string>& given,
                    ModelConfig& config) {
  const StoredShapes shapes(files, "Wan");
  const std::string patch = "patch_embedding.weight", image = "condition_embedder.image_embedder.";
  const int64_t width = shapes.size(patch, 5, 0), head_dim = head_dim_of(beside, width, given, config);
  VMOBA_CHECK_INPUT(head_dim > 0 && width > 0 && width % head_dim == 0,
                    "expected a width that is a multiple of the head size {}, found {} in '{}'; name the size "
                    "(model.head_dim, or --head-dim of vmoba-convert)",
                    head_dim, width, files.folder());
  config.layers = shapes.stated_or(beside, "num_layers", shapes.blocks("blocks."), kMostBlocks);
  config.heads = width / head_dim;
  config.head_dim = head_dim;
  config.patch_size = {shapes.size(patch, 5, 2), shapes.size(patch, 5, 3), shapes.size(patch, 5, 4)};
  const int64_t patch_values = std::max<int64_t>(1, config.patch_size[0] * config.patch_size[1] * config.patch_size[2]);
  config.in_channels = shapes.size(patch, 5, 1);
  config.out_channels = shapes.size("proj_out.weight", 2, 0) / patch_values;
  config.text_dim = shapes.size("condition_embedder.text_embedder.linear_1.weight", 2, 1);
  const bool takes_image = shapes.has_any(image);
  config.image_dim = shapes.stated_or(beside, "image_dim", takes_image ? shapes.size(image + "norm1.weight", 1, 0) : 0);
  if (const json eps = beside.value("eps", json()); eps.is_number()) config.eps = eps.get<double>();
  WanConfig& wan = config.own<WanConfig>();
  wan.ffn_dim = shapes.size("blocks.0.ffn.net.0.proj.weight", 2, 0);
  wan.freq_dim = shapes.size("condition_embedder.time_embedder.linear_1.weight", 2, 1);
  wan.image_pos_tokens = shapes.stated_or(beside, "pos_embed_seq_len",
                                          shapes.has(image + "pos_embed") ? shapes.size(image + "pos_embed", 3, 1) : 0);
  const json norm = beside.value("cross_attn_norm", json());
  wan.cross_attn_norm = norm.is_boolean() ? norm.get<bool>() : shapes.blocks_have("blocks.", "norm2");
}

std::string wan_config_json(const ModelConfig& config) {
  const WanConfig& wan = config.own<WanConfig>();
  const auto or_null = [](int64_t value) { return value > 0 ? json(value) : json(); };
  const json out = {{"_class_name", kClassName},
                    {"_diffusers_version", "0.42.1"},
                    {"added_kv_proj_dim", or_null(config.image_dim > 0 ? config.heads * config.head_dim : 0)},
                    {"attention_head_dim", config.head_dim},
                    {"cross_attn_norm", wan.cross_attn_norm},
                    {"eps", config.eps},
                    {"ffn_dim", wan.ffn_dim},
                    {"freq_dim", wan.freq_dim},
                    {"image_dim", or_null(config.image_dim)},
                    {"in_channels", config.in_channels},
                    {"num_attention_heads", config.heads},
                    {"num_layers", config.layers},
                    {"out_channels", config.out_channels},
                    {"patch_size", config.patch_size},
                    {"pos_embed_seq_len", or_null(wan.image_pos_tokens)},
                    {"qk_norm", "rms_norm_across_heads"},
                    {"rope_max_seq_len", 1024},
                    {"text_dim", config.text_dim}};
  return out.dump(2) + "\n";
}

std::string wan_original_config_json(const ModelConfig& config) {
  const WanConfig& wan = config.own<WanConfig>();
  // Wan's own names of its kinds: CLIP tokens make i2v or flf2v; 48 channels are TI2V-5B's.
  const char* kind = wan.image_pos_tokens > 0                                           ? "flf2v"
                     : config.image_dim > 0 || config.in_channels > config.out_channels ? "i2v"
                     : config.out_channels == 48                                        ? "ti2v"
                                                                                        : "t2v";
  const json out = {{"_class_name", kOriginalClassName},
                    {"_diffusers_version", "0.30.0"},
                    {"dim", config.heads * config.head_dim},
                    {"eps", config.eps},
                    {"ffn_dim", wan.ffn_dim},
                    {"freq_dim", wan.freq_dim},
                    {"in_dim", config.in_channels},
                    {"model_type", kind},
                    {"num_heads", config.heads},
                    {"num_layers", config.layers},
                    {"out_dim", config.out_channels},
                    {"text_len", 512}};
  return out.dump(2) + "\n";
}

}  // namespace vmoba::model
