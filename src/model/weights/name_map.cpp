#include "model/weights/name_map.h"

#include <algorithm>
#include <cctype>

namespace vmoba::model {
namespace {

constexpr const char* kPrefixes[] = {"model.diffusion_model.", "diffusion_model."};

struct Pair {
  const char* diffusers;
  const char* original;
};

constexpr Pair kOuter[] = {
    {"patch_embedding", "patch_embedding"},
    {"condition_embedder.time_embedder.linear_1", "time_embedding.0"},
    {"condition_embedder.time_embedder.linear_2", "time_embedding.2"},
    {"condition_embedder.time_proj", "time_projection.1"},
    {"condition_embedder.text_embedder.linear_1", "text_embedding.0"},
    {"condition_embedder.text_embedder.linear_2", "text_embedding.2"},
    {"condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"},
    {"condition_embedder.image_embedder.norm1", "img_emb.proj.0"},
    {"condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"},
    {"condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"},
    {"condition_embedder.image_embedder.norm2", "img_emb.proj.4"},
    {"scale_shift_table", "head.modulation"},
    {"proj_out", "head.head"},
};

// Behind "blocks.<number>.".
constexpr Pair kBlock[] = {
    {"scale_shift_table", "modulation"},
    {"attn1.to_q", "self_attn.q"},
    {"attn1.to_k", "self_attn.k"},
    {"attn1.to_v", "self_attn.v"},
    {"attn1.to_out.0", "self_attn.o"},
    {"attn1.norm_q", "self_attn.norm_q"},
    {"attn1.norm_k", "self_attn.norm_k"},
    {"attn2.to_q", "cross_attn.q"},
    {"attn2.to_k", "cross_attn.k"},
    {"attn2.to_v", "cross_attn.v"},
    {"attn2.to_out.0", "cross_attn.o"},
    {"attn2.norm_q", "cross_attn.norm_q"},
    {"attn2.norm_k", "cross_attn.norm_k"},
    {"attn2.add_k_proj", "cross_attn.k_img"},
    {"attn2.add_v_proj", "cross_attn.v_img"},
    {"attn2.norm_added_k", "cross_attn.norm_k_img"},
    {"norm2", "norm3"},
    {"ffn.net.0.proj", "ffn.0"},
    {"ffn.net.2", "ffn.2"},
};

// Length of "blocks.<number>." at the start of a name; 0 without.
size_t block_prefix(const std::string& name) {
  constexpr size_t kBegin = sizeof("blocks.") - 1;
  if (!name.starts_with("blocks.")) return 0;
  size_t end = kBegin;
  while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
  return end > kBegin && end < name.size() && name[end] == '.' ? end + 1 : 0;
}

template <size_t kCount>
std::optional<std::string> replaced(const std::string& name, const Pair (&pairs)[kCount], const char* Pair::*from,
                                    const char* Pair::*to) {
  for (const Pair& pair : pairs) {
    const std::string prefix = pair.*from;
    if (name == prefix || name.starts_with(prefix + ".")) return pair.*to + name.substr(prefix.size());
  }
  return std::nullopt;
}

std::optional<std::string> renamed(const std::string& name, const char* Pair::*from, const char* Pair::*to) {
  const size_t block = block_prefix(name);
  if (block == 0) return replaced(name, kOuter, from, to);
  const std::optional<std::string> rest = replaced(name.substr(block), kBlock, from, to);
  if (!rest) return std::nullopt;
  return name.substr(0, block) + *rest;
}

std::string flat(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

template <size_t kCount>
std::optional<std::string> unflattened(const std::string& name, const Pair (&pairs)[kCount]) {
  for (const Pair& pair : pairs)
    if (name == flat(pair.original) || name == flat(pair.diffusers)) return pair.diffusers;
  return std::nullopt;
}

}  // namespace

WeightLayout detect_layout(const std::vector<std::string>& names) {
  const auto any = [&](const auto& holds) { return std::any_of(names.begin(), names.end(), holds); };
  const auto holds_part = [&](const char* part) {
    return any([&](const std::string& name) { return name.find(part) != std::string::npos; });
  };
  if (holds_part(".lora_") || holds_part("lora_unet_")) return WeightLayout::kLora;
  if (any([](const std::string& name) { return without_comfyui_prefix(name) != name; })) return WeightLayout::kComfyUi;
  if (holds_part(".self_attn.") || holds_part("head.modulation")) return WeightLayout::kOriginal;
  return WeightLayout::kDiffusers;
}

const char* layout_name(WeightLayout layout) {
  switch (layout) {
    case WeightLayout::kDiffusers:
      return "diffusers";
    case WeightLayout::kOriginal:
      return "original Wan";
    case WeightLayout::kComfyUi:
      return "ComfyUI";
    case WeightLayout::kLora:
      return "LoRA";
  }
  return "";
}

std::string without_comfyui_prefix(const std::string& name) {
  for (const std::string prefix : kPrefixes)
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  return name;
}

std::optional<std::string> original_to_diffusers(const std::string& name) {
  return renamed(name, &Pair::original, &Pair::diffusers);
}

std::optional<std::string> diffusers_to_original(const std::string& name) {
  return renamed(name, &Pair::diffusers, &Pair::original);
}

std::optional<std::string> flattened_to_diffusers(const std::string& name) {
  constexpr size_t kBegin = sizeof("blocks_") - 1;
  const std::string rest = name.starts_with('_') ? name.substr(1) : name;
  if (!rest.starts_with("blocks_")) return unflattened(rest, kOuter);
  size_t end = kBegin;
  while (end < rest.size() && std::isdigit(static_cast<unsigned char>(rest[end]))) ++end;
  if (end == kBegin || end >= rest.size() || rest[end] != '_') return std::nullopt;
  const auto module = unflattened(rest.substr(end + 1), kBlock);
  if (!module) return std::nullopt;
  return "blocks." + rest.substr(kBegin, end - kBegin) + "." + *module;
}

}  // namespace vmoba::model
