// What a denoiser is told besides noisy latents and their timestep. The structs share their tensors with whoever made
// them; each lists its tensors once, in visit_tensors, so that what holds for all of them is written once.
//
// Shape letters: B samples, L text tokens, E text width, P width of a pooled text, J glyph tokens, U glyph width, I
// image tokens, M image width.
#pragma once
#include <ATen/core/Tensor.h>

#include <concepts>
#include <type_traits>
#include <vector>

namespace vmoba::model {

// What a text encoder makes of B prompts.
struct TextEmbedding {
  at::Tensor tokens_BLE;      // fp32, zeros behind each prompt's tokens
  at::Tensor length_B = {};   // int64, on the CPU: tokens of each prompt before the zeros; undefined: L, all of them
  at::Tensor pooled_BP = {};  // fp32, each prompt as one vector; undefined where the encoder makes none
  // Of the letters that a prompt wants to see written (HunyuanVideo 1.5): fp32, zeros behind each prompt's tokens.
  // Undefined where the encoder makes none; J may be 0.
  at::Tensor glyphs_BJU = {};
  at::Tensor glyph_length_B = {};  // int64, on the CPU: glyph tokens of each prompt, 0 allowed; defined with glyphs_BJU
};

struct Conditions {
  TextEmbedding text;
  at::Tensor image_BIM = {};   // tokens of the image; undefined where model.image_dim is 0
  at::Tensor guidance_B = {};  // guidance scale that a model takes as an input; undefined where it takes none
  // int64, on the CPU: image tokens of each sample, 0 (a sample without an image) to I; undefined: I, all of them.
  at::Tensor image_length_B = {};
  // 0..1000: the timestep that the velocity is to lead to (r of MeanFlow, arXiv 2505.13447), which is below the input's
  // or equal; undefined where a model takes none.
  at::Tensor next_timestep_B = {};
};

template <typename T, typename Struct>
concept MaybeConst = std::same_as<std::remove_const_t<T>, Struct>;

// visit(name, tensor) for every tensor, undefined ones too. The names are those of entries in a cache folder.
template <MaybeConst<TextEmbedding> Text, typename Visit>
void visit_tensors(Text& text, const Visit& visit) {
  visit("embedding", text.tokens_BLE);
  visit("length", text.length_B);
  visit("pooled", text.pooled_BP);
  visit("glyphs", text.glyphs_BJU);
  visit("glyph_length", text.glyph_length_B);
}
template <MaybeConst<Conditions> All, typename Visit>
void visit_tensors(All& conditions, const Visit& visit) {
  visit_tensors(conditions.text, visit);
  visit("image_tokens", conditions.image_BIM);
  visit("guidance", conditions.guidance_B);
  visit("image_length", conditions.image_length_B);
  visit("next_timestep", conditions.next_timestep_B);
}

// On `device`, as to_device (common/to_device.h) brings a tensor there. Lengths stay on the CPU: models cut by them,
// and would have to wait for a GPU to read them.
TextEmbedding to_device(TextEmbedding text, at::Device device);

// Samples [first, first + count).
Conditions narrow_samples(Conditions conditions, int64_t first, int64_t count);

// The samples of all parts, one behind the other. Each tensor is defined in all parts or in none. Glyph tokens are
// filled with zeros up to the longest.
TextEmbedding stack_samples(const std::vector<TextEmbedding>& parts);

}  // namespace vmoba::model
