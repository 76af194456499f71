// Training batches of every task, with the dct codec.
#include "train/batch.h"

#include <ATen/ATen.h>

#include "core/random.h"
#include "model/codec.h"
#include "model/hunyuan/hunyuan_config.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

struct House {
  std::unique_ptr<model::Codec> codec = model::make_codec({}, at::kCPU);
  std::unique_ptr<model::TextEncoder> text;
  model::ModelConfig model;
  FlowConfig flow;

  explicit House(const std::string& task) {
    model::TextEncoderConfig config;
    config.max_tokens = 4;
    config.dim = 8;
    text = model::make_text_encoder(config, at::kCPU);
    model.task = task;
  }

  static at::Tensor video(int64_t batch, int64_t frames) {
    std::vector<float> values(size_t(batch * 3 * frames * 16 * 16));
    fill_normal(1, "video", 0, values.data(), int64_t(values.size()));
    return at::tensor(values).view({batch, 3, frames, 16, 16}).clamp(-1, 1);
  }
  EncodedBatch encode(const at::Tensor& video) const {
    EncodedBatch out = encode_videos(model, *codec, nullptr, video);
    out.text = text->encode(std::vector<std::string>(size_t(video.size(0)), "fox"));
    return out;
  }
  TrainingBatch batch(const at::Tensor& video, const std::vector<int64_t>& samples) const {
    return make_batch(flow, 11, samples, encode(video));
  }
};

}  // namespace

TEST_CASE("t2v: the input is the noisy latents") {
  const House house("t2v");
  const TrainingBatch batch = house.batch(House::video(2, 5), {3, 4});
  CHECK(batch.input.latents_BCTHW.equal(batch.noisy.latents_BCTHW));
  CHECK(batch.input.timestep_BG.equal(batch.noisy.timestep_B));
  CHECK(batch.input.conditions.text.tokens_BLE.sizes() == at::IntArrayRef({2, 4, 8}));
  CHECK_FALSE(batch.noisy.made_BT.defined());
}

TEST_CASE("training tells step-distilled weights that a step leads to where it begins") {
  const House house("t2v");
  TrainingBatch batch = house.batch(House::video(2, 5), {3, 4});
  model::ModelConfig model;
  model.architecture = "hunyuan_video_15";
  tell_numbers(model, house.flow, batch);
  CHECK_FALSE(batch.input.conditions.next_timestep_B.defined());
  model.own<model::Hunyuan15Config>().meanflow = true;
  tell_numbers(model, house.flow, batch);
  CHECK(batch.input.conditions.next_timestep_B.equal(batch.noisy.timestep_B));
  CHECK_FALSE(batch.input.conditions.guidance_B.defined());
  model.architecture = "hunyuan_video";
  FlowConfig flow = house.flow;
  flow.embedded_guidance = 6;
  tell_numbers(model, flow, batch);
  CHECK(batch.input.conditions.guidance_B.equal(at::full({2}, 6.0)));
}

TEST_CASE("i2v: mask and latents of the clip's own first frame, then grey, stand behind the noisy latents") {
  const House house("i2v");
  const at::Tensor video = House::video(2, 9);
  const TrainingBatch batch = house.batch(video, {3, 4});
  REQUIRE(batch.input.latents_BCTHW.sizes() == at::IntArrayRef({2, 36, 3, 2, 2}));
  CHECK(batch.input.latents_BCTHW.slice(1, 0, 16).equal(batch.noisy.latents_BCTHW));
  at::Tensor alone = at::zeros_like(video);
  alone.select(2, 0).copy_(video.select(2, 0));
  CHECK(batch.input.latents_BCTHW.slice(1, 20).equal(house.codec->encode(alone)));
  const at::Tensor mask = batch.input.latents_BCTHW.slice(1, 16, 20);
  CHECK(mask.select(2, 0).eq(1).all().item<bool>());
  CHECK(mask.slice(2, 1).eq(0).all().item<bool>());
}

TEST_CASE("ti2v: first_frame_rate of the samples are given their first frame, whatever batch they are in") {
  House house("ti2v");
  house.flow.first_frame_rate = 0.5;
  const at::Tensor video = House::video(1, 9);
  const EncodedBatch encoded = house.encode(video);
  int64_t given = 0;
  for (int64_t sample = 0; sample < 400; ++sample) {
    const TrainingBatch batch = make_batch(house.flow, 11, {sample}, encoded);
    const bool is_given = batch.noisy.made_BT[0][0].item<double>() == 0;
    given += is_given;
    const double t = batch.noisy.timestep_B.item<double>();
    CHECK(batch.input.timestep_BG.equal(at::tensor({is_given ? 0 : t, t, t}).to(at::kFloat).view({1, 3})));
    const at::Tensor& expected = is_given ? encoded.x0_BCTHW : batch.noisy.latents_BCTHW;
    CHECK(batch.input.latents_BCTHW.select(2, 0).equal(expected.select(2, 0)));
    CHECK(batch.input.latents_BCTHW.slice(2, 1).equal(batch.noisy.latents_BCTHW.slice(2, 1)));
  }
  CHECK(std::abs(double(given) - 200) < 5 * 10);  // five standard deviations of Binomial(400, 1/2)

  const TrainingBatch together = house.batch(video.expand({3, -1, -1, -1, -1}), {5, 6, 7});
  for (int64_t i = 0; i < 3; ++i) {
    const TrainingBatch alone = make_batch(house.flow, 11, {5 + i}, encoded);
    // The codec's matrix product of a larger batch may round otherwise.
    CHECK(at::allclose(together.input.latents_BCTHW[i], alone.input.latents_BCTHW[0], 1e-5, 1e-5));
    CHECK(together.noisy.made_BT[i].equal(alone.noisy.made_BT[0]));
  }
  house.flow.first_frame_rate = 1;  // an image has no frame besides its first: text to video
  const TrainingBatch still = house.batch(House::video(1, 1), {5});
  CHECK(still.noisy.made_BT.eq(1).all().item<bool>());
  CHECK(still.input.timestep_BG.eq(still.noisy.timestep_B).all().item<bool>());
}

TEST_CASE("the loss is the mean over the latent frames that count") {
  NoisyBatch batch;
  batch.target_BCTHW = at::zeros({2, 2, 3, 1, 2});
  batch.weight_B = at::tensor({1.0, 0.5}, at::kFloat);
  at::Tensor velocity = at::zeros_like(batch.target_BCTHW);
  for (int64_t t = 0; t < 3; ++t) velocity.select(2, t).fill_(double(t + 1));
  CHECK(flow_loss(velocity, batch).item<double>() == Approx((1.0 + 0.5) / 2 * (1 + 4 + 9) / 3));
  batch.made_BT = at::tensor({0., 1., 1., 1., 1., 1.}, at::kFloat).view({2, 3});
  CHECK(flow_loss(velocity, batch).item<double>() == Approx((1.0 * (4 + 9) / 2 + 0.5 * (1 + 4 + 9) / 3) / 2));
}
