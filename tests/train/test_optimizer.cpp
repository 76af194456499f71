// AdamW, clipping, EMA and the learning rate against torch.optim.AdamW (scripts/make_train_fixtures.py) and arithmetic.
#include <ATen/ATen.h>

#include <cmath>

#include "core/check.h"
#include "support/catch.h"
#include "support/paths.h"
#include "train/optim/adamw.h"
#include "train/optim/ema.h"
#include "train/optim/gradients.h"
#include "train/optim/lr_schedule.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

std::vector<model::Parameter> start_parameters(const model::SafetensorsFile& file) {
  std::vector<model::Parameter> out;
  for (int i = 0; i < 2; ++i)
    out.push_back({"p" + std::to_string(i), file.tensor("start." + std::to_string(i)).clone().requires_grad_()});
  return out;
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace

TEST_CASE("AdamW with clipping follows torch.optim.AdamW") {
  const model::SafetensorsFile file(test::fixtures() + "/train/adamw.safetensors");
  OptimizerConfig config;
  config.betas = {0.9, 0.95};
  config.weight_decay = 0.1;
  std::vector<model::Parameter> parameters = start_parameters(file);
  AdamW optimizer(config, parameters);
  for (int step = 0; step < 5; ++step) {
    for (int i = 0; i < 2; ++i)
      parameters[i].tensor.mutable_grad() = file.tensor(fmt::format("grad.{}.{}", step, i)).clone();
    const double norm = gradient_norm(parameters).item<double>();
    CHECK(norm == Approx(file.tensor("norms")[step].item<double>()).epsilon(1e-6));
    optimizer.step({3e-3, clip_factor(at::scalar_tensor(norm, at::kDouble), 1.0)});
    // One step moves a weight by about lr; fp32 rounding of weights near 1 is 1.2e-7 per step.
    for (int i = 0; i < 2; ++i)
      CHECK(max_difference(parameters[i].tensor.detach(), file.tensor(fmt::format("after.{}.{}", step, i))) < 1e-6);
  }
}

TEST_CASE("a missing gradient counts as zero, so weight decay still acts") {
  OptimizerConfig config;
  config.weight_decay = 0.5;
  std::vector<model::Parameter> parameters = {{"w", at::ones({3}).requires_grad_()}};
  AdamW optimizer(config, parameters);
  optimizer.step(0.1);
  CHECK(parameters[0].tensor[0].item<double>() == Approx(1 - 0.1 * 0.5));
}

TEST_CASE("an optimiser keeps what it announces") {
  const std::vector<model::Parameter> parameters = {{"a", at::ones({3, 5})}, {"b", at::ones({7})}};
  const auto optimizer = make_optimizer({}, parameters);
  int64_t bytes = 0;
  std::vector<std::string> names;
  for (const Optimizer::State& state : optimizer->state()) {
    const model::Parameter& p = parameters[state.parameter];
    CHECK(state.tensor.sizes() == at::IntArrayRef(state.layout.shape(p.shape())));
    bytes += int64_t(state.tensor.nbytes());
    names.push_back(state.layout.name + "." + p.name);
  }
  CHECK(names == std::vector<std::string>{"exp_avg.a", "exp_avg_sq.a", "exp_avg.b", "exp_avg_sq.b"});
  CHECK(bytes == 2 * 4 * (15 + 7));
  CHECK(optimizer_bytes({}, parameters, 1) == bytes);
  CHECK(optimizer_bytes({}, parameters, 4) == 2 * 4 * 6);  // of 22 values
}

TEST_CASE("values that share an entry of the state make it flat") {
  const StateLayout each{"m", at::kFloat}, blocks{"s", at::kByte, 4};
  CHECK(each.shape({3, 5}) == std::vector<int64_t>{3, 5});
  CHECK(blocks.shape({3, 5}) == std::vector<int64_t>{4});
  CHECK(blocks.shape({8}) == std::vector<int64_t>{2});
  CHECK(blocks.entries(1) == 1);
}

TEST_CASE("the average follows its definition and swap is its own inverse") {
  std::vector<model::Parameter> parameters = {{"w", at::zeros({2}).requires_grad_()}};
  Ema ema({true, 0.5}, parameters);
  double expected = 0;
  for (int step = 0; step < 20; ++step) {
    {
      const at::NoGradGuard no_grad;
      parameters[0].tensor.fill_(double(step));
    }
    ema.update(step);
    const double decay = std::min(0.5, (1.0 + step) / (10.0 + step));
    expected = decay * expected + (1 - decay) * step;
  }
  CHECK(ema.weights()[0].tensor[0].item<double>() == Approx(expected).epsilon(1e-6));
  ema.swap();
  CHECK(parameters[0].tensor[0].item<double>() == Approx(expected).epsilon(1e-6));
  CHECK(ema.weights()[0].tensor[0].item<double>() == 19);
  ema.swap();
  CHECK(parameters[0].tensor[0].item<double>() == 19);
}

TEST_CASE("learning rate: warm-up, decay, end points") {
  OptimizerConfig config;
  config.lr = 1.0;
  config.final_lr = 0.2;
  config.warmup_steps = 4;
  CHECK(learning_rate(config, 0, 13) == 0.25);
  CHECK(learning_rate(config, 3, 13) == 1.0);
  CHECK(learning_rate(config, 12, 13) == 1.0);
  config.schedule = "linear";
  CHECK(learning_rate(config, 4, 13) == Approx(1.0));
  CHECK(learning_rate(config, 8, 13) == Approx(0.6));
  CHECK(learning_rate(config, 12, 13) == Approx(0.2));
  config.schedule = "cosine";
  CHECK(learning_rate(config, 4, 13) == Approx(1.0));
  CHECK(learning_rate(config, 6, 13) == Approx(0.2 + 0.8 * (0.5 + 0.5 * std::sqrt(0.5))));
  CHECK(learning_rate(config, 12, 13) == Approx(0.2));
  CHECK(learning_rate(config, 99, 13) == Approx(0.2));
}
