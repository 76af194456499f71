// Shape letters: B samples, C latent channels, T x H x W latents, S video tokens, G runs of them with a timestep each,
// L text rows, Z this rank's rows of both, E width, P values of a patch.
#include "model/hunyuan/hunyuan_dit.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/common/fp8_linear.h"
#include "model/common/linear.h"
#include "model/common/modulation.h"
#include "model/common/norm.h"
#include "model/common/patchify.h"
#include "model/common/recompute.h"
#include "model/common/rope.h"
#include "model/common/weight_bank.h"
#include "model/hunyuan/hunyuan_block.h"
#include "model/hunyuan/hunyuan_config.h"
#include "model/hunyuan/hunyuan_config_json.h"
#include "model/hunyuan/hunyuan_embed.h"
#include "model/hunyuan/hunyuan_parameters.h"
#include "model/weights/pretrained.h"

namespace vmoba::model {
namespace {

class HunyuanDit : public Dit {
 public:
  HunyuanDit(const ModelConfig& config, const attention::AttentionConfig& attention, std::vector<Parameter> parameters,
             WeightStore* store)
      : config_(config), attention_(attention), bank_(std::move(parameters), store) {
    units_.push_back({0, hunyuan_outer_specs(config_).size()});
    for (int64_t i = 0; i < layers(); ++i)
      units_.push_back({units_.back().first + units_.back().count, hunyuan_block_specs(config_, i).size()});
    // Of the outer maps several compute in fp32.
    const std::set<std::string> fp8 = fp8_weights(config_, bank_.parameters());
    for (size_t i = 0; i < units_.size(); ++i)
      bank_.add_unit(units_[i].first, units_[i].count, /*matrices_in_compute_dtype=*/i > 0, fp8);
  }

  at::Tensor forward(const DitInput& input, const ForwardOptions& options) override;
  const std::vector<Parameter>& parameters() const override { return bank_.parameters(); }
  const std::vector<Parameter>& trainable() const override { return bank_.trainable(); }
  void attach(const std::vector<Adapter>& adapters) override { bank_.attach(adapters); }
  std::string config_json() const override { return hunyuan_config_json(config_); }
  attention::LayerAttention layer(int64_t index, bool dense) const override {
    return attention::layer_attention(attention_, index, dense);
  }
  int64_t layers() const override { return layer_count(config_); }
  attention::Grid grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width) const override {
    return patch_grid(latent_frames, latent_height, latent_width, config_.patch_size);
  }

 private:
  // Parameters [first, first + count).
  struct Unit {
    size_t first, count;
  };
  // What all blocks of a pass share.
  struct Pass {
    at::Tensor vec_BGE, rope_ZP;
    attention::Grid grid;
    JointShare share;
    std::vector<int64_t> text_lengths;
  };

  void check_input(const DitInput& input, int64_t tokens) const;
  void check_conditions(const Conditions& conditions, int64_t batch) const;
  at::Tensor with_condition(const at::Tensor& latents_BCTHW) const;
  at::Tensor run_block(int64_t index, const at::Tensor& x_BZE, const Pass& pass, const ForwardOptions& options) const;
  at::Tensor head(const at::Tensor& x_BSE, const at::Tensor& vec_B1E, const HunyuanOuterWeights& weights) const;

  ModelConfig config_;
  attention::AttentionConfig attention_;
  WeightBank bank_;
  std::vector<Unit> units_;  // outer parameters, then blocks
};

void check_lengths(const char* what, const at::Tensor& length_B, int64_t batch, int64_t least, int64_t most) {
  if (!length_B.defined()) return;
  VMOBA_CHECK_INPUT(length_B.is_cpu() && length_B.scalar_type() == at::kLong && length_B.numel() == batch &&
                        length_B.ge(least).logical_and(length_B.le(most)).all().item<bool>(),
                    "expected {} {} lengths of {} to {} on the CPU, found {} numbers", batch, what, least, most,
                    length_B.numel());
}

void check_tokens(const char* what, const at::Tensor& tokens, int64_t batch, int64_t width, const char* key) {
  VMOBA_CHECK_INPUT(tokens.dim() == 3 && tokens.size(0) == batch && tokens.size(2) == width,
                    "expected {} [{}, n, {}] ({}), found {}", what, batch, width, key, fmt::join(tokens.sizes(), "x"));
}

void HunyuanDit::check_conditions(const Conditions& conditions, int64_t batch) const {
  const HunyuanConfig& hunyuan = hunyuan_of(config_);
  const TextEmbedding& text = conditions.text;
  const at::Tensor &tokens = text.tokens_BLE, &pooled = text.pooled_BP, &guidance = conditions.guidance_B;
  check_tokens("text embeddings", tokens, batch, config_.text_dim, "model.text_dim");
  VMOBA_CHECK_INPUT(tokens.size(1) > 0, "expected text of at least 1 token, found none");
  check_lengths("text", text.length_B, batch, 1, tokens.size(1));
  VMOBA_CHECK_INPUT(pooled.defined() == (hunyuan.pooled_dim > 0), "expected {}, found {}",
                    hunyuan.pooled_dim > 0 ? "a pooled text (text.type hunyuan makes one, hash with text.pooled_dim)"
                                           : "text without a pooled one",
                    pooled.defined() ? "one" : "none");
  VMOBA_CHECK_INPUT(
      !pooled.defined() || (pooled.dim() == 2 && pooled.size(0) == batch && pooled.size(1) == hunyuan.pooled_dim),
      "expected a pooled text [{}, {}] (model.pooled_dim), found {}", batch, hunyuan.pooled_dim,
      pooled.defined() ? fmt::format("{}", fmt::join(pooled.sizes(), "x")) : "none");
  VMOBA_CHECK_INPUT(guidance.defined() == hunyuan.guidance_embed && (!guidance.defined() || guidance.numel() == batch),
                    "expected {}, found {}",
                    hunyuan.guidance_embed ? fmt::format("{} guidance scales (model.guidance_embed)", batch)
                                           : "no guidance scale for a model without model.guidance_embed",
                    guidance.defined() ? fmt::to_string(guidance.numel()) : "none");
  const at::Tensor& next = conditions.next_timestep_B;
  VMOBA_CHECK_INPUT(next.defined() == hunyuan.meanflow && (!next.defined() || next.numel() == batch),
                    "expected {}, found {}",
                    hunyuan.meanflow ? fmt::format("{} next timesteps (model.meanflow)", batch)
                                     : "no next timestep for a model without model.meanflow",
                    next.defined() ? fmt::to_string(next.numel()) : "none");
  const at::Tensor &glyphs = text.glyphs_BJU, &image = conditions.image_BIM;
  VMOBA_CHECK_INPUT(hunyuan.glyph_dim > 0 || (!glyphs.defined() && !image.defined()),
                    "expected text tokens alone for {}, found {} tokens as well", config_.architecture,
                    glyphs.defined() ? "glyph" : "image");
  if (glyphs.defined()) check_tokens("glyph tokens", glyphs, batch, hunyuan.glyph_dim, "model.glyph_dim");
  if (image.defined()) check_tokens("image tokens", image, batch, config_.image_dim, "model.image_dim");
  check_lengths("glyph", text.glyph_length_B, batch, 0, glyphs.defined() ? glyphs.size(1) : 0);
  check_lengths("image", conditions.image_length_B, batch, 0, image.defined() ? image.size(1) : 0);
}

void HunyuanDit::check_input(const DitInput& input, int64_t tokens) const {
  const at::Tensor &latents = input.latents_BCTHW, &timestep = input.timestep_BG;
  VMOBA_CHECK_INPUT(latents.size(1) == config_.in_channels,
                    "expected latents [B, {}, T, H, W] (model.in_channels), found {}", config_.in_channels,
                    fmt::join(latents.sizes(), "x"));
  const int64_t runs = timestep.dim() == 2 ? timestep.size(1) : 1;
  VMOBA_CHECK_INPUT((timestep.dim() == 1 || timestep.dim() == 2) && timestep.size(0) == latents.size(0) && runs > 0 &&
                        tokens % runs == 0,
                    "expected {0} timesteps, or [{0}, G] with G a divisor of the {1} tokens, found {2}",
                    latents.size(0), tokens, fmt::join(timestep.sizes(), "x"));
  check_conditions(input.conditions, latents.size(0));
}

// Where a model takes the channels of an image's condition and is given none, they are zeros: text to video.
at::Tensor HunyuanDit::with_condition(const at::Tensor& latents_BCTHW) const {
  const int64_t missing = config_.in_channels - latents_BCTHW.size(1);
  const bool without = config_.task != "i2v" && hunyuan_image_input(config_) == ImageInput::kLatentAndMask;
  if (!without || latents_BCTHW.size(1) != config_.out_channels || missing <= 0) return latents_BCTHW;
  std::vector<int64_t> shape = latents_BCTHW.sizes().vec();
  shape[1] = missing;
  return at::cat({latents_BCTHW, at::zeros(shape, latents_BCTHW.options().requires_grad(false))}, 1);
}

at::Tensor HunyuanDit::run_block(int64_t index, const at::Tensor& x_BZE, const Pass& pass,
                                 const ForwardOptions& options) const {
  const Unit unit = units_[size_t(index) + 1];
  const attention::LayerAttention attention = attention::layer_attention(
      options.attention ? *options.attention : attention_, index, options.dense, options.sparsity);
  std::vector<at::Tensor> inputs = {x_BZE, pass.vec_BGE};
  for (const at::Tensor& tensor : bank_.tensors(unit.first, unit.count)) inputs.push_back(tensor);
  const auto body = [this, unit, attention, rope_ZP = pass.rope_ZP, grid = pass.grid, share = pass.share,
                     lengths = pass.text_lengths, is_double = index < config_.layers, stats = options.stats,
                     dtype = options.compute_dtype,
                     adapters = options.adapters](const std::vector<at::Tensor>& all, Kept& kept) {
    const std::vector<Weight> weights =
        bank_.bind(unit.first, unit.count, at::TensorList(all).slice(2), {dtype, kept.again(), adapters});
    const HunyuanBlockContext context{config_, rope_ZP, grid, attention, kept.again() ? nullptr : stats,
                                      share,   lengths};
    // Several maps use the conditions. Through this view their gradients meet inside the block, in the same order of
    // additions whether the block is recomputed or not.
    const HunyuanBlockInput input{all[0], all[1].view_as(all[1])};
    return is_double ? hunyuan_double_block(input, double_block_weights(weights), context, kept)
                     : hunyuan_single_block(input, single_block_weights(weights), context, kept);
  };
  return recompute_in_backward(body, inputs, options.recompute.of_block(index), options.host_inputs);
}

at::Tensor HunyuanDit::head(const at::Tensor& x_BSE, const at::Tensor& vec_B1E,
                            const HunyuanOuterWeights& weights) const {
  const auto parts = linear(at::silu(vec_B1E), weights.head_modulation).unflatten(2, {2, -1}).unbind(2);
  const at::Tensor &scale_B1E = parts[0], &shift_B1E = parts[1];
  return linear(modulate(layer_norm(x_BSE, {}, {}, config_.eps), scale_B1E, shift_B1E, vec_B1E.scalar_type()),
                weights.head);
}

at::Tensor HunyuanDit::forward(const DitInput& input, const ForwardOptions& options) {
  VMOBA_CHECK_INPUT(input.latents_BCTHW.dim() == 5, "expected latents [B, {}, T, H, W], found {} dimensions",
                    config_.in_channels, input.latents_BCTHW.dim());
  const DitInput whole{with_condition(input.latents_BCTHW), input.timestep_BG, input.conditions};
  const at::Tensor& latents = whole.latents_BCTHW;
  const attention::Grid patches = grid(latents.size(2), latents.size(3), latents.size(4));
  check_input(whole, patches.tokens());
  const at::ScalarType dtype = options.compute_dtype;
  const WeightBank::Use use{dtype, /*again=*/false, options.adapters};
  const HunyuanOuterWeights weights =
      hunyuan_outer_weights(bank_.weights(units_[0].first, units_[0].count, use), config_);
  const at::Tensor timestep_BG = whole.timestep_BG.view({latents.size(0), -1}).to(at::kFloat);
  // Of the tokens that the model makes: given ones stand in front.
  const at::Tensor timestep_B = timestep_BG.select(1, timestep_BG.size(1) - 1);
  const HunyuanText text = hunyuan_text(timestep_B, whole.conditions, weights, config_, dtype);

  Pass pass{hunyuan_vector(timestep_BG, whole.conditions, weights, config_, dtype),
            {},
            patches,
            JointShare(options.sequence, patches.tokens(), text.rows_BLE.size(1)),
            text.lengths};
  const at::Tensor own_text_BLE = pass.share.text().own(text.rows_BLE);
  const at::Tensor table_SP =
      rope_table(patches, rope_axes_of(hunyuan_of(config_)), precise_type(dtype), latents.device());
  pass.rope_ZP = with_still_rows(pass.share.video().own_rows(table_SP), own_text_BLE.size(1));
  const at::Tensor patches_BSP = pass.share.video().own(patchify(latents.to(dtype), config_.patch_size));
  at::Tensor x_BZE = at::cat({linear(patches_BSP, weights.patch_embedding), own_text_BLE}, 1);
  for (int64_t i = 0; i < layers(); ++i) x_BZE = run_block(i, x_BZE, pass, options);

  const at::Tensor vec_B1E = pass.vec_BGE.narrow(1, pass.vec_BGE.size(1) - 1, 1);
  const at::Tensor out_BSP = pass.share.video().gather(head(pass.share.split(x_BZE).first, vec_B1E, weights));
  return unpatchify(out_BSP, patches, config_.patch_size, PatchOrder::kChannelFirst);
}

}  // namespace

std::unique_ptr<Dit> make_hunyuan_dit(const ModelConfig& config, const attention::AttentionConfig& attention,
                                      uint64_t seed, at::Device device, WeightStore* store) {
  return std::make_unique<HunyuanDit>(config, attention, make_parameters(config, seed, device, store), store);
}

}  // namespace vmoba::model
