// What the dct codec keeps of the shipped clips, at the quickstart's size. docs/numerics.md states the figures.
#include <ATen/ATen.h>

#include <cmath>
#include <iostream>

#include "data/dataset.h"
#include "model/codec.h"
#include "support/catch.h"

using namespace vmoba;

TEST_CASE("the shipped clips survive the dct codec recognisably") {
  data::DataConfig config;
  config.path = std::string(VMOBA_SOURCE_DIR) + "/assets/clips";
  config.fps = 8;
  config.frames = {17};
  config.height = 96;
  config.width = 160;
  const data::ClipPlan plan = data::plan_clips(config, {4, 16});
  REQUIRE(plan.clips.size() == 10);
  const auto codec = model::make_codec({}, at::kCPU);
  data::SampleStream stream(plan, config, /*seed=*/0, /*group=*/1, /*first=*/0, /*stride=*/1);
  double worst = 100, sum = 0;
  for (int i = 0; i < 10; ++i) {
    const at::Tensor video = data::to_unit_range(stream.next().video_CFHW).unsqueeze(0);
    const double error = (codec->decode(codec->encode(video)) - video).square().mean().item<double>();
    const double psnr = 10 * std::log10(4 / error);  // range 2, so the peak squared is 4
    worst = std::min(worst, psnr);
    sum += psnr / 10;
  }
  std::cout << "dct codec on assets/clips at 17x96x160: PSNR " << sum << " dB mean, " << worst << " dB least\n";
  CHECK(worst > 24);
}
