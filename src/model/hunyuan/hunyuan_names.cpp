#include "model/hunyuan/hunyuan_names.h"

namespace vmoba::model {
namespace {

using Pairs = std::vector<NamePair>;
using Block = NameTable::Block;

Pairs operator+(Pairs one, const Pairs& other) {
  one.insert(one.end(), other.begin(), other.end());
  return one;
}

// Both versions have these.
Pairs shared_outer() {
  return {{"x_embedder.proj", "img_in.proj"},
          {"context_embedder.proj_in", "txt_in.input_embedder"},
          {"norm_out.linear", "final_layer.adaLN_modulation.1", Rows::kSwappedHalves},
          {"proj_out", "final_layer.linear"}};
}

Pairs text_embedders() {
  return {{"context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"},
          {"context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"},
          {"context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.linear_1"},
          {"context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.linear_2"}};
}

Pairs comfyui_text_embedders() {
  return {{"context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.in_layer"},
          {"context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.out_layer"},
          {"context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.in_layer"},
          {"context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.out_layer"}};
}

Block refiner_block() {
  return {"context_embedder.token_refiner.refiner_blocks.",
          "txt_in.individual_token_refiner.blocks.",
          {{"norm1", "norm1"},
           {"norm2", "norm2"},
           {"attn.to_q", "self_attn_qkv", Rows::kEqualPart},
           {"attn.to_k", "self_attn_qkv", Rows::kEqualPart},
           {"attn.to_v", "self_attn_qkv", Rows::kEqualPart},
           {"attn.to_out.0", "self_attn_proj"},
           {"ff.net.0.proj", "mlp.fc1"},
           {"ff.net.2", "mlp.fc2"},
           {"norm_out.linear", "adaLN_modulation.1"}}};
}

Block comfyui_refiner_block() {
  return {"context_embedder.token_refiner.refiner_blocks.",
          "txt_in.individual_token_refiner.blocks.",
          {{"norm1", "norm1"},
           {"norm2", "norm2"},
           {"attn.to_q", "self_attn.qkv", Rows::kEqualPart},
           {"attn.to_k", "self_attn.qkv", Rows::kEqualPart},
           {"attn.to_v", "self_attn.qkv", Rows::kEqualPart},
           {"attn.to_out.0", "self_attn.proj"},
           {"ff.net.0.proj", "mlp.0"},
           {"ff.net.2", "mlp.2"},
           {"norm_out.linear", "adaLN_modulation.1"}}};
}

Pairs fused_qkv() {
  return {{"attn.to_q", "img_attn_qkv", Rows::kEqualPart},       {"attn.to_k", "img_attn_qkv", Rows::kEqualPart},
          {"attn.to_v", "img_attn_qkv", Rows::kEqualPart},       {"attn.add_q_proj", "txt_attn_qkv", Rows::kEqualPart},
          {"attn.add_k_proj", "txt_attn_qkv", Rows::kEqualPart}, {"attn.add_v_proj", "txt_attn_qkv", Rows::kEqualPart}};
}

Pairs apart_qkv() {
  return {{"attn.to_q", "img_attn_q"},       {"attn.to_k", "img_attn_k"},       {"attn.to_v", "img_attn_v"},
          {"attn.add_q_proj", "txt_attn_q"}, {"attn.add_k_proj", "txt_attn_k"}, {"attn.add_v_proj", "txt_attn_v"}};
}

Block double_block(const Pairs& qkv) {
  return {"transformer_blocks.", "double_blocks.",
          qkv + Pairs{{"norm1.linear", "img_mod.linear"},
                      {"norm1_context.linear", "txt_mod.linear"},
                      {"attn.to_out.0", "img_attn_proj"},
                      {"attn.to_add_out", "txt_attn_proj"},
                      {"attn.norm_q", "img_attn_q_norm"},
                      {"attn.norm_k", "img_attn_k_norm"},
                      {"attn.norm_added_q", "txt_attn_q_norm"},
                      {"attn.norm_added_k", "txt_attn_k_norm"},
                      {"attn.remainder_beta", "attn.remainder_beta"},
                      {"ff.net.0.proj", "img_mlp.fc1"},
                      {"ff.net.2", "img_mlp.fc2"},
                      {"ff_context.net.0.proj", "txt_mlp.fc1"},
                      {"ff_context.net.2", "txt_mlp.fc2"}}};
}

Block comfyui_double_block() {
  return {"transformer_blocks.",
          "double_blocks.",
          {{"attn.to_q", "img_attn.qkv", Rows::kEqualPart},
           {"attn.to_k", "img_attn.qkv", Rows::kEqualPart},
           {"attn.to_v", "img_attn.qkv", Rows::kEqualPart},
           {"attn.add_q_proj", "txt_attn.qkv", Rows::kEqualPart},
           {"attn.add_k_proj", "txt_attn.qkv", Rows::kEqualPart},
           {"attn.add_v_proj", "txt_attn.qkv", Rows::kEqualPart},
           {"norm1.linear", "img_mod.lin"},
           {"norm1_context.linear", "txt_mod.lin"},
           {"attn.to_out.0", "img_attn.proj"},
           {"attn.to_add_out", "txt_attn.proj"},
           {"attn.norm_q.weight", "img_attn.norm.query_norm.scale"},
           {"attn.norm_k.weight", "img_attn.norm.key_norm.scale"},
           {"attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"},
           {"attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"},
           {"attn.remainder_beta", "attn.remainder_beta"},
           {"ff.net.0.proj", "img_mlp.0"},
           {"ff.net.2", "img_mlp.2"},
           {"ff_context.net.0.proj", "txt_mlp.0"},
           {"ff_context.net.2", "txt_mlp.2"}}};
}

Block single_block(const Pairs& others) {
  return {"single_transformer_blocks.", "single_blocks.",
          Pairs{{"attn.to_q", "linear1", Rows::kSquarePart},
                {"attn.to_k", "linear1", Rows::kSquarePart},
                {"attn.to_v", "linear1", Rows::kSquarePart},
                {"proj_mlp", "linear1", Rows::kSquarePart},
                {"proj_out", "linear2"},
                {"attn.remainder_beta", "attn.remainder_beta"}} +
              others};
}

NameTable original_names() {
  NameTable table;
  table.outer = shared_outer() + text_embedders() +
                Pairs{{"time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"},
                      {"time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"},
                      {"time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"},
                      {"time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"},
                      {"time_text_embed.text_embedder.linear_1", "vector_in.in_layer"},
                      {"time_text_embed.text_embedder.linear_2", "vector_in.out_layer"}};
  table.blocks = {
      refiner_block(), double_block(fused_qkv()),
      single_block({{"norm.linear", "modulation.linear"}, {"attn.norm_q", "q_norm"}, {"attn.norm_k", "k_norm"}})};
  return table;
}

NameTable comfyui_names() {
  NameTable table;
  table.outer = shared_outer() + comfyui_text_embedders() +
                Pairs{{"time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"},
                      {"time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"},
                      {"time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"},
                      {"time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"},
                      {"time_text_embed.text_embedder.linear_1", "vector_in.in_layer"},
                      {"time_text_embed.text_embedder.linear_2", "vector_in.out_layer"}};
  table.blocks = {comfyui_refiner_block(), comfyui_double_block(),
                  single_block({{"norm.linear", "modulation.lin"},
                                {"attn.norm_q.weight", "norm.query_norm.scale"},
                                {"attn.norm_k.weight", "norm.key_norm.scale"}})};
  return table;
}

Pairs outer_of_15() {
  return shared_outer() +
         Pairs{{"cond_type_embed", "cond_type_embedding"},      {"context_embedder_2.norm", "byt5_in.layernorm"},
               {"context_embedder_2.linear_1", "byt5_in.fc1"},  {"context_embedder_2.linear_2", "byt5_in.fc2"},
               {"context_embedder_2.linear_3", "byt5_in.fc3"},  {"image_embedder.norm_in", "vision_in.proj.0"},
               {"image_embedder.linear_1", "vision_in.proj.1"}, {"image_embedder.linear_2", "vision_in.proj.3"},
               {"image_embedder.norm_out", "vision_in.proj.4"}};
}

// ComfyUI's files have the original names with fused q, k and v.
NameTable original_names_15(const Pairs& qkv) {
  NameTable table;
  table.outer = outer_of_15() + text_embedders() +
                Pairs{{"time_embed.timestep_embedder.linear_1", "time_in.mlp.0"},
                      {"time_embed.timestep_embedder.linear_2", "time_in.mlp.2"},
                      {"time_embed.timestep_embedder_r.linear_1", "time_r_in.mlp.0"},
                      {"time_embed.timestep_embedder_r.linear_2", "time_r_in.mlp.2"}};
  table.blocks = {refiner_block(), double_block(qkv)};
  return table;
}

NameTable comfyui_names_15() {
  NameTable table;
  table.outer = outer_of_15() + comfyui_text_embedders() +
                Pairs{{"time_embed.timestep_embedder.linear_1", "time_in.in_layer"},
                      {"time_embed.timestep_embedder.linear_2", "time_in.out_layer"},
                      {"time_embed.timestep_embedder_r.linear_1", "time_r_in.in_layer"},
                      {"time_embed.timestep_embedder_r.linear_2", "time_r_in.out_layer"}};
  table.blocks = {comfyui_refiner_block(), comfyui_double_block()};
  return table;
}

// The prefixes that files have, "" among them.
std::vector<std::string> with_first(const std::string& first) {
  std::vector<std::string> out = {first};
  for (const char* prefix : {"model.diffusion_model.", "diffusion_model.", "model.model.", ""})
    if (prefix != first) out.push_back(prefix);
  return out;
}

std::vector<std::string> block_targets(const std::string& block, const std::vector<std::string>& modules) {
  std::vector<std::string> out;
  for (const std::string& module : modules) out.push_back(block + ".*." + module);
  return out;
}

std::vector<std::string> double_block_targets() {
  return block_targets("transformer_blocks",
                       {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
                        "attn.add_v_proj", "attn.to_add_out", "ff.net.*", "ff_context.net.*"});
}

}  // namespace

std::vector<Layout> hunyuan_layouts() {
  const std::string refiner = "txt_in.individual_token_refiner.", pooled = "vector_in.";
  return {{"diffusers", "diffusers", {}, {"context_embedder.token_refiner."}, {}, {"time_text_embed.text_embedder."}},
          {"comfyui",
           "ComfyUI",
           with_first("model.diffusion_model."),
           {refiner},
           comfyui_names(),
           {pooled, "double_blocks.0.img_attn.qkv."}},
          {"original", "original HunyuanVideo", with_first(""), {refiner}, original_names(), {pooled}}};
}

LoraNames hunyuan_lora_names() {
  LoraNames out;
  out.default_targets = double_block_targets();
  for (std::string& target :
       block_targets("single_transformer_blocks", {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"}))
    out.default_targets.push_back(std::move(target));
  out.comfyui_layout = out.kohya_layout = "original";
  out.comfyui_mark = "img_attn_qkv";
  return out;
}

std::vector<Layout> hunyuan_15_layouts() {
  const std::string kinds = "cond_type_embedding.", refiner = "txt_in.individual_token_refiner.";
  return {
      {"diffusers", "diffusers", {}, {"context_embedder.token_refiner."}, {}, {"cond_type_embed."}},
      {"comfyui",
       "ComfyUI",
       with_first(""),
       {refiner},
       original_names_15(fused_qkv()),
       {kinds, "double_blocks.0.img_attn_qkv."}},
      {"comfyui_keys",
       "ComfyUI's inner",
       with_first("model.diffusion_model."),
       {refiner},
       comfyui_names_15(),
       {kinds, "double_blocks.0.img_attn.qkv."}},
      {"original", "original HunyuanVideo 1.5", with_first(""), {refiner}, original_names_15(apart_qkv()), {kinds}}};
}

LoraNames hunyuan_15_lora_names() {
  LoraNames out;
  out.default_targets = double_block_targets();
  out.comfyui_layout = "comfyui_keys";
  out.kohya_layout = "original";
  return out;
}

}  // namespace vmoba::model
