// Optimisers whose parameters lie in parts on the ranks change them as one rank does: the same bits for the same
// gradients.
#include <ATen/ATen.h>

#include "core/random.h"
#include "support/catch.h"
#include "train/dist/dist_world.h"
#include "train/dist/sharded_weights.h"
#include "train/optim/optimizer.h"

using namespace vmoba;
using namespace vmoba::train;
using test::world;

namespace {

at::Tensor normals(const std::string& stream, uint64_t index, at::IntArrayRef shape) {
  const at::Tensor out = at::empty(shape, at::kFloat);
  fill_normal(3, stream, index, out.mutable_data_ptr<float>(), out.numel());
  return out;
}

struct Named {
  const char* name;
  std::vector<int64_t> shape;
};
// More matrices of one shape than ranks, and sizes that neither ranks nor blocks divide.
const Named kNamed[] = {
    {"blocks.0.q.weight", {70, 90}}, {"blocks.0.k.weight", {70, 90}}, {"blocks.1.q.weight", {70, 90}},
    {"blocks.2.q.weight", {70, 90}}, {"blocks.3.q.weight", {70, 90}}, {"blocks.0.up.weight", {30, 50}},
    {"head.weight", {61, 83}},       {"blocks.0.bias", {90}},         {"blocks.0.one", {1}}};

// torch's fused AdamW rounds the values behind the last whole vector of a part in another way: in each of three steps
// of rate 1e-2 some units in the last place of the value and of the update.
bool nearly_equal(const at::Tensor& found, const at::Tensor& expected) {
  return at::allclose(found, expected, /*rtol=*/3 * 0x1p-22, /*atol=*/3 * 1e-2 * 0x1p-21);
}

}  // namespace

TEST_CASE("ranks that hold parts update as one rank does", "[mpi]") {
  dist::Communicator& ranks = world().control();
  const auto alone = dist::make_single_communicator();
  for (const char* type : {"adamw", "adamw_8bit", "muon"}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      INFO(ranks.size() << " ranks, " << type << ", " << dtype);
      OptimizerConfig config;
      config.type = type;
      const dist::ShardedWeights shards(ranks, *alone, values_per_unit(config, dtype == at::kBFloat16));
      std::vector<model::Parameter> whole, parts;
      for (const Named& n : kNamed) {
        const at::Tensor value = normals(n.name, 0, n.shape).to(dtype);
        whole.push_back({n.name, value.clone().requires_grad_()});
        parts.push_back({n.name, shards.keep(value).requires_grad_(), {}, n.shape});
      }
      Placement placement{9, ranks.rank(), ranks.size(),
                          [&](const at::Tensor& in, const at::Tensor& out) { ranks.all_to_all(in, out)->wait(); }};
      const auto together = make_optimizer(config, parts, placement),
                 single = make_optimizer(config, whole, Placement{9});
      for (uint64_t step = 1; step < 4; ++step) {
        for (size_t i = 0; i < whole.size(); ++i) {
          // Ranks that hold parts sum gradients in fp32.
          const at::Tensor gradient = (0.1 * normals(whole[i].name, step, whole[i].tensor.sizes())).to(dtype);
          whole[i].tensor.mutable_grad() = gradient;
          parts[i].tensor.mutable_grad() = shards.keep(gradient.to(at::kFloat));
        }
        together->step(1e-2);
        single->step(1e-2);
      }
      for (size_t i = 0; i < whole.size(); ++i) {
        INFO(whole[i].name);
        const at::Tensor found = parts[i].tensor.detach(), expected = shards.keep(whole[i].tensor.detach());
        CHECK((std::string(type) == "adamw" && dtype == at::kFloat ? nearly_equal(found, expected)
                                                                   : at::equal(found, expected)));
      }
    }
  }
}
