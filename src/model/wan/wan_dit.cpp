// Shape letters: B samples, C latent channels, T x H x W latents, S tokens, L text tokens, M text width, E width, P
// values of a patch.
#include "model/wan/wan_dit.h"

#include <ATen/ops/silu.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/common/linear.h"
#include "model/common/mlp.h"
#include "model/common/modulation.h"
#include "model/common/norm.h"
#include "model/common/patchify.h"
#include "model/common/recompute.h"
#include "model/common/rope.h"
#include "model/wan/wan_block.h"
#include "model/wan/wan_parameters.h"
#include "model/weights/pretrained.h"

namespace vmoba::model {
namespace {

constexpr int64_t kMaxPatches = 1024;  // rope_max_seq_len of every published Wan: patches along one dimension

class WanDit : public Dit {
 public:
  WanDit(const ModelConfig& config, const attention::AttentionConfig& attention, std::vector<Parameter> parameters)
      : config_(config), attention_(attention), parameters_(std::move(parameters)) {
    outer_count_ = wan_outer_specs(config_).size();
    block_count_ = wan_block_specs(config_, 0).size();
    for (const Parameter& parameter : parameters_) tensors_.push_back(parameter.tensor);
  }

  at::Tensor forward(const DitInput& input, const ForwardOptions& options) override;
  const std::vector<Parameter>& parameters() const override { return parameters_; }
  std::string config_json() const override { return wan_config_json(config_); }
  attention::LayerAttention layer(int64_t index, bool dense) const override {
    return attention::layer_attention(attention_, index, dense);
  }
  int64_t layers() const override { return config_.layers; }
  attention::Grid grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width) const override;

 private:
  struct Embedded {
    WanBlockInput tokens;
    at::Tensor time_BE;  // for the head
  };

  void check_input(const DitInput& input) const;
  Embedded embed(const DitInput& input, const WanOuterWeights& weights, at::ScalarType dtype) const;
  at::Tensor run_block(int64_t index, const WanBlockInput& input, const attention::Grid& grid,
                       const at::Tensor& rope_SP, const ForwardOptions& options) const;
  at::Tensor head(const at::Tensor& x_BSE, const at::Tensor& time_BE, const WanOuterWeights& weights) const;
  at::TensorList outer_tensors() const { return at::TensorList(tensors_).slice(0, outer_count_); }
  at::TensorList block_tensors(int64_t index) const {
    return at::TensorList(tensors_).slice(outer_count_ + size_t(index) * block_count_, block_count_);
  }

  ModelConfig config_;
  attention::AttentionConfig attention_;
  std::vector<Parameter> parameters_;
  std::vector<at::Tensor> tensors_;  // the same tensors, as block_tensors() slices them
  size_t outer_count_ = 0, block_count_ = 0;
};

void WanDit::check_input(const DitInput& input) const {
  const at::Tensor &latents = input.latents_BCTHW, &text = input.text_BLE, &timestep = input.timestep_B;
  VMOBA_CHECK_INPUT(latents.dim() == 5 && latents.size(1) == config_.in_channels,
                    "expected latents [B, {}, T, H, W] (model.in_channels), found {}", config_.in_channels,
                    fmt::join(latents.sizes(), "x"));
  VMOBA_CHECK_INPUT(
      text.dim() == 3 && text.size(0) == latents.size(0) && text.size(1) > 0 && text.size(2) == config_.text_dim,
      "expected text embeddings [{}, L, {}] (model.text_dim), found {}", latents.size(0), config_.text_dim,
      fmt::join(text.sizes(), "x"));
  VMOBA_CHECK_INPUT(timestep.dim() == 1 && timestep.size(0) == latents.size(0), "expected {} timesteps, found {}",
                    latents.size(0), fmt::join(timestep.sizes(), "x"));
}

WanDit::Embedded WanDit::embed(const DitInput& input, const WanOuterWeights& weights, at::ScalarType dtype) const {
  const at::ScalarType precise = precise_type(dtype);
  Embedded out;
  out.tokens.x_BSE = linear(patchify(input.latents_BCTHW.to(dtype), config_.patch_size), weights.patch_embedding);
  const at::Tensor waves = timestep_embedding(input.timestep_B.to(precise), config_.freq_dim);
  out.time_BE = linear(at::silu(linear(waves, weights.time_up)), weights.time_down);
  out.tokens.time_B6E = linear(at::silu(out.time_BE), weights.time_proj).unflatten(1, {6, -1});
  out.tokens.text_BLE = gelu_mlp(input.text_BLE.to(dtype), weights.text_up, weights.text_down);
  return out;
}

at::Tensor WanDit::run_block(int64_t index, const WanBlockInput& input, const attention::Grid& grid,
                             const at::Tensor& rope_SP, const ForwardOptions& options) const {
  const attention::LayerAttention attention = layer(index, options.dense);
  std::vector<at::Tensor> inputs = {input.x_BSE, input.text_BLE, input.time_B6E};
  for (const at::Tensor& tensor : block_tensors(index)) inputs.push_back(tensor);
  const auto body = [this, rope_SP, grid, attention, stats = options.stats](const std::vector<at::Tensor>& all,
                                                                            bool again) {
    const WanBlockWeights weights = wan_block_weights(at::TensorList(all).slice(3), config_);
    return wan_block({all[0], all[1], all[2]}, weights, {config_, rope_SP, grid, attention, again ? nullptr : stats});
  };
  return options.activation_checkpointing ? recompute_in_backward(body, inputs) : body(inputs, false);
}

at::Tensor WanDit::head(const at::Tensor& x_BSE, const at::Tensor& time_BE, const WanOuterWeights& weights) const {
  const at::ScalarType precise = time_BE.scalar_type();
  const auto parts = (weights.scale_shift_table.to(precise) + time_BE.unsqueeze(1)).chunk(2, 1);
  const at::Tensor &shift_B1E = parts[0], &scale_B1E = parts[1];
  return linear(modulate(layer_norm(x_BSE, {}, {}, config_.eps), scale_B1E, shift_B1E, precise), weights.proj_out);
}

at::Tensor WanDit::forward(const DitInput& input, const ForwardOptions& options) {
  check_input(input);
  const at::Tensor& latents = input.latents_BCTHW;
  const attention::Grid patches = grid(latents.size(2), latents.size(3), latents.size(4));
  const WanOuterWeights weights = wan_outer_weights(outer_tensors());
  Embedded embedded = embed(input, weights, options.compute_dtype);
  const at::Tensor rope_SP =
      rope_table(patches, config_.head_dim, precise_type(options.compute_dtype), latents.device());
  for (int64_t i = 0; i < config_.layers; ++i) {
    embedded.tokens.x_BSE = run_block(i, embedded.tokens, patches, rope_SP, options);
  }
  return unpatchify(head(embedded.tokens.x_BSE, embedded.time_BE, weights), patches, config_.patch_size);
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
                                  at::Device device) {
  const std::vector<ParameterSpec> specs = wan_parameter_specs(config);
  std::vector<Parameter> parameters;
  if (config.weights.empty()) {
    for (const ParameterSpec& spec : specs) parameters.push_back({spec.name, draw_parameter(spec, seed, device)});
  } else {
    parameters = load_pretrained(config.weights, specs, wan_config_json(config), device);
  }
  return std::make_unique<WanDit>(config, attention, std::move(parameters));
}

}  // namespace vmoba::model
