// Training of a tiny codec on moving gradients, and its file as codec.type taehv.
#include <ATen/ATen.h>

#include <cmath>

#include "data/dataset.h"
#include "model/codec/taehv.h"
#include "model/weights/safetensors.h"
#include "support/messages.h"
#include "support/process.h"
#include "train/codec/codec_run.h"

using namespace vmoba;
using vmoba::test::contains;
using vmoba::test::refusal_of;

namespace {

const at::Device kCpu(at::kCPU);

// A colour gradient that moves: a plane wave of a random direction in each channel.
at::Tensor moving_gradient(int64_t frames, int64_t size) {
  const auto ramp = [](int64_t count) { return at::arange(count, at::kFloat) / 16; };
  const at::Tensor slope = at::randn({3, 3}), phase = at::rand({3}) * 6;
  const at::Tensor wave = phase.view({3, 1, 1, 1}) +
                          slope.select(1, 0).view({3, 1, 1, 1}) * ramp(frames).view({-1, 1, 1}) +
                          slope.select(1, 1).view({3, 1, 1, 1}) * ramp(size).view({1, -1, 1}) +
                          slope.select(1, 2).view({3, 1, 1, 1}) * ramp(size);
  return ((wave.sin() + 1) * 127.5).to(at::kByte);
}

std::vector<at::Tensor> gradients(int64_t count) {
  at::manual_seed(1);
  std::vector<at::Tensor> clips;
  for (int64_t i = 0; i < count; ++i) clips.push_back(moving_gradient(9, 24));
  return clips;
}

train::CodecRunConfig tiny_run(const std::string& out) {
  train::CodecRunConfig config;
  config.trainer.model.latent_channels = 4;
  config.trainer.model.encoder_widths = {8, 8, 8, 8};
  config.trainer.model.decoder_widths = {8, 8, 8, 8};
  config.trainer.model.first_frame_alone = true;
  config.out = out;
  config.steps = 300;
  config.lr = 1e-2;
  config.batch = 4;
  config.crop = {5, 16, 16};
  return config;
}

}  // namespace

TEST_CASE("a tiny codec learns, and its file is a codec whose latents have mean 0 and deviation 1, about") {
  const test::TemporaryFolder folder;
  const train::CodecRunConfig config = tiny_run(folder.path() + "/codec.safetensors");
  const std::vector<at::Tensor> clips = gradients(8), seen = {clips[0], clips[1], clips[2]};
  const train::CodecRunResult result =
      train::run_codec_training(config, clips, seen, kCpu, std::chrono::steady_clock::now());
  CHECK(result.steps == 300);
  CHECK(result.last_loss < 0.5 * result.first_loss);
  CHECK_FALSE(result.stopped);

  const auto codec = model::make_codec({.type = "taehv", .weights = config.out}, kCpu);
  CHECK(codec->shape().channels == 4);
  CHECK(std::abs(train::mean_psnr(*codec, seen) - result.psnr_db) < 1e-6);
  // A grey picture would have the variance of sin(x) / 2 as its error: 10 log10(8) = 9.03 dB.
  CHECK(result.psnr_db > 11);
  std::vector<at::Tensor> latents_ZN;
  for (int64_t i = 0; i < 32; ++i) {
    const at::Tensor video = train::draw_crops(clips, config.crop, config.batch, /*seed=*/7, i) * 2 - 1;
    latents_ZN.push_back(codec->encode(video).transpose(0, 1).flatten(1));
  }
  const at::Tensor all_ZN = at::cat(latents_ZN, 1);
  CHECK(all_ZN.mean(1).abs().max().item<double>() < 0.2);
  CHECK((all_ZN.std(1) - 1).abs().max().item<double>() < 0.2);

  const auto metadata = model::SafetensorsFile(config.out).metadata();
  CHECK(metadata.at("first_frame_alone") == "true");
  CHECK(metadata.at("steps") == "300");
}

TEST_CASE("the learning rate falls over the seconds that are given") {
  const test::TemporaryFolder folder;
  train::CodecRunConfig config = tiny_run(folder.path() + "/codec.safetensors");
  config.steps = 0;
  config.seconds = 2;
  config.save_every_s = 0.5;
  const auto start = std::chrono::steady_clock::now();
  const train::CodecRunResult result = train::run_codec_training(config, gradients(2), {}, kCpu, start);
  const double took_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  CHECK(took_s >= 2);
  CHECK(result.steps >= 1);
  CHECK(model::SafetensorsFile(config.out).metadata().at("steps") == std::to_string(result.steps));
}

TEST_CASE("crops are a function of seed and step") {
  const std::vector<at::Tensor> clips = gradients(3);
  const train::CropSize size = {5, 16, 8};
  const auto draw = [&](uint64_t seed, int64_t step) { return train::draw_crops(clips, size, 6, seed, step); };
  const at::Tensor first = draw(1, 0);
  CHECK(first.sizes() == at::IntArrayRef({6, 3, 5, 16, 8}));
  CHECK(first.min().item<float>() >= 0);
  CHECK(first.max().item<float>() <= 1);
  CHECK(first.max().item<float>() > 0.5);
  CHECK(at::equal(first, draw(1, 0)));
  CHECK_FALSE(at::equal(first, draw(1, 1)));
  CHECK_FALSE(at::equal(first, draw(2, 0)));
}

TEST_CASE("what a codec cannot be trained on is refused with what it can") {
  const test::TemporaryFolder folder;
  const auto refusal = [&](const std::function<void(train::CodecRunConfig&)>& change) {
    train::CodecRunConfig config = tiny_run(folder.path() + "/codec.safetensors");
    change(config);
    return refusal_of(
        [&] { train::run_codec_training(config, gradients(1), {}, kCpu, std::chrono::steady_clock::now()); });
  };
  CHECK(contains(refusal([](auto& c) { c.steps = 0; }), "expected --steps or --seconds above 0"));
  CHECK(contains(refusal([](auto& c) { c.crop.frames = 6; }), "--frames: expected 1 + 4n, found 6; use 5"));
  CHECK(contains(refusal([](auto& c) { c.crop.width = 20; }), "--crop: expected multiples of 8, found 16x20"));
  CHECK(contains(refusal([](auto& c) { c.out = "/nowhere/x.safetensors"; }), "--out: expected a file in a folder"));
  CHECK(contains(refusal([](auto& c) { c.crop.height = 32; }), "found one of 9 of 24x24; lower --frames or --crop"));
}

TEST_CASE("clips to train on come through the data path") {
  data::DataConfig config;
  config.path = std::string(VMOBA_SOURCE_DIR) + "/assets/clips";
  config.fps = 8;
  config.frames = {17};
  config.height = 32;
  config.width = 48;
  const std::vector<at::Tensor> clips = train::decode_clips(config, kCpu);
  REQUIRE(clips.size() == 10);
  for (const at::Tensor& clip : clips) {
    CHECK(clip.sizes() == at::IntArrayRef({3, 17, 32, 48}));
    CHECK(clip.scalar_type() == at::kByte);
  }
}
