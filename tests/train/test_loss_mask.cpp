// Masks of the loss: cut from their files exactly as the clips they belong to, resized to latents, and weighing squared
// errors. And epochs of a plan.
#include <ATen/ATen.h>

#include <fstream>

#include "config/epochs.h"
#include "data/dataset.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/flow_matching.h"
#include "train/loss_mask.h"

using namespace vmoba;
using namespace vmoba::train;
using test::contains;

TEST_CASE("a mask's weights are means over the pixels and frames behind each latent") {
  at::Tensor mask_FHW = at::zeros({5, 4, 8}, at::kByte);
  mask_FHW[0].slice(1, 0, 4).fill_(255);  // the left half of the first frame
  mask_FHW[1].fill_(255);
  mask_FHW[2].fill_(51);
  const at::Tensor got = latent_mask(mask_FHW, 2, 2, 2);
  const at::Tensor expected = at::tensor({1.0F, 0.0F, 1.0F, 0.0F, 0.3F, 0.3F, 0.3F, 0.3F}).view({2, 2, 2});
  CHECK(at::allclose(got, expected, 0, 1e-6));

  const at::Tensor still = latent_mask(mask_FHW.slice(0, 0, 1), 3, 1, 2);
  CHECK(at::equal(still, at::tensor({1.0F, 0.0F}).view({1, 1, 2}).expand({3, 1, 2})));
  CHECK_THROWS_AS(latent_mask(mask_FHW, 4, 2, 2), Error);  // 4 frames in 3 parts

  CHECK_FALSE(latent_masks({at::Tensor(), at::Tensor()}, 2, 2, 2).defined());
  const at::Tensor both = latent_masks({at::Tensor(), mask_FHW}, 2, 2, 2);
  CHECK(at::equal(both[0], at::ones({2, 2, 2})));
  CHECK(at::equal(both[1], got));
}

TEST_CASE("a masked loss is the mean of weighed squared errors") {
  NoisyBatch batch;
  batch.target_BCTHW = at::zeros({1, 1, 1, 1, 4});
  batch.weight_B = at::ones({1});
  const at::Tensor velocity = at::tensor({1.0F, 2.0F, 3.0F, 4.0F}).view({1, 1, 1, 1, 4}).requires_grad_(true);
  CHECK(flow_loss(velocity, batch).item<float>() == 7.5F);
  batch.mask_BTHW = at::tensor({1.0F, 0.0F, 0.5F, 0.0F}).view({1, 1, 1, 4});
  const at::Tensor loss = flow_loss(velocity, batch);
  CHECK(loss.item<float>() == 1.375F);  // (1 + 9 / 2) / 4
  loss.backward();
  CHECK(at::equal(velocity.grad().flatten(), at::tensor({0.5F, 0.0F, 0.75F, 0.0F})));
}

TEST_CASE("a mask is cut as its clip: start, rate, crop, mirror") {
  const test::TemporaryFolder folder;
  // Each file is its own mask, so that the mask must be the clip's brightest colour, whatever is drawn.
  const std::string clips = test::source_dir() + "/assets/clips/";
  std::ofstream(folder.path() + "/metadata.jsonl")
      << "{\"video_path\": \"" << clips << "01_mirror_in_dark_hall.mp4\", \"mask_path\": \"" << clips
      << "01_mirror_in_dark_hall.mp4\", \"crop\": [100, 400, 20, 200]}\n"
      << "{\"video_path\": \"" << clips << "03_red_lift_far.mp4\", \"mask_path\": \"" << clips
      << "03_red_lift_far.mp4\"}\n"
      << "{\"video_path\": \"" << clips << "02_mirror_close.mp4\"}\n";
  data::DataConfig config;
  config.path = folder.path();
  config.fps = 8;
  config.frames = {5};
  config.height = 32, config.width = 64;
  config.frame_extraction = "random";
  config.horizontal_flip = 0.5;
  const data::ClipPlan plan = data::plan_clips(config, {});
  REQUIRE(plan.clips.size() == 3);
  CHECK(contains(data::plan_to_json(plan), "\"mask_path\""));
  data::SampleStream stream(plan, config, /*seed=*/1, /*group=*/1, 0, 1);
  int masked = 0, moved = 0;
  for (int i = 0; i < 12; ++i) {
    const data::Sample sample = stream.next();
    const bool has_mask = !plan.clips[size_t(sample.clip)].mask_path.empty();
    REQUIRE(sample.mask_FHW.defined() == has_mask);
    if (!has_mask) continue;
    ++masked;
    CHECK(at::equal(sample.mask_FHW, sample.video_CFHW.amax(0)));
    const data::ClipDraw draw = data::draw_clip(plan.clips[size_t(sample.clip)], config, 1, sample.index);
    moved += draw.flip && draw.start_s > 0;
  }
  CHECK(masked == 8);
  CHECK(moved > 0);
}

TEST_CASE("epochs end where their samples are over, wherever a step ends") {
  const Epochs epochs{10, 4};  // 2.5 steps
  CHECK(epochs.steps(2) == 5);
  CHECK(epochs.steps(1) == 3);
  CHECK(epochs.steps(0.1) == 1);
  std::vector<int64_t> ends, ends_of_two;
  for (int64_t step = 1; step <= 10; ++step) {
    if (epochs.end_in(step, 1)) ends.push_back(step);
    if (epochs.end_in(step, 2)) ends_of_two.push_back(step);
    CHECK_FALSE(epochs.end_in(step, 0));
    CHECK_FALSE(Epochs{}.end_in(step, 1));
  }
  CHECK(ends == std::vector<int64_t>{3, 5, 8, 10});
  CHECK(ends_of_two == std::vector<int64_t>{5, 10});
  const Epochs small{2, 8};  // four epochs a step
  CHECK(small.end_in(1, 1));
  CHECK(small.end_in(1, 3));
  CHECK(small.done(3) == 12);

  TrainConfig config;
  config.epochs = 2;
  take_epochs(config, epochs);
  CHECK(config.steps == 5);
  take_epochs(config, epochs);  // as a checkpoint's configuration has it
  config.steps = 6;
  CHECK(contains(test::refusal_of([&] { take_epochs(config, epochs); }), "train.steps: expected the 5 steps"));
  config.epochs = 0;
  take_epochs(config, epochs);
  CHECK(config.steps == 6);
}
