// The condition's layout by arithmetic; that it is diffusers' own is shown by whole sampling runs
// (tests/sample/test_wan_pipelines.cpp).
#include "model/conditioning.h"

#include <ATen/ATen.h>

#include "model/hunyuan/hunyuan_config.h"
#include "support/catch.h"
#include "support/messages.h"

namespace {

using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;

// One channel: each latent is the mean of its pixels; of its frames the last one.
class LastFrameCodec : public Codec {
 public:
  CodecShape shape() const override { return {.channels = 1, .temporal_stride = 4, .spatial_stride = 8}; }
  at::Tensor encode(const at::Tensor& video) const override {
    REQUIRE(video.scalar_type() == at::kFloat);
    REQUIRE_FALSE(at::GradMode::is_enabled());
    std::vector<at::Tensor> frames;
    for (int64_t f = 0; f < video.size(2); f += 4) frames.push_back(video.select(2, f));
    const at::Tensor kept = at::stack(frames, 2).mean(1, /*keepdim=*/true);
    return kept.unflatten(4, {-1, 8}).mean(5).unflatten(3, {-1, 8}).mean(4);
  }
  at::Tensor decode(const at::Tensor&) const override { throw std::logic_error("conditions are never decoded"); }
};

class MeanEncoder : public ImageEncoder {
 public:
  int64_t dim() const override { return 5; }
  int64_t tokens() const override { return 3; }
  at::Tensor encode(const at::Tensor& images) const override {
    return images.mean({1, 2, 3}).view({-1, 1, 1}).expand({-1, 3, 5});
  }
};

ModelConfig config_of(const std::string& task, int64_t image_dim = 0) {
  ModelConfig config;
  config.task = task;
  config.image_dim = image_dim;
  return config;
}

at::Tensor image(double value, int64_t batch = 1) {
  return at::full({batch, 3, 16, 24}, value);
}

}  // namespace

TEST_CASE("i2v: the mask marks the first frame, its latents are followed by those of grey") {
  const ImageCondition condition = encode_condition(config_of("i2v"), LastFrameCodec(), nullptr, image(0.5, 2), {}, 9);
  REQUIRE(condition.channels_BKTHW.sizes() == at::IntArrayRef({2, 5, 3, 2, 3}));
  CHECK(condition_channels(config_of("i2v"), LastFrameCodec().shape()) == 5);
  const at::Tensor expected = at::zeros({5, 3});
  expected.slice(0, 0, 4).select(1, 0).fill_(1);
  expected[4][0] = 0.5;
  CHECK(condition.channels_BKTHW.equal(expected.view({1, 5, 3, 1, 1}).expand({2, 5, 3, 2, 3})));
  CHECK_FALSE(condition.tokens_BIM.defined());
  CHECK_FALSE(condition.first_BC1HW.defined());
}

TEST_CASE("flf2v: the last frame is marked in the last entry of the last latent frame") {
  const ImageCondition condition = encode_condition(config_of("flf2v", 5), LastFrameCodec(),
                                                    std::make_unique<MeanEncoder>().get(), image(0.5), image(-0.25), 9);
  at::Tensor expected = at::zeros({5, 3});
  expected.slice(0, 0, 4).select(1, 0).fill_(1);
  expected[3][2] = 1;
  expected[4][0] = 0.5;
  expected[4][2] = -0.25;
  CHECK(condition.channels_BKTHW.equal(expected.view({1, 5, 3, 1, 1}).expand({1, 5, 3, 2, 3})));
  REQUIRE(condition.tokens_BIM.sizes() == at::IntArrayRef({1, 6, 5}));  // first image, then last
  CHECK(condition.tokens_BIM.select(2, 4)[0].equal(at::tensor({0.5, 0.5, 0.5, -0.25, -0.25, -0.25}, at::kFloat)));
}

TEST_CASE("ti2v: given first frames are clean, at timestep 0 and do not count") {
  const ModelConfig config = config_of("ti2v");
  CHECK(condition_channels(config, LastFrameCodec().shape()) == 0);
  ImageCondition condition = encode_condition(config, LastFrameCodec(), nullptr, image(0.5, 2), {}, 9);
  REQUIRE(condition.first_BC1HW.sizes() == at::IntArrayRef({2, 1, 1, 2, 3}));
  const at::Tensor latents = at::full({2, 1, 3, 2, 3}, 7.0), timestep = at::tensor({900.0, 800.0}, at::kFloat);
  DitInput input = conditioned_input(latents, timestep, {}, condition);
  CHECK(input.timestep_BG.equal(at::tensor({0., 900., 900., 0., 800., 800.}, at::kFloat).view({2, 3})));
  CHECK(input.latents_BCTHW.select(2, 0).eq(0.5).all().item<bool>());
  CHECK(input.latents_BCTHW.slice(2, 1).eq(7).all().item<bool>());
  CHECK(made_frames(latents, condition).equal(at::tensor({0., 1., 1., 0., 1., 1.}, at::kFloat).view({2, 3})));

  condition.given_B = at::tensor({0, 1}).to(at::kBool);
  input = conditioned_input(latents, timestep, {}, condition);
  CHECK(input.timestep_BG.equal(at::tensor({900., 900., 900., 0., 800., 800.}, at::kFloat).view({2, 3})));
  CHECK(input.latents_BCTHW[0].eq(7).all().item<bool>());
  CHECK(input.latents_BCTHW[1].select(1, 0).eq(0.5).all().item<bool>());

  const ImageCondition none = encode_condition(config, LastFrameCodec(), nullptr, {}, {}, 9);
  input = conditioned_input(latents, timestep, {}, none);
  CHECK(input.timestep_BG.equal(timestep));
  CHECK(input.latents_BCTHW.equal(latents));
  CHECK_FALSE(made_frames(latents, none).defined());
}

TEST_CASE("HunyuanVideo: the image's latents and a mask of one channel behind the latents, or its first frame given") {
  ModelConfig config = config_of("i2v", 5);
  config.architecture = "hunyuan_video_15";
  CHECK(condition_channels(config, LastFrameCodec().shape()) == 2);
  ImageCondition condition =
      encode_condition(config, LastFrameCodec(), std::make_unique<MeanEncoder>().get(), image(0.5, 2), {}, 9);
  CHECK(condition.behind);
  CHECK(condition.tokens_BIM.sizes() == at::IntArrayRef({2, 3, 5}));
  const at::Tensor latents = at::full({2, 1, 3, 2, 3}, 7.0), timestep = at::tensor({900.0, 800.0}, at::kFloat);
  DitInput input = conditioned_input(latents, timestep, {}, condition);
  CHECK(input.timestep_BG.equal(timestep));
  CHECK_FALSE(input.conditions.image_length_B.defined());
  CHECK_FALSE(made_frames(latents, condition).defined());  // all frames are made, the first too
  REQUIRE(input.latents_BCTHW.sizes() == at::IntArrayRef({2, 3, 3, 2, 3}));
  at::Tensor expected = at::zeros({3, 3});
  expected[0].fill_(7);
  expected[1][0] = 0.5;
  expected[2][0] = 1;
  CHECK(input.latents_BCTHW.equal(expected.view({1, 3, 3, 1, 1}).expand({2, 3, 3, 2, 3})));

  condition.given_B = at::tensor({0, 1}).to(at::kBool);
  input = conditioned_input(latents, timestep, {}, condition);
  CHECK(input.conditions.image_length_B.equal(at::tensor({0, 3}, at::kLong)));
  CHECK(input.latents_BCTHW[0].slice(0, 1).eq(0).all().item<bool>());
  CHECK(input.latents_BCTHW[1].equal(expected.view({3, 3, 1, 1}).expand({3, 3, 2, 3})));

  config.task = "t2v";  // the channels are there, and zero
  CHECK(condition_channels(config, LastFrameCodec().shape()) == 2);
  CHECK_FALSE(encode_condition(config, LastFrameCodec(), nullptr, {}, {}, 9).behind);

  config = config_of("i2v");
  config.architecture = "hunyuan_video";
  config.own<HunyuanConfig>().image_condition = "replace";
  CHECK(condition_channels(config, LastFrameCodec().shape()) == 0);
  condition = encode_condition(config, LastFrameCodec(), nullptr, image(0.5, 2), {}, 9);
  CHECK_FALSE(condition.behind);
  CHECK(conditioned_input(latents, timestep, {}, condition).timestep_BG.sizes() == at::IntArrayRef({2, 3}));
  config.own<HunyuanConfig>().image_condition = "concat";
  CHECK(encode_condition(config, LastFrameCodec(), nullptr, image(0.5, 2), {}, 9).behind);
}

TEST_CASE("a guidance scale is told to models that take one") {
  ModelConfig config;
  DitInput input{at::zeros({2, 4, 1, 2, 2}), at::zeros({2})};
  tell_guidance(config, 6, input);
  CHECK_FALSE(input.conditions.guidance_B.defined());
  config.architecture = "hunyuan_video";
  tell_guidance(config, 6, input);
  CHECK(input.conditions.guidance_B.equal(at::full({2}, 6.0)));
  config.own<HunyuanConfig>().guidance_embed = false;
  CHECK_FALSE(takes_guidance(config));
}

TEST_CASE("a next timestep is told to models that take one") {
  ModelConfig config;
  DitInput input{at::zeros({2, 4, 1, 2, 2}), at::full({2}, 700.0)};
  const at::Tensor next = at::tensor({600.0, 0.0});
  for (const char* architecture : {"wan", "hunyuan_video", "hunyuan_video_15"}) {
    config.architecture = architecture;
    tell_next_timestep(config, next, input);
    CHECK_FALSE(input.conditions.next_timestep_B.defined());
  }
  config.own<Hunyuan15Config>().meanflow = true;
  tell_next_timestep(config, next, input);
  CHECK(input.conditions.next_timestep_B.equal(next));
}

TEST_CASE("what is missing is named") {
  const auto refusal = [](const ModelConfig& config, const at::Tensor& first, const at::Tensor& last) {
    return refusal_of([&] { encode_condition(config, LastFrameCodec(), nullptr, first, last, 9); });
  };
  CHECK(contains(refusal(config_of("i2v"), {}, {}), "first frame"));
  CHECK(contains(refusal(config_of("flf2v"), image(0), {}), "last frame"));
  CHECK(contains(refusal(config_of("i2v", 1280), image(0), {}), "image_encoder.type"));
  CHECK(refusal(config_of("t2v"), {}, {}).empty());
  // Tokens that are given are used as they are.
  const at::Tensor tokens = at::ones({1, 4, 5});
  CHECK(encode_condition(config_of("i2v", 5), LastFrameCodec(), nullptr, image(0), {}, 9, tokens)
            .tokens_BIM.equal(tokens));
}
