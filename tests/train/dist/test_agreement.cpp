// What ranks find that compare what they have: facts, and copies of the training state.
#include <ATen/ATen.h>

#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "train/agreement.h"
#include "train/dist/dist_world.h"

using namespace vmoba;
using namespace vmoba::train;
using test::contains;

namespace {

std::vector<Expert> tiny_experts() {
  model::ModelConfig config;
  config.layers = 1;
  config.heads = 2;
  config.head_dim = 6;
  config.own<model::WanConfig>().ffn_dim = 13;
  config.in_channels = config.out_channels = 4;
  config.text_dim = 7;
  config.own<model::WanConfig>().freq_dim = 10;
  Expert expert;
  expert.dit = model::make_dit(config, {}, 1, at::kCPU, nullptr);
  expert.optimizer = make_optimizer(OptimizerConfig{}, expert.dit->trainable());
  expert.ema = std::make_unique<Ema>(EmaConfig{true, 0.9}, expert.dit->trainable());
  std::vector<Expert> out;
  out.push_back(std::move(expert));
  return out;
}

// What the first rank says; the others wait for it as they would for the end of the job.
std::string message_of(dist::World& world, const std::function<void()>& check) {
  std::string message;
  try {
    check();
  } catch (const Error& e) {
    message = e.what();
  }
  if (world.rank() == 0 && !message.empty()) dist::barrier(world.control());
  return message;
}

}  // namespace

TEST_CASE("facts that differ on the last rank are named with both values", "[mpi]") {
  dist::World& world = test::world();
  const bool last = world.size() > 1 && world.rank() == world.size() - 1;
  Facts facts = {{"a", "1"}, {"b", "2"}, {"c", "3"}};
  CHECK(message_of(world, [&] { require_same_facts(world, facts, "mend it"); }).empty());
  if (last) facts[1].second = "4";
  std::string message = message_of(world, [&] { require_same_facts(world, facts, "mend it"); });
  if (world.size() > 1) {
    CHECK(contains(message, "expected b '2' as on rank 0"));
    CHECK(
        contains(message, fmt::format("found b '4' on rank {} ({})", world.size() - 1, world.host(world.size() - 1))));
    CHECK(contains(message, "mend it"));
  }
  // A list that ends early.
  facts = {{"a", "1"}, {"b", "2"}};
  if (last) facts.pop_back();
  message = message_of(world, [&] { require_same_facts(world, facts, "mend it"); });
  if (world.size() > 1) CHECK(contains(message, "expected b '2' as on rank 0"));
  if (world.size() > 1) CHECK(contains(message, "found nothing on rank"));
}

TEST_CASE("one bit of one copy of weights, average or state is found and its rank named", "[mpi]") {
  dist::World& world = test::world();
  dist::MeshSizes sizes;
  sizes.data = world.size();
  const int last = world.size() - 1;
  std::vector<Expert> experts = tiny_experts();
  const auto compare = [&](int64_t step) {
    return message_of(world, [&] { require_same_copies(world, sizes, experts, true, step); });
  };
  CHECK(compare(0).empty());
  const at::NoGradGuard no_grad;
  const at::Tensor weights = experts[0].dit->trainable()[1].tensor.view(-1);
  const at::Tensor average = experts[0].ema->tensors()[2].view(-1);
  const at::Tensor state = experts[0].optimizer->state()[3].tensor.view(-1);
  for (const auto& [values, kind] : {std::pair(weights, "weights '"), {average, "average '"}, {state, "state '"}}) {
    const at::Tensor bits = values.view(at::kInt);
    if (world.rank() == last) bits[0].bitwise_xor_(1);
    const std::string message = compare(12);
    INFO(message);
    if (world.size() > 1) {
      CHECK(contains(message, "after step 12"));
      CHECK(contains(message, kind));
      CHECK(contains(message, fmt::format("different values on rank {}", world.size() > 2 ? last : 1)));
    }
    if (world.rank() == last) bits[0].bitwise_xor_(1);
    CHECK(compare(12).empty());
  }
}
