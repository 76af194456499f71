// Shape letters: B samples, C latent channels, T x H x W latents, S tokens, G runs of tokens with a timestep each, L
// text tokens, I image tokens, M image width, E width, P values of a patch.
#include "model/wan/wan_dit.h"

#include <ATen/ops/silu.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/common/fp8_linear.h"
#include "model/common/linear.h"
#include "model/common/mlp.h"
#include "model/common/modulation.h"
#include "model/common/norm.h"
#include "model/common/patchify.h"
#include "model/common/recompute.h"
#include "model/common/rope.h"
#include "model/common/weight_bank.h"
#include "model/sequence_parallel.h"
#include "model/wan/wan_block.h"
#include "model/wan/wan_config.h"
#include "model/wan/wan_config_json.h"
#include "model/wan/wan_parameters.h"
#include "model/weights/pretrained.h"

namespace vmoba::model {
namespace {

constexpr int64_t kMaxPatches = 1024;  // rope_max_seq_len of every published Wan: patches along one dimension

class WanDit : public Dit {
 public:
  WanDit(const ModelConfig& config, const attention::AttentionConfig& attention, std::vector<Parameter> parameters,
         WeightStore* store)
      : config_(config), wan_(config.own<WanConfig>()), attention_(attention), bank_(std::move(parameters), store) {
    units_.push_back({0, wan_outer_specs(config_).size()});
    for (int64_t i = 0; i < config_.layers; ++i)
      units_.push_back({units_.back().first + units_.back().count, wan_block_specs(config_, i).size()});
    // Of the outer maps several compute in fp32, and all are small.
    const std::set<std::string> fp8 = fp8_weights(config_, bank_.parameters());
    for (size_t i = 0; i < units_.size(); ++i)
      bank_.add_unit(units_[i].first, units_[i].count, /*matrices_in_compute_dtype=*/i > 0, fp8);
  }

  at::Tensor forward(const DitInput& input, const ForwardOptions& options) override;
  const std::vector<Parameter>& parameters() const override { return bank_.parameters(); }
  const std::vector<Parameter>& trainable() const override { return bank_.trainable(); }
  void attach(const std::vector<Adapter>& adapters) override { bank_.attach(adapters); }
  std::string config_json() const override { return wan_config_json(config_); }
  attention::LayerAttention layer(int64_t index, bool dense) const override {
    return attention::layer_attention(attention_, index, dense);
  }
  int64_t layers() const override { return config_.layers; }
  attention::Grid grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width) const override;

 private:
  // Parameters [first, first + count).
  struct Unit {
    size_t first, count;
  };
  struct Embedded {
    WanBlockInput tokens;
    at::Tensor time_BGE;  // for the head
  };

  void check_input(const DitInput& input, int64_t tokens) const;
  at::Tensor embed_image(const at::Tensor& image_BIM, const WanImageWeights& weights, at::ScalarType dtype) const;
  Embedded embed(const DitInput& input, const WanOuterWeights& weights, const TokenShare& share,
                 at::ScalarType dtype) const;
  at::Tensor run_block(int64_t index, const WanBlockInput& input, const attention::Grid& grid,
                       const at::Tensor& rope_SP, const TokenShare& share, const ForwardOptions& options) const;
  at::Tensor head(const at::Tensor& x_BSE, const at::Tensor& time_BGE, const WanOuterWeights& weights) const;

  ModelConfig config_;
  WanConfig wan_;
  attention::AttentionConfig attention_;
  WeightBank bank_;
  std::vector<Unit> units_;  // outer parameters, then blocks
};

void WanDit::check_input(const DitInput& input, int64_t tokens) const {
  const at::Tensor &latents = input.latents_BCTHW, &timestep = input.timestep_BG;
  const at::Tensor &text = input.conditions.text.tokens_BLE, &image = input.conditions.image_BIM;
  VMOBA_CHECK_INPUT(latents.size(1) == config_.in_channels,
                    "expected latents [B, {}, T, H, W] (model.in_channels), found {}", config_.in_channels,
                    fmt::join(latents.sizes(), "x"));
  VMOBA_CHECK_INPUT(
      text.dim() == 3 && text.size(0) == latents.size(0) && text.size(1) > 0 && text.size(2) == config_.text_dim,
      "expected text embeddings [{}, L, {}] (model.text_dim), found {}", latents.size(0), config_.text_dim,
      fmt::join(text.sizes(), "x"));
  const int64_t runs = timestep.dim() == 2 ? timestep.size(1) : 1;
  VMOBA_CHECK_INPUT((timestep.dim() == 1 || timestep.dim() == 2) && timestep.size(0) == latents.size(0) && runs > 0 &&
                        tokens % runs == 0,
                    "expected {0} timesteps, or [{0}, G] with G a divisor of the {1} tokens, found {2}",
                    latents.size(0), tokens, fmt::join(timestep.sizes(), "x"));
  VMOBA_CHECK_INPUT(image.defined() == (config_.image_dim > 0), "expected {}, found {}",
                    config_.image_dim > 0 ? "CLIP tokens of an image (model.image_dim)"
                                          : "no image tokens for a model without model.image_dim",
                    image.defined() ? "some" : "none");
  const TextEmbedding& words = input.conditions.text;
  const at::Tensor &guidance = input.conditions.guidance_B, &next = input.conditions.next_timestep_B;
  VMOBA_CHECK_INPUT(!words.pooled_BP.defined() && !words.glyphs_BJU.defined() && !guidance.defined() && !next.defined(),
                    "expected text tokens alone for a Wan transformer, found {}",
                    guidance.defined()           ? "an embedded guidance scale"
                    : next.defined()             ? "a next timestep"
                    : words.glyphs_BJU.defined() ? "glyph tokens as well"
                                                 : "a pooled text as well");
  if (!image.defined()) return;
  VMOBA_CHECK_INPUT(image.dim() == 3 && image.size(0) == latents.size(0) && image.size(1) > 0 &&
                        image.size(2) == config_.image_dim &&
                        (wan_.image_pos_tokens == 0 || image.size(1) == wan_.image_pos_tokens),
                    "expected image tokens [{}, {}, {}] (model.image_pos_tokens, model.image_dim), found {}",
                    latents.size(0), wan_.image_pos_tokens ? fmt::to_string(wan_.image_pos_tokens) : "I",
                    config_.image_dim, fmt::join(image.sizes(), "x"));
}

at::Tensor WanDit::embed_image(const at::Tensor& image_BIM, const WanImageWeights& weights,
                               at::ScalarType dtype) const {
  constexpr double kEps = 1e-5;  // of these two norms alone, whatever model.eps is
  at::Tensor x = image_BIM.to(dtype);
  if (weights.position.defined()) x = x + weights.position.to(dtype);
  x = layer_norm(x, weights.norm1_weight, weights.norm1_bias, kEps).to(dtype);
  x = exact_gelu_mlp(x, weights.up, weights.down);
  return layer_norm(x, weights.norm2_weight, weights.norm2_bias, kEps).to(dtype);
}

WanDit::Embedded WanDit::embed(const DitInput& input, const WanOuterWeights& weights, const TokenShare& share,
                               at::ScalarType dtype) const {
  const at::ScalarType precise = precise_type(dtype);
  Embedded out;
  const at::Tensor patches_BSP = share.own(patchify(input.latents_BCTHW.to(dtype), config_.patch_size));
  out.tokens.x_BSE = linear(patches_BSP, weights.patch_embedding);
  const at::Tensor timestep_BG = input.timestep_BG.view({input.timestep_BG.size(0), -1}).to(precise);
  const at::Tensor waves = timestep_embedding(timestep_BG, wan_.freq_dim);
  out.time_BGE = linear(at::silu(linear(waves, weights.time_up)), weights.time_down);
  out.tokens.time_BG6E = share.own_runs(linear(at::silu(out.time_BGE), weights.time_proj).unflatten(2, {6, -1}));
  out.time_BGE = share.own_runs(out.time_BGE);
  const Conditions& conditions = input.conditions;
  // As published, all L tokens take part, the zeros behind a text too: its length is not looked at.
  out.tokens.text_BLE = gelu_mlp(conditions.text.tokens_BLE.to(dtype), weights.text_up, weights.text_down);
  if (conditions.image_BIM.defined()) out.tokens.image_BIE = embed_image(conditions.image_BIM, weights.image, dtype);
  return out;
}

at::Tensor WanDit::run_block(int64_t index, const WanBlockInput& input, const attention::Grid& grid,
                             const at::Tensor& rope_SP, const TokenShare& share, const ForwardOptions& options) const {
  const Unit unit = units_[size_t(index) + 1];
  const attention::LayerAttention attention = attention::layer_attention(
      options.attention ? *options.attention : attention_, index, options.dense, options.sparsity);
  const bool has_image = input.image_BIE.defined();
  std::vector<at::Tensor> inputs = {input.x_BSE, input.text_BLE, input.time_BG6E};
  if (has_image) inputs.push_back(input.image_BIE);
  for (const at::Tensor& tensor : bank_.tensors(unit.first, unit.count)) inputs.push_back(tensor);
  const auto body = [this, unit, rope_SP, grid, share, attention, has_image, stats = options.stats,
                     dtype = options.compute_dtype,
                     adapters = options.adapters](const std::vector<at::Tensor>& all, Kept& kept) {
    const at::TensorList tensors = at::TensorList(all).slice(has_image ? 4 : 3);
    const WanBlockWeights weights =
        wan_block_weights(bank_.bind(unit.first, unit.count, tensors, {dtype, kept.again(), adapters}), config_);
    return wan_block({all[0], all[1], all[2], has_image ? all[3] : at::Tensor()}, weights,
                     {config_, rope_SP, grid, attention, kept.again() ? nullptr : stats, share}, kept);
  };
  return recompute_in_backward(body, inputs, options.recompute.of_block(index), options.host_inputs);
}

at::Tensor WanDit::head(const at::Tensor& x_BSE, const at::Tensor& time_BGE, const WanOuterWeights& weights) const {
  const at::ScalarType precise = time_BGE.scalar_type();
  const auto parts = (weights.scale_shift_table.to(precise) + time_BGE.unsqueeze(2)).unbind(2);
  const at::Tensor &shift_BGE = parts[0], &scale_BGE = parts[1];
  return linear(modulate(layer_norm(x_BSE, {}, {}, config_.eps), scale_BGE, shift_BGE, precise), weights.proj_out);
}

at::Tensor WanDit::forward(const DitInput& input, const ForwardOptions& options) {
  const at::Tensor& latents = input.latents_BCTHW;
  VMOBA_CHECK_INPUT(latents.dim() == 5, "expected latents [B, {}, T, H, W], found {} dimensions", config_.in_channels,
                    latents.dim());
  const attention::Grid patches = grid(latents.size(2), latents.size(3), latents.size(4));
  check_input(input, patches.tokens());
  const WeightBank::Use use{options.compute_dtype, /*again=*/false, options.adapters};
  const WanOuterWeights weights = wan_outer_weights(bank_.weights(units_[0].first, units_[0].count, use), config_);
  const TokenShare share(options.sequence, patches.tokens());
  Embedded embedded = embed(input, weights, share, options.compute_dtype);
  const at::Tensor rope_SP = share.own_rows(
      rope_table(patches, sixths(config_.head_dim), precise_type(options.compute_dtype), latents.device()));
  for (int64_t i = 0; i < config_.layers; ++i) {
    embedded.tokens.x_BSE = run_block(i, embedded.tokens, patches, rope_SP, share, options);
  }
  const at::Tensor out_BSP = share.gather(head(embedded.tokens.x_BSE, embedded.time_BGE, weights));
  return unpatchify(out_BSP, patches, config_.patch_size, PatchOrder::kChannelLast);
}

attention::Grid WanDit::grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width) const {
  const attention::Grid patches = patch_grid(latent_frames, latent_height, latent_width, config_.patch_size);
  VMOBA_CHECK_INPUT(std::max({patches.t, patches.h, patches.w}) <= kMaxPatches,
                    "expected at most {} patches along each dimension, found {}x{}x{}; shorten or shrink the clip",
                    kMaxPatches, patches.t, patches.h, patches.w);
  return patches;
}

}  // namespace

std::unique_ptr<Dit> make_wan_dit(const ModelConfig& config, const attention::AttentionConfig& attention, uint64_t seed,
                                  at::Device device, WeightStore* store) {
  return std::make_unique<WanDit>(config, attention, make_parameters(config, seed, device, store), store);
}

}  // namespace vmoba::model
