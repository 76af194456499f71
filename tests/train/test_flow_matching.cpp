#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "core/random.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/paths.h"
#include "train/flow_matching.h"

using namespace vmoba;
using namespace vmoba::train;

TEST_CASE("noisy latents interpolate between data and noise, target is noise minus data") {
  FlowConfig config;
  const at::Tensor x0 = at::arange(2 * 3 * 2 * 4 * 4, at::kFloat).view({2, 3, 2, 4, 4}) / 50;
  const NoisyBatch batch = make_noisy(config, 11, {40, 41}, x0);
  for (int64_t i = 0; i < 2; ++i) {
    std::vector<float> noise(3 * 2 * 4 * 4);
    fill_normal(11, "noise", uint64_t(40 + i), noise.data(), int64_t(noise.size()));
    const at::Tensor expected_noise = at::tensor(noise).view({3, 2, 4, 4});
    const double sigma = draw_sigma(config, 11, 40 + i);
    CHECK(batch.timestep_B[i].item<double>() == Approx(1000 * sigma).epsilon(1e-6));
    CHECK(at::allclose(batch.latents_BCTHW[i], (1 - sigma) * x0[i] + sigma * expected_noise, 1e-5, 1e-6));
    CHECK(at::equal(batch.target_BCTHW[i], expected_noise - x0[i]));
  }
}

TEST_CASE("a sample's draws do not depend on the batch it is in") {
  FlowConfig config;
  const at::Tensor x0 = at::zeros({3, 1, 1, 2, 2});
  const NoisyBatch together = make_noisy(config, 5, {7, 8, 9}, x0);
  const NoisyBatch alone = make_noisy(config, 5, {8}, x0.slice(0, 0, 1));
  CHECK(at::equal(together.latents_BCTHW[1], alone.latents_BCTHW[0]));
  CHECK(at::equal(together.timestep_B[1], alone.timestep_B[0]));
}

TEST_CASE("timestep distributions: range, shift, medians") {
  const auto median = [](const FlowConfig& config) {
    std::vector<double> draws;
    for (int64_t i = 0; i < 4001; ++i) {
      draws.push_back(draw_sigma(config, 3, i));
      REQUIRE(draws.back() >= config.min_timestep / 1000);
      REQUIRE(draws.back() <= config.max_timestep / 1000);
    }
    std::nth_element(draws.begin(), draws.begin() + 2000, draws.end());
    return draws[2000];
  };
  // The median of 4,001 draws has a standard error of about 0.008 (density 1 at the middle); five of them are allowed.
  FlowConfig config;
  config.shift = 1;
  config.timestep_sampling = "uniform";
  CHECK(std::abs(median(config) - 0.5) < 0.04);
  config.shift = 3;  // monotone: the median moves to 3*.5/(1+2*.5)
  CHECK(std::abs(median(config) - 0.75) < 0.04);
  config.timestep_sampling = "logit_normal";
  config.shift = 1;
  config.logit_mean = 1;
  CHECK(std::abs(median(config) - 1 / (1 + std::exp(-1.0))) < 0.04);
  config.min_timestep = 200;
  config.max_timestep = 600;
  CHECK(std::abs(median(config) - (0.2 + 0.4 / (1 + std::exp(-1.0)))) < 0.04);
}

TEST_CASE("loss weights are diffusers'") {
  const model::SafetensorsFile file(test::fixtures() + "/train/loss_weighting.safetensors");
  for (const std::string name : {"sigma_sqrt", "cosmap"}) {
    FlowConfig config;
    config.loss_weighting = name;
    for (int64_t i = 0; i < 19; ++i)
      CHECK(loss_weight(config, file.tensor("sigma")[i].item<double>()) ==
            Approx(file.tensor(name)[i].item<double>()).epsilon(0x1p-24));  // diffusers rounds to fp32
  }
  CHECK(loss_weight(FlowConfig{}, 0.3) == 1.0);
}

TEST_CASE("the loss weighs each sample's mean squared error") {
  NoisyBatch batch;
  batch.target_BCTHW = at::zeros({2, 1, 1, 1, 2});
  batch.weight_B = at::tensor(std::vector<float>{1.f, 10.f});
  const at::Tensor velocity = at::tensor(std::vector<float>{1.f, 3.f, 2.f, 0.f}).view({2, 1, 1, 1, 2});
  CHECK(flow_loss(velocity, batch).item<double>() == Approx((5.0 + 10 * 2.0) / 2));
}

TEST_CASE("a teacher's velocity takes its share of the loss") {
  NoisyBatch batch;
  batch.target_BCTHW = at::zeros({1, 1, 1, 1, 2});
  batch.weight_B = at::tensor(std::vector<float>{2.f});
  const at::Tensor velocity = at::tensor(std::vector<float>{1.f, 3.f}).view({1, 1, 1, 1, 2});
  const at::Tensor teacher = at::tensor(std::vector<float>{1.f, 5.f}).view({1, 1, 1, 1, 2});
  // Against the data 2 * 5, against the teacher 2 * 2.
  CHECK(distilled_loss(velocity, batch, teacher, 0.25).item<double>() == Approx(0.75 * 10 + 0.25 * 4));
  CHECK(distilled_loss(velocity, batch, teacher, 1).item<double>() == Approx(4));
}

TEST_CASE("loss and gradient do not depend on the number of threads") {
  // One sample, larger than the 32,768 values below which ATen does not split a sum. Other sums often round to the same
  // number, hence several samples.
  const at::Tensor x0_BCTHW = at::linspace(-1, 1, 16 * 6 * 40 * 44, at::kFloat).view({1, 16, 6, 40, 44});
  const int before = at::get_num_threads();
  for (int64_t sample = 0; sample < 8; ++sample) {
    const NoisyBatch batch = make_noisy({}, 3, {sample}, x0_BCTHW);
    const auto run = [&](int threads) {
      at::set_num_threads(threads);
      at::Tensor velocity = batch.latents_BCTHW.sin().requires_grad_(true);
      const at::Tensor loss = flow_loss(velocity, batch);
      loss.backward();
      return std::make_pair(loss.detach(), velocity.grad());
    };
    const auto [loss, gradient] = run(1);
    for (const int threads : {2, 3, 4}) {
      const auto [other_loss, other_gradient] = run(threads);
      CHECK(at::equal(loss, other_loss));
      CHECK(at::equal(gradient, other_gradient));
    }
  }
  at::set_num_threads(before);
}

TEST_CASE("captions are dropped at the configured rate") {
  FlowConfig config;
  config.caption_dropout = 0.1;
  int dropped = 0;
  for (int64_t i = 0; i < 10000; ++i) dropped += drop_caption(config, 1, i);
  CHECK(std::abs(dropped - 1000) < 150);  // five standard deviations of the binomial: 5 * 30
  config.caption_dropout = 0;
  for (int64_t i = 0; i < 100; ++i) CHECK_FALSE(drop_caption(config, 1, i));
}
