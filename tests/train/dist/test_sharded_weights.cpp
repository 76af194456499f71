// Parameters held together: parts, whole ones from them, sums of gradients, and the memory that a rank needs.
#include "train/dist/sharded_weights.h"

#include <ATen/ATen.h>

#include "support/catch.h"
#include "train/dist/dist_world.h"
#include "train/dist/nccl_communicator.h"

using namespace vmoba;
using namespace vmoba::train::dist;
using test::world;

namespace {

// Two units of three parameters whose sizes few numbers of ranks divide; values count up from 1.
struct Held {
  std::vector<at::Tensor> whole;
  std::vector<model::ShardedParameter> parameters;
  Held(const ShardedWeights& shards, at::Device device, bool trained) {
    const std::vector<std::vector<int64_t>> shapes = {{3, 5}, {7}, {1}};
    for (const auto& shape : shapes) {
      const int64_t count = c10::multiply_integers(shape);
      whole.push_back(at::arange(1, count + 1, at::TensorOptions(at::kFloat).device(device)).view(shape));
      parameters.push_back({shards.own_part(whole.back()).requires_grad_(trained), shape, shape.size() == 2});
    }
  }
  std::vector<at::Tensor> parts() const {
    std::vector<at::Tensor> out;
    for (const auto& p : parameters) out.push_back(p.part);
    return out;
  }
};

void check_gather_and_sum(Communicator& ranks, at::Device device) {
  const auto alone = make_single_communicator();
  ShardedWeights shards(ranks, *alone);
  const Held held(shards, device, true), later(shards, device, true);
  REQUIRE(shards.add_unit(held.parameters) == 0);
  REQUIRE(shards.add_unit(later.parameters) == 1);
  for (int step = 0; step < 2; ++step) {
    shards.begin_step();
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) shards.begin_last_pass();
      const auto first = shards.gather(0, held.parts(), at::kBFloat16, false);
      const auto second = shards.gather(1, later.parts(), at::kBFloat16, false);
      at::Tensor loss = at::zeros({}, at::TensorOptions(at::kFloat).device(device));
      for (size_t i = 0; i < first.size(); ++i) {
        CHECK(first[i].scalar_type() == (i == 0 ? at::kBFloat16 : at::kFloat));
        CHECK(at::equal(first[i].to(at::kFloat), held.whole[i]));  // small integers are exact in bf16
        loss = loss + (first[i].to(at::kFloat) * held.whole[i]).sum() * double(ranks.rank() + 1);
      }
      loss = loss + second[1].sum();  // the others of the unit take no part
      loss.backward();
    }
    shards.finish();
    const double sum_of_ranks = 0.5 * ranks.size() * (ranks.size() + 1);
    for (size_t i = 0; i < held.whole.size(); ++i) {
      const at::Tensor expected = shards.own_part(held.whole[i] * 2 * sum_of_ranks);
      CHECK(at::equal(held.parameters[i].part.grad(), expected));
      const double others = i == 1 ? 2.0 * ranks.size() : 0.0;
      CHECK(at::equal(later.parameters[i].part.grad(), shards.own_part(at::full_like(later.whole[i], others))));
    }
  }
  CHECK(shards.early_gathers() == 4);
}

}  // namespace

TEST_CASE("whole parameters come from their parts, gradients go to them", "[mpi]") {
  check_gather_and_sum(world().control(), at::kCPU);
}

TEST_CASE("the same over NCCL on one GPU", "[gpu]") {
  const at::Device device(at::kCUDA, 0);
  const auto alone = make_single_communicator();
  OperationWatch watch;
  const auto ranks = make_nccl_communicator(*alone, device, watch, {0});
  check_gather_and_sum(*ranks, device);
}

TEST_CASE("frozen parameters travel in the type that they are kept in, fp8 too", "[mpi]") {
  const auto alone = make_single_communicator();
  ShardedWeights shards(world().control(), *alone);
  std::vector<at::Tensor> whole, parts;
  std::vector<model::ShardedParameter> unit;
  for (const at::ScalarType dtype : {at::kFloat8_e4m3fn, at::kBFloat16, at::kFloat}) {
    whole.push_back(at::arange(1, 16, at::kFloat).view({3, 5}).to(dtype));
    parts.push_back(shards.own_part(whole.back()));
    unit.push_back({parts.back(), {3, 5}, true});
  }
  shards.add_unit(unit);
  const auto back = shards.gather(0, parts, at::kBFloat16, false);
  for (size_t i = 0; i < back.size(); ++i) {
    CHECK(back[i].scalar_type() == (i == 0 ? at::kFloat8_e4m3fn : at::kBFloat16));
    CHECK(at::equal(back[i].to(at::kFloat), whole[i].to(at::kFloat)));
    CHECK_FALSE(back[i].requires_grad());
  }
}
