#include "model/wan/wan_names.h"

namespace vmoba::model {
namespace {

NameTable original_names() {
  NameTable table;
  table.outer = {
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
  table.blocks = {{"blocks.",
                   "blocks.",
                   {
                       {"scale_shift_table", "modulation"},
                       {"attn1.to_q", "self_attn.q"},
                       {"attn1.to_k", "self_attn.k"},
                       {"attn1.to_v", "self_attn.v"},
                       {"attn1.to_out.0", "self_attn.o"},
                       {"attn1.norm_q", "self_attn.norm_q"},
                       {"attn1.norm_k", "self_attn.norm_k"},
                       {"attn1.remainder_beta", "self_attn.remainder_beta"},
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
                   }}};
  return table;
}

}  // namespace

std::vector<Layout> wan_layouts() {
  const std::vector<std::string> original_marks = {"head.modulation", "blocks.0.self_attn."};
  return {
      {"diffusers", "diffusers", {}, {"condition_embedder.time_proj.", "blocks.0.attn1."}, {}},
      {"original", "original Wan", {}, original_marks, original_names()},
      {"comfyui", "ComfyUI", {"model.diffusion_model.", "diffusion_model."}, original_marks, original_names()},
  };
}

LoraNames wan_lora_names() {
  LoraNames out;
  out.default_targets = {"blocks.*.attn*.to_q", "blocks.*.attn*.to_k", "blocks.*.attn*.to_v", "blocks.*.attn*.to_out.0",
                         "blocks.*.ffn.net.*"};
  out.kohya_modules = {"attn1.to_q", "attn1.to_k", "attn1.to_v",     "attn1.to_out.0", "attn2.to_q",
                       "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2"};
  out.comfyui_layout = out.kohya_layout = "original";
  return out;
}

}  // namespace vmoba::model
