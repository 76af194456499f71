#include "model/recompute_plan.h"

#include <ATen/ATen.h>

#include <set>

#include "core/check.h"
#include "model/adapter/lora.h"
#include "model/wan_fixture.h"

namespace {

using namespace vmoba::model;

const std::vector<std::string> kResults = {"attn1.to_q",     "attn1.to_k", "attn1.to_v", "attn1",
                                           "attn1.to_out.0", "attn2.to_q", "attn2",      "attn2.to_out.0",
                                           "ffn.net.0.proj", "ffn.net.2"};

std::vector<RecomputePolicy> everything_and_nothing() {
  return {{true}, {true, {kResults.begin(), kResults.end()}}};
}

std::vector<RecomputePolicy> policies() {
  std::vector<RecomputePolicy> out = everything_and_nothing();
  for (const std::string& name : kResults) out.push_back({true, {name}});
  return out;
}

void check_same(const std::map<std::string, at::Tensor>& found, const std::map<std::string, at::Tensor>& expected) {
  for (const auto& [key, value] : expected) {
    INFO(key);
    REQUIRE(found.at(key).defined() == value.defined());
    if (value.defined()) CHECK(found.at(key).equal(value));
  }
}

vmoba::attention::AttentionConfig tiles() {
  auto config = small_vmoba();
  config.part<vmoba::attention::VmobaConfig>().query_tile = vmoba::attention::QueryTile::kBlock;
  return config;
}

// Results of every block of a model with 3 layers, 2 heads of 20 and a feed-forward of 56, 1 sample of 2x4x4 tokens.
struct Sizes {
  static constexpr double S = 32, E = 40, F = 56, L = 7;
};

ModelConfig three_layers() {
  ModelConfig config = wan_t2v_config();
  config.weights.clear();
  config.layers = 3;
  config.compute_dtype = "bf16";
  return config;
}

FittedPlan fit(double bytes, bool whole_blocks = false) {
  return fit_plan(three_layers(), full_attention(), {2, 4, 4}, {1, 1, int64_t(Sizes::L), whole_blocks}, bytes);
}

}  // namespace

TEST_CASE("whatever is kept of a block, no bit of output and gradients changes") {
  const std::vector<ModelConfig> configs = {wan_t2v_config(), wan_i2v_config(), wan_ti2v_config()};
  for (const ModelConfig& config : configs) {
    const SafetensorsFile fixture(config.weights + ".safetensors");
    for (const auto& attention : {full_attention(), small_vmoba(), tiles()}) {
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        const auto model = make_dit(config, attention, 0, at::kCPU);
        const auto plain = run_wan(*model, fixture, {dtype});
        // Each name alone once; the models differ in nothing that depends on it.
        const bool names = &config == &configs.front() && dtype == at::kBFloat16;
        for (const RecomputePolicy& policy : names ? policies() : everything_and_nothing()) {
          INFO(config.weights << " " << attention.backend << " " << c10::toString(dtype) << " " << policy.kept.size()
                              << " " << (policy.kept.empty() ? "" : *policy.kept.begin()));
          check_same(run_wan(*model, fixture, {dtype, false, every_block(config, policy)}), plain);
        }
      }
    }
  }
}

TEST_CASE("whatever is kept of a block with adapters, their gradients are the same") {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  const ModelConfig config = wan_t2v_config();
  const auto model = make_dit(config, full_attention(), 0, at::kCPU);
  std::vector<Adapter> adapters;
  for (const char* map : {"attn1.to_q", "attn1.to_out.0", "attn2.to_q", "ffn.net.0.proj", "ffn.net.2"}) {
    const at::IntArrayRef shape = [&] {
      for (const Parameter& p : model->parameters())
        if (p.name == fmt::format("blocks.1.{}.weight", map)) return p.shape();
      FAIL("no such map");
      return at::IntArrayRef();
    }();
    const auto values = [&](at::IntArrayRef sizes) { return at::linspace(-0.3, 0.5, sizes[0] * sizes[1]).view(sizes); };
    adapters.push_back({fmt::format("blocks.1.{}", map), {values({3, shape[1]}), values({shape[0], 3}), 0.7}});
  }
  model->attach(adapters);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto gradients = [&](const RecomputePlan& plan) {
      for (const Parameter& p : model->trainable()) p.tensor.mutable_grad() = at::Tensor();
      auto results = run_wan(*model, fixture, {dtype, false, plan});
      for (const Parameter& p : model->trainable()) {
        results["grad." + p.name] = p.tensor.grad();
        REQUIRE(p.tensor.grad().abs().max().item<double>() > 0);
      }
      return results;
    };
    const auto plain = gradients({});
    for (const RecomputePolicy& policy : policies()) {
      INFO(c10::toString(dtype) << " " << (policy.kept.empty() ? "" : *policy.kept.begin()));
      check_same(gradients(every_block(config, policy)), plain);
    }
  }
}

TEST_CASE("every result that a plan may keep is one that blocks keep") {
  const auto everything = fit(1e12).plan.of_block(1).kept;
  CHECK(everything == std::set<std::string>(kResults.begin(), kResults.end()));
}

TEST_CASE("a plan keeps what saves most work for its bytes, block by block, within the bytes given") {
  const double S = Sizes::S, E = Sizes::E, F = Sizes::F, bytes = 2;  // bf16
  const double of_width = bytes * S * E, all = 9 * of_width + bytes * S * F;
  CHECK(fit(0).bytes == 0);
  for (int64_t i = 0; i < 3; ++i) CHECK(fit(0).plan.of_block(i).kept.empty());
  CHECK(fit(0).plan.of_block(0).enabled);
  CHECK(fit(1e12).bytes == 3 * all);
  // Work for each value: self attention 1.5 * 4 S = 192, the second map of the feed-forward 2 F = 112, maps of the
  // width 2 E = 80, attention over 7 text tokens 1.5 * 4 L = 42.
  CHECK(fit(of_width).plan.of_block(0).kept == std::set<std::string>{"attn1"});
  CHECK(fit(of_width).plan.of_block(1).kept.empty());
  const FittedPlan five = fit(5 * of_width);
  CHECK(five.bytes == 5 * of_width);
  CHECK(five.plan.of_block(0).kept == std::set<std::string>{"attn1", "ffn.net.2"});
  CHECK(five.plan.of_block(1).kept == std::set<std::string>{"attn1", "ffn.net.2"});
  CHECK(five.plan.of_block(2).kept == std::set<std::string>{"attn1"});
  CHECK(five.plan.describe() == "attn1 of 3 blocks; ffn.net.2 of 2 blocks");
  const FittedPlan nearly = fit(3 * all - 1);
  CHECK(nearly.bytes == 3 * all - of_width);
  CHECK_FALSE(nearly.plan.of_block(2).kept.contains("attn2"));
}

TEST_CASE("where all results fit, first blocks are not computed again") {
  const double S = Sizes::S, E = Sizes::E, F = Sizes::F;
  const double results = 2 * S * (9 * E + F);
  const double whole = 2 * S * (16 * E + 2 * F);  // as forecasts count them, without the input
  const FittedPlan two = fit(results + 2 * whole, /*whole_blocks=*/true);
  CHECK(two.bytes == results + 2 * whole);
  CHECK_FALSE(two.plan.of_block(0).enabled);
  CHECK_FALSE(two.plan.of_block(1).enabled);
  CHECK(two.plan.of_block(2).enabled);
  CHECK(two.plan.of_block(2).kept.size() == kResults.size());
  CHECK(two.plan.describe().starts_with("everything of 2 blocks; "));
  CHECK(fit(3 * results, /*whole_blocks=*/true).plan.of_block(0).enabled);
  CHECK(fit(1e12, /*whole_blocks=*/true).bytes == 3 * whole);
}

TEST_CASE("bytes of all results that a plan may keep") {
  const double results = 2 * Sizes::S * (9 * Sizes::E + Sizes::F);
  CHECK(result_bytes(three_layers(), full_attention(), {2, 4, 4}, {1, 1, int64_t(Sizes::L)}) == 3 * results);
  CHECK(result_bytes(three_layers(), full_attention(), {2, 4, 4}, {2, 0.25, int64_t(Sizes::L)}) == 1.5 * results);
}

TEST_CASE("two ranks that share a sample keep half of all, and attention's result by heads and by rows") {
  constexpr double S = Sizes::S, E = Sizes::E, F = Sizes::F;
  const double alone = 2 * S * (16 * E + 2 * F), sent_back = 2 * S * E;
  const PassShape half{1, 0.5, int64_t(Sizes::L), /*whole_blocks=*/true};
  const FittedPlan plan = fit_plan(three_layers(), full_attention(), {2, 4, 4}, half, 1e12);
  CHECK(plan.bytes == 3 * (alone + sent_back) / 2);
}

TEST_CASE("model.recompute decides what is kept") {
  ModelConfig config = three_layers();
  config.recompute = Recompute::kNone;
  CHECK_FALSE(recompute_plan(config).of_block(2).enabled);
  for (const Recompute mode : {Recompute::kBlock, Recompute::kAuto}) {
    config.recompute = mode;
    CHECK(recompute_plan(config).of_block(2).enabled);
    CHECK(recompute_plan(config).of_block(2).kept.empty());
  }
  config.recompute = Recompute::kAttention;
  CHECK(recompute_plan(config).of_block(2).kept == std::set<std::string>{"attn1"});
}
