// The schedulers against trajectories of diffusers 0.42.1 (scripts/make_scheduler_fixtures.py).
#include "sample/scheduler.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::sample;

namespace {

nlohmann::json fixture() {
  std::ifstream file(VMOBA_FIXTURES "/sample/schedulers.json");
  return nlohmann::json::parse(file);
}

// The velocity that the fixtures were made with.
at::Tensor velocity(const at::Tensor& x, double timestep) {
  return at::tanh(x * 0.7 + 0.3 * std::cos(timestep / 150.0)) + x * 0.2;
}

at::Tensor start(const nlohmann::json& f, at::ScalarType dtype) {
  return at::tensor(f["start"].get<std::vector<double>>(), at::kDouble).to(dtype).view({1, 4, 1, 1, 1});
}

// Largest relative difference of a run of `scheduler` from the recorded one, over all steps.
double largest_error(Scheduler& scheduler, at::Tensor x, const nlohmann::json& rows) {
  double error = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    x = scheduler.step(int64_t(i), velocity(x, scheduler.timesteps()[i]), x);
    const at::Tensor expected = at::tensor(rows[i].get<std::vector<double>>(), at::kDouble).view(x.sizes());
    const double difference = (x.to(at::kDouble) - expected).abs().max().item<double>();
    error = std::max(error, difference / expected.abs().max().item<double>());
  }
  return error;
}

}  // namespace

TEST_CASE("timesteps and noise levels are diffusers' own") {
  for (const auto& c : fixture()["cases"]) {
    INFO(c["name"] << " steps " << c["steps"] << " shift " << c["shift"]);
    const auto scheduler = make_scheduler(c["name"], c["steps"], c["shift"]);
    CHECK(scheduler->sigmas() == c["sigmas"].get<std::vector<double>>());
    CHECK(scheduler->timesteps() == c["timesteps"].get<std::vector<double>>());
  }
}

TEST_CASE("trajectories follow diffusers") {
  const auto f = fixture();
  REQUIRE(f["cases"].size() >= 40);
  for (const auto& c : f["cases"]) {
    INFO(c["name"] << " steps " << c["steps"] << " shift " << c["shift"]);
    const auto scheduler = make_scheduler(c["name"], c["steps"], c["shift"]);
    // fp32: diffusers computes UniPC's coefficients in fp32 too, from differences of logarithms, hence 1e-5.
    CHECK(largest_error(*scheduler, start(f, at::kFloat), c["fp32"]) < (c["name"] == "euler" ? 1e-6 : 1e-5));
    if (c.contains("fp64")) CHECK(largest_error(*scheduler, start(f, at::kDouble), c["fp64"]) < 1e-12);
  }
}

TEST_CASE("a single data point is reached whatever the steps") {
  // With all data at x0 the velocity is (x - x0) / sigma and the path a straight line.
  for (const char* name : {"euler", "unipc"}) {
    for (int64_t steps : {1, 2, 7, 50}) {
      INFO(name << " " << steps);
      const auto scheduler = make_scheduler(name, steps, 3.0);
      const at::Tensor target = at::tensor({-0.8, 0.1, 2.5}, at::kDouble);
      at::Tensor x = at::tensor({1.0, -1.0, 0.3}, at::kDouble);
      for (int64_t i = 0; i < steps; ++i) x = scheduler->step(i, (x - target) / scheduler->sigmas()[i], x);
      CHECK((x - target).abs().max().item<double>() < 1e-10);
    }
  }
}

TEST_CASE("a scheduler can be run again from its first step") {
  for (const char* name : {"euler", "unipc"}) {
    const auto scheduler = make_scheduler(name, 5, 3.0);
    std::vector<at::Tensor> ends;
    for (int64_t length : {5, 3, 5}) {  // the middle run is left half way
      at::Tensor x = at::tensor({1.0, -1.0}, at::kDouble);
      for (int64_t i = 0; i < length; ++i) x = scheduler->step(i, velocity(x, scheduler->timesteps()[i]), x);
      ends.push_back(x);
    }
    CHECK(at::equal(ends[0], ends[2]));
    CHECK_FALSE(at::equal(ends[0], ends[1]));
  }
}

TEST_CASE("latents keep their dtype when the model answers in another") {
  for (const char* name : {"euler", "unipc"}) {
    const auto scheduler = make_scheduler(name, 4, 3.0);
    at::Tensor x = at::tensor({1.0f, -1.0f}, at::kFloat);
    for (int64_t i = 0; i < 4; ++i) x = scheduler->step(i, velocity(x, 500).to(at::kBFloat16), x);
    CHECK(x.scalar_type() == at::kFloat);
  }
}

TEST_CASE("wrong use is refused") {
  CHECK_THROWS_AS(make_scheduler("heun", 10, 1.0), Error);
  CHECK_THROWS_AS(make_scheduler("euler", 0, 1.0), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 1001, 1.0), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 10, 0.0), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 10, NAN), Error);
  // So high a shift puts the second level above the first, which stands 1e-6 below 1.
  CHECK_THROWS_AS(make_scheduler("unipc", 1000, 5000.0), Error);
  const auto scheduler = make_scheduler("unipc", 3, 3.0);
  const at::Tensor x = at::zeros({2});
  CHECK_THROWS_AS(scheduler->step(1, x, x), Error);
  scheduler->step(0, x, x);
  CHECK_THROWS_AS(scheduler->step(2, x, x), Error);
  scheduler->step(1, x, x);
  scheduler->step(2, x, x);
  CHECK_THROWS_AS(scheduler->step(3, x, x), Error);
}
