// Bucketed sums against sums that are computed by hand on every rank.
#include "train/dist/gradient_buckets.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "support/catch.h"
#include "train/dist/dist_world.h"
#include "train/dist/nccl_communicator.h"

using namespace vmoba;
using namespace vmoba::train::dist;
using test::world;

namespace {

struct Net {
  std::vector<model::Parameter> parameters;
  explicit Net(at::Device device) {
    for (int i = 0; i < 6; ++i)
      parameters.push_back(
          {fmt::format("p{}", i), at::full({4, 3 + i}, 0.5 + i, at::TensorOptions(at::kDouble).device(device))
                                      .requires_grad_(i != 4)});  // p4 is frozen
  }
  // p5 takes part on rank 0 only.
  at::Tensor loss(int rank, int pass) const {
    at::Tensor sum = at::zeros({}, parameters[0].tensor.options());
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (i == 5 && rank != 0) continue;
      sum = sum + (parameters[i].tensor * double(rank + 1)).square().sum() * double(pass + 1);
    }
    return sum;
  }
};

// d/dp of sum over ranks and passes of (p (rank+1))^2 (pass+1).
double expected_gradient(double p, int ranks, int passes) {
  double sum = 0;
  for (int r = 0; r < ranks; ++r)
    for (int pass = 0; pass < passes; ++pass) sum += 2 * p * (r + 1) * (r + 1) * (pass + 1);
  return sum;
}

void check_steps(Communicator& ranks, at::Device device) {
  const Net net(device);
  GradientBuckets buckets(net.parameters, ranks, /*bucket_bytes=*/200);
  REQUIRE(buckets.bucket_count() >= 3);
  for (int step = 0; step < 3; ++step) {
    buckets.begin_step();
    for (int pass = 0; pass < 3; ++pass) {
      if (pass == 2) buckets.begin_last_pass();
      net.loss(ranks.rank(), pass).backward();
    }
    buckets.finish();
    for (size_t i = 0; i < net.parameters.size(); ++i) {
      const at::Tensor& p = net.parameters[i].tensor;
      if (i == 4) {
        CHECK_FALSE(p.grad().defined());
        continue;
      }
      const double expected = expected_gradient(0.5 + double(i), i == 5 ? 1 : ranks.size(), 3);
      CHECK((p.grad() - expected).abs().max().item<double>() < 1e-12 * expected);
    }
  }
  // Rank 0 has all gradients: every sum began inside backward. Elsewhere the bucket of p5, the first, holds all back.
  CHECK(buckets.early_sums() == (ranks.rank() == 0 ? 3 * int64_t(buckets.bucket_count()) : 0));
}

}  // namespace

TEST_CASE("gradients are summed once per step, during the last backward") {
  const auto alone = make_single_communicator();
  check_steps(*alone, at::kCPU);
}

TEST_CASE("gradients are summed over ranks, unused and frozen parameters included", "[mpi]") {
  check_steps(world().control(), at::kCPU);
}

TEST_CASE("gradients are summed over NCCL on one GPU", "[gpu]") {
  const auto alone = make_single_communicator();
  const at::Device device(at::kCUDA, 0);
  OperationWatch watch;
  const auto group = make_nccl_communicator(*alone, device, watch, {0});
  check_steps(*group, device);
}
