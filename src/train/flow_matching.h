// Flow matching (rectified flow; Lipman et al. 2210.02747, Esser et al. 2403.03206): x_s = (1 - s) x0 + s noise, the
// model predicts velocity = noise - x0 at timestep 1000 s. Every draw is a function of (seed, sample number).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "config/root_config.h"

namespace vmoba::train {

// sigma in [min_timestep, max_timestep] / 1000 of one sample, after `shift`.
double draw_sigma(const FlowConfig& config, uint64_t seed, int64_t sample);

// Whether the sample is trained with an empty caption.
bool drop_caption(const FlowConfig& config, uint64_t seed, int64_t sample);

// Standard normal noise of one sample, fp32 on the CPU, of the given shape.
at::Tensor draw_noise(uint64_t seed, int64_t sample, at::IntArrayRef shape);

// Weight of a sample's loss (diffusers' compute_loss_weighting_for_sd3).
double loss_weight(const FlowConfig& config, double sigma);

struct NoisyBatch {
  at::Tensor latents_BCTHW;   // x_s, dtype of x0
  at::Tensor target_BCTHW;    // noise - x0
  at::Tensor timestep_B;      // 1000 s, fp32
  at::Tensor weight_B;        // fp32
  at::Tensor made_BT = {};    // 1 for latent frames that count, 0 for those given to the model; undefined: all count
  at::Tensor mask_BTHW = {};  // weights of the squared errors, fp32 in [0, 1]; undefined: 1 everywhere
};

// Clean latents with a noise each (fp32, on the CPU), at `timesteps` (1000 s) and with `weights`, one for each sample.
NoisyBatch noisy_batch(const at::Tensor& x0_BCTHW, const std::vector<at::Tensor>& noises,
                       const std::vector<float>& timesteps, const std::vector<float>& weights);

// Noises a batch of clean latents; `samples` are their global sample numbers.
NoisyBatch make_noisy(const FlowConfig& config, uint64_t seed, const std::vector<int64_t>& samples,
                      const at::Tensor& x0_BCTHW);

// Mean over the batch of weight * mean squared error of each sample (over the latent frames that count), each squared
// error times its mask: what is masked counts as learnt. fp32 scalar.
at::Tensor flow_loss(const at::Tensor& velocity_BCTHW, const NoisyBatch& batch);

// (1 - weight) of the loss above and `weight` of the same against a teacher's velocity in place of the data's.
at::Tensor distilled_loss(const at::Tensor& velocity_BCTHW, const NoisyBatch& batch, const at::Tensor& teacher_BCTHW,
                          double weight);

}  // namespace vmoba::train
