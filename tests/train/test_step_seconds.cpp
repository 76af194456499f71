// The time that --dry-run announces, against steps that one H200 took (docs/benchmarks.md).
#include "model/hunyuan/hunyuan_config.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/rank_memory.h"
#include "train/forecast/step_seconds.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

constexpr double kH200Bytes = 139.8 * double(1 << 30);

// As vmoba-bench step --model MODEL computes it.
RootConfig benched(const std::string& name, const std::vector<std::string>& overrides) {
  const bool wan = name == "1.3b" || name == "14b", first = name == model::kHunyuan;
  std::vector<std::string> all = {"train.global_batch=1", "train.micro_batch=1", "train.ema.enabled=false",
                                  "model.recompute=auto"};
  if (!wan) all.insert(all.end(), {"model.architecture=" + name, "text.max_tokens=256", "text.type=hash"});
  if (!wan && !first) all.emplace_back("model.image_dim=1152");
  all.insert(all.end(), overrides.begin(), overrides.end());
  RootConfig config = load_root_config("", all);
  model::ModelConfig& m = config.model;
  m.layers = name == "1.3b" ? 30 : name == "14b" ? 40 : first ? 20 : 54;
  m.heads = name == "1.3b" ? 12 : name == "14b" ? 40 : first ? 24 : 16;
  m.head_dim = 128;
  m.in_channels = wan || first ? 16 : 65;
  m.out_channels = wan || first ? 16 : 32;
  m.text_dim = wan || first ? 4096 : 3584;
  m.patch_size = wan || first ? std::vector<int64_t>{1, 2, 2} : std::vector<int64_t>{1, 1, 1};
  if (wan) m.own<model::WanConfig>().ffn_dim = name == "1.3b" ? 8960 : 13824;
  return config;
}

double step_seconds(const RootConfig& config, const attention::Grid& grid, double density) {
  const KernelRates rates = h200_rates();
  const double free = double(usable_bytes(int64_t(kH200Bytes))) - double(rank_memory(config, {}, grid, 1).total());
  const model::RecomputePlan plan = forecast_plan(config, grid, 1, 1, free);
  return sample_seconds(config, grid, density, plan, rates).total() + optimizer_seconds(config, rates);
}

struct MeasuredStep {
  std::string model;
  std::vector<std::string> keys;
  attention::Grid grid;
  double density, seconds, within;
};

std::vector<std::string> cubes(const std::string& chunk, std::vector<std::string> more = {}) {
  more.insert(more.end(), {"attention.preset=cubes", "attention.spatiotemporal_chunk=" + chunk});
  return more;
}

}  // namespace

TEST_CASE("the time of a step is what an H200 took") {
  const attention::Grid clip{24, 36, 64}, few{21, 20, 32}, many{21, 45, 80}, long_clip{49, 64, 64}, of_14b{21, 30, 52},
      of_hunyuan{33, 45, 80}, of_15{31, 45, 80};
  const std::string full = "attention.backend=full", block = "model.recompute=block", lora = "lora.rank=32";
  const std::string fp8 = "model.weights_dtype=fp8", bf16 = "model.weights_dtype=bf16";
  const std::string moments = "train.optimizer.type=adamw_8bit";
  const std::string hunyuan = model::kHunyuan, hunyuan15 = model::kHunyuan15;
  const std::vector<MeasuredStep> steps = {
      {"1.3b", {full}, clip, 1, 4.45, 0.05},
      {"1.3b", {full, block}, clip, 1, 5.567, 0.05},
      {"1.3b", {full, "model.recompute=attention"}, clip, 1, 4.663, 0.05},
      {"1.3b", {block}, clip, 0.194, 2.140, 0.05},
      {"1.3b", {}, clip, 0.194, 1.692, 0.05},
      {"1.3b", {}, clip, 0.073, 1.228, 0.05},
      {"1.3b", cubes("[4, 4, 4]"), clip, 0.2, 1.803, 0.05},
      {"1.3b", cubes("[4, 4, 4]"), clip, 0.05, 1.117, 0.05},
      {"1.3b", cubes("[4, 4, 4]", {"model.linear_compute=fp8"}), clip, 0.05, 0.900, 0.05},
      {"1.3b", {}, few, 0.2, 0.281, 0.05},
      {"1.3b", cubes("[3, 5, 4]"), many, 0.2, 3.16, 0.05},
      {"1.3b", cubes("[7, 4, 2]"), long_clip, 0.2, 17.4, 0.07},
      {"14b", cubes("[3, 5, 4]", {lora, fp8, block}), of_14b, 0.2, 6.44, 0.05},
      {"14b", cubes("[3, 5, 4]", {lora, fp8}), of_14b, 0.2, 5.26, 0.05},
      {"14b", cubes("[3, 5, 4]", {bf16, moments}), of_14b, 0.2, 6.44, 0.05},
      {hunyuan, {full, lora, bf16, block}, of_hunyuan, 1, 93.0, 0.05},
      {hunyuan, {full, lora, bf16, "model.recompute=attention"}, of_hunyuan, 1, 74.4, 0.05},
      {hunyuan, cubes("[3, 5, 4]", {lora, bf16}), of_hunyuan, 0.2, 30.0, 0.05},
      {hunyuan, cubes("[3, 5, 4]", {lora, bf16, block}), of_hunyuan, 0.2, 34.9, 0.05},
      {hunyuan, cubes("[3, 5, 4]", {lora, bf16, block}), of_hunyuan, 0.05, 17.2, 0.05},
      {hunyuan, cubes("[3, 5, 8]", {lora, bf16}), of_hunyuan, 0.203, 26.14, 0.05},
      {hunyuan, cubes("[3, 5, 8]", {lora, bf16}), of_hunyuan, 0.054, 14.28, 0.05},
      {hunyuan15, {full, lora, bf16, block}, of_15, 1, 50.3, 0.05},
      {hunyuan15, {full, lora, bf16, "model.recompute=attention"}, of_15, 1, 40.1, 0.05},
      {hunyuan15, cubes("[4, 3, 10]", {lora, bf16}), of_15, 0.204, 13.7, 0.05},
      {hunyuan15, cubes("[4, 3, 10]", {lora, bf16}), of_15, 0.054, 6.80, 0.05},
      {hunyuan15, cubes("[4, 3, 5]", {bf16, block, moments}), of_15, 0.2, 19.0, 0.05},
      {hunyuan15, cubes("[4, 3, 5]", {bf16, block, moments}), of_15, 0.05, 8.96, 0.05},
  };
  for (const MeasuredStep& step : steps) {
    const double seconds = step_seconds(benched(step.model, step.keys), step.grid, step.density);
    INFO(step.model << " " << step.grid.tokens() << " tokens, density " << step.density << ": " << seconds << " of "
                    << step.seconds << " s, " << 100 * (seconds / step.seconds - 1) << " %");
    CHECK(std::abs(seconds / step.seconds - 1) < step.within);
  }
}

TEST_CASE("the time of a step by hand: products, attention, what is computed again") {
  KernelRates rates{};
  rates.products = rates.fp8_products = rates.few_keys = rates.muon = 1e12;
  rates.full = rates.full_narrow = rates.rows = rates.pieces = rates.pairs = {{1e12, 1e12}, {1e12, 1e12}};
  rates.bytes = rates.cells = 1e30;
  const attention::Grid grid{24, 36, 64};
  RootConfig config = benched("1.3b", {"attention.backend=full", "model.recompute=none"});
  const auto seconds = [&] { return sample_seconds(config, grid, 1, forecast_plan(config, grid, 1, 1, 0), rates); };
  const double S = 55296, E = 1536, T = 512;
  const StepSeconds kept = seconds();
  CHECK(kept.attention == Approx(30 * 3.5 * 4 * S * S * E / 1e12));
  CHECK(kept.few_keys == Approx(30 * 3.5 * 4 * S * T * E / 1e12));
  CHECK(kept.again == 0);
  const double flops = model::forward_flops(config.model, config.attention, grid, 512, 1);
  const double products = 3 * flops / 1e12 - (kept.attention + kept.few_keys) * 3 / 3.5;
  CHECK(kept.products == Approx(products).epsilon(0.03));  // rounds of tiles
  config.model.recompute = model::Recompute::kBlock;
  const StepSeconds block = seconds();
  CHECK(block.attention == Approx(kept.attention * 4.5 / 3.5));
  CHECK(block.again == Approx(block.total() - kept.total()));
  CHECK(block.backward - block.again == Approx(kept.backward));
  config.model.recompute = model::Recompute::kAttention;
  CHECK(seconds().attention == Approx(kept.attention));
  CHECK(seconds().few_keys == Approx(block.few_keys));
  // An adapter behind the last map: nothing before it has a backward.
  config = benched(
      "1.3b", {"attention.backend=full", "model.recompute=none", "lora.rank=4", "lora.targets=[blocks.29.ffn.net.2]"});
  CHECK(seconds().attention == Approx(kept.attention / 3.5));
  // Few tokens: full attention, whatever the configuration's density is.
  const attention::Grid small{3, 16, 16};
  config = benched("1.3b", {"model.recompute=none"});
  CHECK(sample_seconds(config, small, 0.2, {}, rates).attention == Approx(30 * 3.5 * 4 * 768 * 768 * E / 1e12));
}

TEST_CASE("the time of an update is that of the bytes it moves, and of Muon's products") {
  KernelRates rates{};
  rates.bytes = 1e12;
  rates.muon = 1e12;
  const double values = double(model_sizes(benched("1.3b", {})).parameters);
  CHECK(optimizer_seconds(benched("1.3b", {}), rates) == Approx(36 * values / 1e12));
  const std::vector<std::string> compact = {"train.optimizer.type=adamw_8bit", "model.weights_dtype=bf16"};
  CHECK(optimizer_seconds(benched("1.3b", compact), rates) == Approx(14 * values / 1e12));
  const double muon = optimizer_seconds(benched("1.3b", {"train.optimizer.type=muon"}), rates) - 36 * values / 1e12;
  const double e = 1536, f = 8960;
  CHECK(muon == Approx(30 * 5 * (8 * 6 * e * e * e + 2 * (4 * e * e * f + 2 * e * e * e)) / 1e12));
}
