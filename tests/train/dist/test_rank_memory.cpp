// The bytes that a rank allocates for its part of the training state, counted by the allocator, against the estimate
// that --dry-run prints.
#include <ATen/ATen.h>
#include <malloc.h>

#include <cmath>

#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "train/dist/dist_world.h"
#include "train/dist/mesh.h"
#include "train/expert.h"
#include "train/forecast/rank_memory.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kCounted = false;  // AddressSanitizer's allocator keeps no counts
#else
constexpr bool kCounted = true;
#endif

int64_t allocated_bytes() {
  const auto info = ::mallinfo2();
  return int64_t(info.uordblks + info.hblkhd);
}

// Large enough that some 1,000 tensors' own bookkeeping, about half a KB each, is small beside a rank's values.
RootConfig medium_config() {
  RootConfig config;
  config.model.layers = 6;
  config.model.heads = 4;
  config.model.head_dim = 64;
  config.model.own<model::WanConfig>().ffn_dim = 4096;
  config.model.text_dim = 64;
  config.model.compute_dtype = "fp32";
  config.attention.backend = "full";
  config.train.ema.enabled = true;
  return config;
}

// Of the model with gradients, optimiser and average, after one step.
struct Memory {
  double measured, expected;
};
Memory memory_of(const RootConfig& config, dist::Mesh& mesh) {
  const int64_t before = allocated_bytes();
  std::vector<Expert> experts = make_experts(config, at::kCPU, mesh);
  Expert& expert = experts.front();
  expert.begin_gradients();
  if (expert.sums) expert.sums->begin_last_pass();
  {
    const at::Tensor latents = at::ones({1, config.model.in_channels, 1, 4, 4});
    const model::DitInput input{latents, at::full({1}, 500.0), {{at::ones({1, 2, config.model.text_dim})}}};
    expert.dit->forward(input, {at::kFloat, false, model::recompute_plan(config.model)}).square().mean().backward();
  }
  if (expert.sums) expert.sums->finish();
  expert.update(1e-4, expert.gradient_norm(), 1, {});
  return {double(allocated_bytes() - before), double(rank_memory(config, mesh.sizes(), {0, 1, 1}, 1).state())};
}

}  // namespace

TEST_CASE("a rank's state takes the memory that the documentation says", "[mpi]") {
  dist::World& world = test::world();
  if (!kCounted) return;
  RootConfig config = medium_config();
  struct Case {
    int64_t shard, sequence, lora_rank;
    double distill = 0;
  };
  const int64_t ranks = world.size();
  for (const Case& c :
       {Case{1, 1, 0}, Case{ranks, 1, 0}, Case{1, ranks, 0}, Case{ranks, 1, 4}, Case{ranks, 1, 0, 0.5}}) {
    config.parallel.shard = c.shard;
    config.parallel.sequence = c.sequence;
    config.lora.rank = c.lora_rank;
    config.train.distill.weight = c.distill;
    dist::Mesh mesh(world, config.parallel, at::kCPU);
    memory_of(config, mesh);  // pools of threads and libraries
    const Memory memory = memory_of(config, mesh);
    INFO("shard " << c.shard << ", sequence " << c.sequence << ", LoRA rank " << c.lora_rank << ": " << memory.measured
                  << " bytes measured, " << memory.expected << " expected");
    CHECK(std::abs(memory.measured - memory.expected) < 0.05 * memory.expected);
  }
}
