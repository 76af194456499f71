// The step that the trainer runs and vmoba-bench times, on a clip in memory: what it reports, and that weights stay as
// they are where loss or gradients are not finite, though nobody waits for these before the update.
#include "train/training_step.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "core/random.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "train/step_run.h"

using namespace vmoba;
using namespace vmoba::train;
using test::ClipInMemory;
using test::StepRun;
using test::world;

namespace {

RootConfig small_config(const std::string& backend) {
  RootConfig config;
  config.model.layers = 2;
  config.model.heads = 2;
  config.model.head_dim = 12;
  config.model.own<model::WanConfig>().ffn_dim = 40;
  config.model.in_channels = config.model.out_channels = 4;
  config.model.text_dim = 8;
  config.model.own<model::WanConfig>().freq_dim = 16;
  config.model.compute_dtype = "fp32";
  config.attention.backend = backend;
  config.parallel.shard = world().size();
  config.train.global_batch = 2 * world().size();  // two passes of each rank
  return config;
}

EncodedBatch clip_of(double value) {
  EncodedBatch clip;
  clip.x0_BCTHW = at::full({1, 4, 2, 4, 6}, value);
  clip.text.tokens_BLE = at::ones({1, 3, 8});
  return clip;
}

std::vector<at::Tensor> weights_of(const StepRun& run) {
  std::vector<at::Tensor> out;
  for (const model::Parameter& p : run.experts.front().dit->trainable()) out.push_back(p.tensor.detach().clone());
  return out;
}

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!at::equal(a[i], b[i])) return false;
  return true;
}

}  // namespace

TEST_CASE("a step changes weights and then says what it computed", "[mpi]") {
  const RootConfig config = small_config("full");
  StepRun run(config);
  ClipInMemory clip(run.config, clip_of(0.5));
  double first = 0, last = 0;
  for (int64_t i = 0; i < 20; ++i) {
    const auto before = weights_of(run);
    REQUIRE(run.step.compute({i, i * config.train.global_batch, 0}, clip));
    CHECK(equal(before, weights_of(run)));
    CHECK_FALSE(run.step.anyone_gave_up());
    run.step.update(1e-2);
    CHECK_FALSE(equal(before, weights_of(run)));
    const TrainingStep::Numbers numbers = run.step.numbers();
    REQUIRE(numbers.losses.size() == 2);
    REQUIRE(numbers.norms.size() == 1);
    CHECK(numbers.norms[0] > 0);
    last = numbers.losses[0] + numbers.losses[1];
    if (i == 0) first = last;
    const double pairs = 12 * 12;  // tokens of 2 x 2 x 3 patches, of each layer, head and pass
    CHECK(numbers.attended.by_partition.at("full").first == 2 * 2 * 2 * pairs);
    CHECK(run.step.tokens() == 2 * 12);
    CHECK(run.step.inputs().clips.size() == 2);
    const double forward = model::forward_flops(config.model, config.attention, {2, 2, 3}, 3, 1);
    CHECK(run.step.flops(numbers.attended) == Approx(2 * 3 * forward));
  }
  CHECK(last < first);
}

TEST_CASE("what waits in the host's memory changes no bit of what is trained", "[mpi]") {
  const auto trained = [](model::Offload offload, model::Recompute recompute, double distilled) {
    RootConfig config = small_config("full");
    config.parallel.shard = 1;
    config.model.layers = 4;
    config.model.offload = offload;
    config.model.recompute = recompute;
    config.model.weights_dtype = "fp8";
    config.model.compute_dtype = "bf16";
    config.lora.rank = 2;
    config.lora.targets = {"to_q", "ffn.net.2"};
    config.train.distill.weight = distilled;
    StepRun run(config);
    for (const model::Parameter& p : run.experts.front().dit->parameters()) {
      if (p.name != "proj_out.weight") continue;  // begins with zeros, through which no gradient comes
      const at::NoGradGuard no_grad;
      p.tensor.copy_(at::linspace(-1, 1, p.tensor.numel()).view(p.tensor.sizes()));
    }
    ClipInMemory clip(run.config, clip_of(0.5));
    for (int64_t i = 0; i < 4; ++i) {
      REQUIRE(run.step.compute({i, i * config.train.global_batch, 0}, clip));
      run.step.update(1e-2);
      CHECK(run.step.numbers().norms[0] > 0);
    }
    return weights_of(run);
  };
  using model::Offload, model::Recompute;
  const auto plain = trained(Offload::kNone, Recompute::kNone, 0),
             taught = trained(Offload::kNone, Recompute::kNone, 0.5);
  CHECK_FALSE(equal(plain, taught));
  for (const Recompute recompute : {Recompute::kNone, Recompute::kAttention, Recompute::kBlock})
    for (const Offload offload : {Offload::kWeights, Offload::kActivations, Offload::kBoth}) {
      INFO(choice_word(recompute) << " " << choice_word(offload));
      CHECK(equal(trained(offload, recompute, 0), plain));
      CHECK(equal(trained(offload, recompute, 0.5), taught));  // the base without adapters between two steps
    }
}

TEST_CASE("a loss that is not finite changes no weight, in any optimiser", "[mpi]") {
  for (const char* type : {"adamw", "adamw_8bit", "muon"}) {
    INFO(type);
    RootConfig config = small_config("full");
    config.train.optimizer.type = type;
    StepRun run(config);
    ClipInMemory good(run.config, clip_of(0.5)), bad(run.config, clip_of(std::numeric_limits<double>::quiet_NaN()));
    REQUIRE(run.step.compute({0, 0, 0}, good));
    run.step.update(1e-2);
    run.step.numbers();
    const auto before = weights_of(run);
    REQUIRE(run.step.compute({1, config.train.global_batch, 0}, bad));
    run.step.update(1e-2);
    CHECK_FALSE(std::isfinite(run.step.numbers().losses[0]));
    CHECK(equal(before, weights_of(run)));
  }
}

TEST_CASE("weights in bf16 learn", "[mpi]") {
  for (const char* type : {"adamw", "adamw_8bit", "muon"}) {
    INFO(type);
    RootConfig config = small_config("full");
    config.model.weights_dtype = "bf16";
    config.train.optimizer.type = type;
    StepRun run(config);
    ClipInMemory clip(run.config, clip_of(0.5));
    std::vector<double> losses;
    for (int64_t i = 0; i < 40; ++i) {
      REQUIRE(run.step.compute({i, 0, 0}, clip));
      run.step.update(3e-3);
      const TrainingStep::Numbers numbers = run.step.numbers();
      losses.push_back(numbers.losses[0] + numbers.losses[1]);
    }
    const auto mean = [&](size_t begin) {
      double sum = 0;
      for (size_t i = begin; i < begin + 10; ++i) sum += losses[i];
      return sum;
    };
    CHECK(mean(30) < 0.7 * mean(0));
    for (const model::Parameter& p : run.experts.front().dit->trainable())
      CHECK((p.tensor.scalar_type() == at::kBFloat16) == (p.shape().size() >= 2 && p.name.ends_with(".weight")));
  }
}
