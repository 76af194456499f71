// Held-out clips, their noise, evaluations and paired differences.
#include <ATen/ATen.h>

#include <cmath>

#include "config/run_plan.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/cache/lazy_encoders.h"
#include "train/validation/evaluation.h"
#include "train/validation/paired_difference.h"

using namespace vmoba;
using namespace vmoba::train;
using vmoba::test::contains;
using vmoba::test::refusal_of;

TEST_CASE("a constant relative difference has an interval without width") {
  const std::vector<double> base = {0.2, 0.5, 0.9, 0.4};
  std::vector<double> more;
  for (const double loss : base) more.push_back(1.25 * loss);
  const PairedDifference difference = paired_difference(more, base);
  CHECK(difference.percent == Approx(25));
  CHECK(difference.low == Approx(25));
  CHECK(difference.high == Approx(25));
  CHECK(difference.better == 0);
  const PairedDifference none = paired_difference(base, base);
  CHECK(none.percent == 0);
  CHECK(none.low == 0);
  CHECK(none.high == 0);
  CHECK(paired_difference(base, more).better == 1);
}

TEST_CASE("the interval of a bootstrap over many clips is that of the normal distribution") {
  // Differences of +1 and -1 by turns, on losses of 100: the mean of n draws deviates by 1 / sqrt(n) percent.
  constexpr int kClips = 400;
  std::vector<double> base(kClips, 100.0), losses;
  for (int i = 0; i < kClips; ++i) losses.push_back(i % 2 == 0 ? 101 : 99);
  const PairedDifference difference = paired_difference(losses, base);
  CHECK(difference.percent == Approx(0).margin(1e-9));
  const double half = 1.96 / std::sqrt(double(kClips));
  CHECK(std::abs(difference.low + half) < 0.06 * half);  // 4,000 draws place a 2.5 % point to about 2 %
  CHECK(std::abs(difference.high - half) < 0.06 * half);
  CHECK(difference.better == 0.5);
  CHECK(difference.low == paired_difference(losses, base).low);
  CHECK_THROWS_AS(paired_difference(losses, {1.0}), Error);
  CHECK_THROWS_AS(paired_difference({}, {}), Error);
}

TEST_CASE("the noise of a held-out clip is a function of seed, clip and level") {
  const at::Tensor noise = held_out_noise(1, "a.mp4@0.000", 0.5, {4, 3, 2, 2});
  CHECK(at::equal(noise, held_out_noise(1, "a.mp4@0.000", 0.5, {4, 3, 2, 2})));
  for (const at::Tensor& other :
       {held_out_noise(2, "a.mp4@0.000", 0.5, {4, 3, 2, 2}), held_out_noise(1, "a.mp4@1.000", 0.5, {4, 3, 2, 2}),
        held_out_noise(1, "a.mp4@0.000", 0.25, {4, 3, 2, 2})})
    CHECK_FALSE(at::allclose(noise, other, 0.1, 0.1));
  const at::Tensor many = held_out_noise(1, "b.mp4@0.000", 0.5, {100000});
  CHECK(std::abs(many.mean().item<double>()) < 5 / std::sqrt(1e5));
  CHECK(std::abs(many.var().item<double>() - 1) < 5 * std::sqrt(2 / 1e5));
}

namespace {

Evaluation two_settings() {
  Evaluation out{{"a@0.000", "b@0.000"}, {0.25, 0.75}, 5, {}};
  out.settings.push_back({"dense", {{1.0, 2.0}, {3.0, 6.0}}, 1, {1, 1}});
  out.settings.push_back({"sparse", {{1.1, 2.2}, {3.3, 6.6}}, 0.2, {0.1, 0.3}});
  return out;
}

}  // namespace

TEST_CASE("an evaluation is written, read back as a baseline and shown") {
  const Evaluation evaluation = two_settings();
  CHECK(evaluation.settings[0].mean() == 3);
  CHECK(evaluation.settings[0].by_clip() == std::vector<double>{1.5, 4.5});
  CHECK(evaluation.settings[0].of_level(1) == std::vector<double>{2, 6});
  const std::string json = evaluation_to_json(evaluation, {"dense", evaluation.settings[0]});
  CHECK(contains(json, "\"baseline\": \"dense\""));
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/eval.json";
  {
    FILE* file = fopen(path.c_str(), "w");
    fputs(json.c_str(), file);
    fclose(file);
  }
  CHECK(read_baseline(path, "", evaluation).losses.losses == evaluation.settings[0].losses);
  CHECK(read_baseline(path, "sparse", evaluation).losses.losses == evaluation.settings[1].losses);
  CHECK(contains(refusal_of([&] { read_baseline(path, "other", evaluation); }), "dense, sparse"));
  Evaluation seeded = evaluation;
  seeded.seed = 6;
  CHECK(contains(refusal_of([&] { read_baseline(path, "", seeded); }), "seed"));
  Evaluation fewer = evaluation;
  fewer.clips.pop_back();
  CHECK(contains(refusal_of([&] { read_baseline(path, "", fewer); }), "clips"));
  CHECK(contains(refusal_of([&] { read_baseline(test::fixtures() + "/train/tiny.yaml", "", evaluation); }),
                 "vmoba-eval"));
  const std::string text = evaluation_to_text(evaluation, {"dense", evaluation.settings[0]});
  CHECK(contains(text, "+10.00 [+10.00, +10.00]"));
  CHECK(contains(text, "noise 0.25"));
}

TEST_CASE("held-out clips are split off the plan of a run, and never trained on") {
  RootConfig config =
      load_root_config(test::fixtures() + "/train/tiny.yaml", {"data.path=" + test::source_dir() + "/assets/clips"});
  const RunPlan without = plan_run(config);
  CHECK(without.held_out.clips.empty());
  CHECK(data::plan_to_json(without.all()) == data::plan_to_json(without.training));
  config.validation.holdout = 0.3;
  config.validation.clips = 2;
  const RunPlan plan = plan_run(config);
  CHECK(plan.training.clips.size() + 3 == without.training.clips.size());
  REQUIRE(plan.held_out.clips.size() == 2);
  for (const data::Clip& held : plan.held_out.clips)
    for (const data::Clip& clip : plan.training.clips) CHECK(held.path != clip.path);
  CHECK(plan.all().clips.size() == plan.training.clips.size() + 2);
  CHECK(plan_held_out(config).clips[0].path == plan.held_out.clips[0].path);
  // The same files named by path: what is in both is not trained on.
  config.validation.holdout = 0;
  config.validation.path = test::source_dir() + "/assets/clips";
  CHECK(contains(refusal_of([&] { plan_run(config); }), "validate.holdout"));
  config.validation.holdout = 0.1;
  CHECK(contains(refusal_of([&] { config.validate(); }), "validate.path"));
  config.validation = {};
  CHECK(contains(refusal_of([&] { plan_held_out(config); }), "validate.path"));
  config.validation.sigmas = {0.5, 1.5};
  CHECK(contains(refusal_of([&] { config.validate(); }), "validate.sigmas"));
  config.validation.sigmas = {0.5, 0.5};
  CHECK(contains(refusal_of([&] { config.validate(); }), "validate.sigmas"));
}

TEST_CASE("a held-out clip that cannot be decoded says why and keeps its shape") {
  RootConfig config = load_root_config(
      test::fixtures() + "/train/tiny.yaml",
      {"data.path=" + test::source_dir() + "/assets/clips", "validate.holdout=0.2", "validate.clips=2"});
  data::ClipPlan plan = plan_held_out(config);
  const LazyCodec codec(config.codec, at::kCPU);
  const CachedTextEncoder text(config, at::kCPU, nullptr);
  const HeldOutClip good = encode_held_out({config, plan, codec, text, nullptr, at::kCPU}, 0);
  CHECK(good.failure.empty());
  plan.clips[0].path = test::fixtures() + "/train/tiny.yaml";
  const HeldOutClip bad = encode_held_out({config, plan, codec, text, nullptr, at::kCPU}, 0);
  CHECK_FALSE(bad.failure.empty());
  CHECK(bad.encoded.at("latents").sizes() == good.encoded.at("latents").sizes());
}
