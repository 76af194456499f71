#include "train/flow_matching.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.h"
#include "core/random.h"
#include "model/common/to_device.h"

namespace vmoba::train {

double draw_sigma(const FlowConfig& config, uint64_t seed, int64_t sample) {
  RandomStream random(seed, "timestep", uint64_t(sample));
  double t = config.timestep_sampling == "uniform"
                 ? random.uniform()
                 : 1.0 / (1.0 + std::exp(-(config.logit_mean + config.logit_std * random.normal())));
  t = config.shift * t / (1.0 + (config.shift - 1.0) * t);
  const double low = config.min_timestep / 1000.0, high = config.max_timestep / 1000.0;
  return low + (high - low) * t;
}

bool drop_caption(const FlowConfig& config, uint64_t seed, int64_t sample) {
  return RandomStream(seed, "caption_dropout", uint64_t(sample)).uniform() < config.caption_dropout;
}

at::Tensor draw_noise(uint64_t seed, int64_t sample, at::IntArrayRef shape) {
  constexpr int64_t kPart = 1 << 14;  // values; even
  at::Tensor noise = at::empty(shape, at::kFloat);
  float* values = noise.mutable_data_ptr<float>();
  const int64_t count = noise.numel();
  for_each_part((count + kPart - 1) / kPart, at::get_num_threads(), [&](int64_t part) {
    const int64_t begin = part * kPart;
    fill_normal(seed, "noise", uint64_t(sample), values + begin, std::min(kPart, count - begin), begin);
  });
  return noise;
}

double loss_weight(const FlowConfig& config, double sigma) {
  if (config.loss_weighting == "sigma_sqrt") return 1.0 / (sigma * sigma);
  if (config.loss_weighting == "cosmap") return 2.0 / (std::numbers::pi * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma));
  return 1.0;
}

NoisyBatch make_noisy(const FlowConfig& config, uint64_t seed, const std::vector<int64_t>& samples,
                      const at::Tensor& x0_BCTHW) {
  std::vector<at::Tensor> noises;
  std::vector<float> timesteps, weights;
  for (int64_t sample : samples) {
    const double sigma = draw_sigma(config, seed, sample);
    noises.push_back(draw_noise(seed, sample, x0_BCTHW.sizes().slice(1)));
    timesteps.push_back(float(1000.0 * sigma));
    weights.push_back(float(loss_weight(config, sigma)));
  }
  return noisy_batch(x0_BCTHW, noises, timesteps, weights);
}

NoisyBatch noisy_batch(const at::Tensor& x0_BCTHW, const std::vector<at::Tensor>& noises,
                       const std::vector<float>& timesteps, const std::vector<float>& weights) {
  const auto device = x0_BCTHW.device();
  const at::Tensor noise = model::to_device(at::stack(noises), device).to(x0_BCTHW.scalar_type());
  NoisyBatch batch;
  batch.timestep_B = model::to_device(at::tensor(timesteps), device);
  batch.weight_B = model::to_device(at::tensor(weights), device);
  const at::Tensor sigma = (batch.timestep_B / 1000.0).to(x0_BCTHW.scalar_type()).view({-1, 1, 1, 1, 1});
  batch.latents_BCTHW = (1 - sigma) * x0_BCTHW + sigma * noise;
  batch.target_BCTHW = noise - x0_BCTHW;
  return batch;
}

at::Tensor flow_loss(const at::Tensor& velocity_BCTHW, const NoisyBatch& batch) {
  const at::Tensor error = velocity_BCTHW.to(at::kFloat) - batch.target_BCTHW.to(at::kFloat);
  at::Tensor squared = error.square();
  if (batch.mask_BTHW.defined()) squared = squared * batch.mask_BTHW.unsqueeze(1);
  // In two steps, because ATen shares a sum to a single number out among the CPU's threads, whose number would show.
  const at::Tensor by_plane_BCT = squared.mean({3, 4});
  if (!batch.made_BT.defined()) return (by_plane_BCT.flatten(1).mean(1) * batch.weight_B).mean();
  const at::Tensor by_frame_BT = by_plane_BCT.mean(1);
  const at::Tensor by_sample_B = (by_frame_BT * batch.made_BT).sum(1) / batch.made_BT.sum(1);
  return (by_sample_B * batch.weight_B).mean();
}

at::Tensor distilled_loss(const at::Tensor& velocity_BCTHW, const NoisyBatch& batch, const at::Tensor& teacher_BCTHW,
                          double weight) {
  NoisyBatch taught = batch;
  taught.target_BCTHW = teacher_BCTHW;
  return (1 - weight) * flow_loss(velocity_BCTHW, batch) + weight * flow_loss(velocity_BCTHW, taught);
}

}  // namespace vmoba::train
