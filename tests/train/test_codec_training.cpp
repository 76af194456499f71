// Training of a tiny codec on moving gradients, and its file as codec.type patch_codec.
#include <ATen/ATen.h>

#include <cmath>

#include "data/dataset.h"
#include "model/codec.h"
#include "model/weights/safetensors.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/codec/codec_run.h"
#include "train/codec/principal_patches.h"

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
  config.trainer.model = {.latent_channels = 4,
                          .encoder_width = 8,
                          .encoder_blocks = 1,
                          .decoder_width = 16,
                          .decoder_blocks = 1,
                          .fine_width = 8,
                          .fine_blocks = 1};
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

  const auto codec = model::make_codec({.type = "patch_codec", .weights = config.out}, kCpu);
  CHECK(codec->shape().channels == 4);
  CHECK(std::abs(train::mean_psnr(*codec, seen) - result.psnr_db) < 1e-6);
  train::CodecRunConfig one_step = config;
  one_step.steps = 1;
  one_step.out = folder.path() + "/one_step.safetensors";
  const train::CodecRunResult start =
      train::run_codec_training(one_step, clips, seen, kCpu, std::chrono::steady_clock::now());
  // A grey picture would have the variance of sin(x) / 2 as its error: 10 log10(8) = 9.03 dB.
  CHECK(start.psnr_db > 11);  // principal components
  CHECK(result.psnr_db > start.psnr_db + 0.5);
  std::vector<at::Tensor> latents_ZN;
  for (int64_t i = 0; i < 32; ++i) {
    const at::Tensor video = train::draw_crops(clips, config.crop, config.batch, /*seed=*/7, i) * 2 - 1;
    latents_ZN.push_back(codec->encode(video).transpose(0, 1).flatten(1));
  }
  const at::Tensor all_ZN = at::cat(latents_ZN, 1);
  CHECK(all_ZN.mean(1).abs().max().item<double>() < 0.2);
  CHECK((all_ZN.std(1) - 1).abs().max().item<double>() < 0.2);

  const auto metadata = model::SafetensorsFile(config.out).metadata();
  CHECK(metadata.at("steps") == "300");
}

TEST_CASE("the principal components of patches are found, that of greatest variance first") {
  // Each patch: grey, plus 0.2 times +1 or -1 in its upper half, plus 0.1 times +1 or -1 in its two first frames.
  at::manual_seed(5);
  const auto signs = [](at::IntArrayRef shape) { return at::randint(0, 2, shape, at::kFloat) * 2 - 1; };
  const auto spread = [](const at::Tensor& x) { return x.repeat_interleave(8, 2).repeat_interleave(8, 3); };
  std::vector<at::Tensor> clips;
  for (int i = 0; i < 8; ++i) {
    at::Tensor rows = at::zeros({1, 1, 64, 1}), frames = at::zeros({1, 16, 1, 1});
    for (int64_t y = 0; y < 64; ++y) rows[0][0][y][0] = y % 8 < 4;
    for (int64_t f = 0; f < 16; ++f) frames[0][f][0][0] = f % 4 < 2;
    const at::Tensor upper = spread(signs({1, 4, 8, 8}).repeat_interleave(4, 1)) * rows;
    const at::Tensor early = spread(signs({1, 4, 8, 8}).repeat_interleave(4, 1)) * frames;
    clips.push_back(((0.5 + 0.2 * upper + 0.1 * early) * 255).round().to(at::kByte).expand({3, 16, 64, 64}));
  }
  const train::PrincipalPatches found = train::principal_patches(clips, 3);
  // A pattern of 384 of 768 values, deviation 0.2: 0.2 * sqrt(384) along it. The two patterns share 192 values.
  const double long_one = 0.2 * std::sqrt(384.0), short_one = 0.1 * std::sqrt(384.0);
  const double shared = 0.5 * long_one * short_one;  // of the matrix [[long^2, .], [., short^2]] in their span
  CHECK(found.components_ZP.sizes() == at::IntArrayRef({3, 768}));
  CHECK(at::allclose(at::mm(found.components_ZP, found.components_ZP.t()), at::eye(3), 1e-4, 1e-4));
  const double sum = long_one * long_one + short_one * short_one;
  const double product = long_one * long_one * short_one * short_one - shared * shared;
  const double root = std::sqrt(sum * sum / 4 - product);
  const double expected[] = {std::sqrt(sum / 2 + root), std::sqrt(sum / 2 - root)};
  for (int i = 0; i < 2; ++i)
    CHECK(std::abs(found.deviations_Z[i].item<double>() / expected[i] - 1) < 0.05);  // 512 patches
  CHECK(found.deviations_Z[2].item<double>() < 0.05);                                // rounding to bytes
  CHECK(found.mean_P.abs().max().item<double>() < 0.03);
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
  config.path = test::source_dir() + "/assets/clips";
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
