// The schedulers against trajectories of diffusers 0.42.1 (scripts/make_scheduler_fixtures.py).
#include "sample/scheduler.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "support/catch.h"
#include "support/paths.h"

using namespace vmoba;
using namespace vmoba::sample;

namespace {

nlohmann::json fixture() {
  std::ifstream file(test::fixtures() + "/sample/schedulers.json");
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
    INFO(c["name"] << " " << c["schedule"] << " steps " << c["steps"] << " shift " << c["shift"]);
    const auto scheduler = make_scheduler(c["name"], c["steps"], c["shift"], c["schedule"]);
    CHECK(scheduler->sigmas() == c["sigmas"].get<std::vector<double>>());
    CHECK(scheduler->timesteps() == c["timesteps"].get<std::vector<double>>());
  }
}

TEST_CASE("Wan's noise levels are those of its repositories and of diffusers up to 0.35") {
  // np.linspace(0.999, 0, steps + 1)[:-1], shifted (fm_solvers_unipc.py, sigma_max and sigma_min with shift 1).
  for (const double shift : {0.7, 1.0, 3.0, 5.0, 8.0, 12.0, 16.0}) {
    for (const int64_t steps : {1, 2, 3, 10, 40, 50}) {
      INFO("steps " << steps << " shift " << shift);
      const auto wan = make_scheduler("unipc", steps, shift, "wan");
      REQUIRE(wan->sigmas().size() == size_t(steps) + 1);
      CHECK(wan->sigmas().back() == 0);
      for (int64_t i = 0; i < steps; ++i) {
        const double level = 0.999 * double(steps - i) / double(steps);
        const double sigma = shift * level / (1 + (shift - 1) * level);
        CHECK(std::abs(wan->sigmas()[size_t(i)] - sigma) < 2e-7);
        CHECK(std::abs(wan->timesteps()[size_t(i)] - 1000 * sigma) <= 1);
        CHECK(wan->timesteps()[size_t(i)] == std::trunc(wan->timesteps()[size_t(i)]));
      }
    }
  }
  const auto wan = make_scheduler("unipc", 50, 5, "wan");
  CHECK(wan->timesteps()[0] == 999);
  CHECK(wan->timesteps()[1] == 995);
  CHECK(wan->timesteps()[49] == 92);
  CHECK(make_scheduler("unipc", 50, 5, "diffusers")->timesteps()[49] == 96);
}

TEST_CASE("trajectories follow diffusers") {
  const auto f = fixture();
  REQUIRE(f["cases"].size() >= 60);
  for (const auto& c : f["cases"]) {
    INFO(c["name"] << " " << c["schedule"] << " steps " << c["steps"] << " shift " << c["shift"]);
    const auto scheduler = make_scheduler(c["name"], c["steps"], c["shift"], c["schedule"]);
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
      const auto scheduler = make_scheduler(name, steps, 3.0, "wan");
      const at::Tensor target = at::tensor({-0.8, 0.1, 2.5}, at::kDouble);
      at::Tensor x = at::tensor({1.0, -1.0, 0.3}, at::kDouble);
      for (int64_t i = 0; i < steps; ++i) x = scheduler->step(i, (x - target) / scheduler->sigmas()[i], x);
      CHECK((x - target).abs().max().item<double>() < 1e-10);
    }
  }
}

TEST_CASE("a scheduler can be run again from its first step") {
  for (const char* name : {"euler", "unipc"}) {
    const auto scheduler = make_scheduler(name, 5, 3.0, "wan");
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
    const auto scheduler = make_scheduler(name, 4, 3.0, "wan");
    at::Tensor x = at::tensor({1.0f, -1.0f}, at::kFloat);
    for (int64_t i = 0; i < 4; ++i) x = scheduler->step(i, velocity(x, 500).to(at::kBFloat16), x);
    CHECK(x.scalar_type() == at::kFloat);
  }
}

TEST_CASE("wrong use is refused") {
  CHECK_THROWS_AS(make_scheduler("heun", 10, 1.0, "wan"), Error);
  CHECK_THROWS_AS(make_scheduler("euler", 0, 1.0, "wan"), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 1001, 1.0, "wan"), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 10, 0.0, "wan"), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 10, NAN, "wan"), Error);
  CHECK_THROWS_AS(make_scheduler("unipc", 10, 5.0, "karras"), Error);
  // So high a shift puts the second level above the first, which stands 1e-6 below 1.
  CHECK_THROWS_AS(make_scheduler("unipc", 1000, 5000.0, "diffusers"), Error);
  const auto scheduler = make_scheduler("unipc", 3, 3.0, "wan");
  const at::Tensor x = at::zeros({2});
  CHECK_THROWS_AS(scheduler->step(1, x, x), Error);
  scheduler->step(0, x, x);
  CHECK_THROWS_AS(scheduler->step(2, x, x), Error);
  scheduler->step(1, x, x);
  scheduler->step(2, x, x);
  CHECK_THROWS_AS(scheduler->step(3, x, x), Error);
}
