// Flow-matching samplers. A scheduler walks sigma from 1 (noise) to 0 (data): x_sigma = (1 - sigma) x0 + sigma noise,
// velocity = noise - x0. Formulas as in diffusers' FlowMatchEulerDiscreteScheduler and UniPCMultistepScheduler
// (prediction_type flow_prediction, use_flow_sigmas), against which the tests compare number by number; UniPC's noise
// levels also as in Wan's repositories (FlowUniPCMultistepScheduler in wan/utils/fm_solvers_unipc.py).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vmoba::sample {

class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // Timesteps (0..1000) to evaluate, descending.
  virtual const std::vector<double>& timesteps() const = 0;
  // The noise level of each timestep and a last 0: one entry more than timesteps().
  virtual const std::vector<double>& sigmas() const = 0;
  // One step: latents at timesteps()[index] and the model's velocity there -> latents at the next timestep, in the
  // latents' dtype. Called with index 0, 1, 2, ...; index 0 starts a new video.
  virtual at::Tensor step(int64_t index, const at::Tensor& velocity, const at::Tensor& latents) = 0;
};

// name: "euler" | "unipc"; `shift`: sigma' = shift*sigma / (1 + (shift - 1)*sigma). Throws Error(kInput) for another
// name, for steps outside 1..1000, and where the shift crowds two steps onto one sigma. `schedule` ("wan" |
// "diffusers"): the noise levels of unipc before the shift, equal steps from 0.999 down to 0 (Wan's repositories, and
// diffusers up to 0.35) or from 1 down to 0.001 (diffusers from 0.37 on), the last one left out.
std::unique_ptr<Scheduler> make_scheduler(const std::string& name, int64_t steps, double shift,
                                          const std::string& schedule);

}  // namespace vmoba::sample
