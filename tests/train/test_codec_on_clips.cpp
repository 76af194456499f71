// What the built-in codecs keep of real clips. docs/numerics.md and docs/codec.md state the figures.
#include <ATen/ATen.h>

#include <cmath>
#include <iostream>

#include "data/dataset.h"
#include "model/codec.h"
#include "support/catch.h"
#include "support/paths.h"

using namespace vmoba;

namespace {

struct Quality {
  double mean_db = 0, least_db = 100;
};

// Of the first clip of each file of the folder, pictures of height x width.
Quality quality_of(const model::CodecConfig& codec_config, const std::string& folder, double fps, int64_t height,
                   int64_t width, size_t clips) {
  data::DataConfig config;
  config.path = test::source_dir() + "/" + folder;
  config.fps = fps;
  config.frames = {17};
  config.height = height;
  config.width = width;
  const data::ClipPlan plan = data::plan_clips(config, {4, 16});
  REQUIRE(plan.clips.size() == clips);
  const auto codec = model::make_codec(codec_config, at::kCPU);
  data::SampleStream stream(plan, config, /*seed=*/0, /*group=*/1, /*first=*/0, /*stride=*/1);
  Quality quality;
  for (size_t i = 0; i < clips; ++i) {
    const at::Tensor video = data::to_unit_range(stream.next().video_CFHW).unsqueeze(0);
    const double error = (codec->decode(codec->encode(video)) - video).square().mean().item<double>();
    const double psnr_db = 10 * std::log10(4 / error);  // range 2, so the peak squared is 4
    quality.least_db = std::min(quality.least_db, psnr_db);
    quality.mean_db += psnr_db / double(clips);
  }
  std::cout << codec_config.type << " on " << folder << " at 17x" << height << "x" << width << ": PSNR "
            << quality.mean_db << " dB mean, " << quality.least_db << " dB least\n";
  return quality;
}

const model::CodecConfig kShipped = {.type = "patch_codec",
                                     .weights = test::source_dir() + "/assets/codec.safetensors"};

}  // namespace

TEST_CASE("the shipped clips survive the dct codec recognisably, the shipped codec well") {
  CHECK(quality_of({}, "assets/clips", 8, 96, 160, 10).least_db > 24);
  CHECK(quality_of(kShipped, "assets/clips", 8, 96, 160, 10).mean_db > 30);
}

TEST_CASE("real clips that the shipped codec was not trained on come back with 30 dB and more") {
  const Quality dct = quality_of({}, "tests/fixtures/data/held_out", 16, 144, 256, 4);
  const Quality shipped = quality_of(kShipped, "tests/fixtures/data/held_out", 16, 144, 256, 4);
  CHECK(shipped.mean_db > 30);
  CHECK(shipped.mean_db > dct.mean_db + 2);
}
