// The Wan VAE's arithmetic against diffusers' AutoencoderKLWan.
#include <ATen/ATen.h>

#include "core/check.h"
#include "model/codec/wan_vae_network.h"
#include "model/memory_counter.h"
#include "model/wan_vae_fixture.h"
#include "support/messages.h"

using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::peak_bytes;
using vmoba::test::refusal_of;

namespace {

// Two fp32 runs of the same sums in another order; the networks are some 40 layers deep.
constexpr double kRounding = 1e-5;

std::vector<std::string> versions() {
  return {"21", "22"};
}

WanVaeConfig config_of(const VaeFixture& fixture) {
  return WanVaeWeights(fixture.folder).config();
}

std::unique_ptr<Codec> codec_of(const VaeFixture& fixture) {
  return make_codec(fixture.codec_config(), at::kCPU);
}

at::Tensor decode_raw(const Codec& codec, const at::Tensor& latents, const WanVaeConfig& config) {
  return codec.decode(Statistics(config).normalised(latents).to(at::kFloat));
}

}  // namespace

TEST_CASE("wan_vae: latents of 1, 5, 9 and 13 frames are diffusers'") {
  for (const std::string& version : versions()) {
    const VaeFixture fixture = vae_fixture(version);
    const auto codec = codec_of(fixture);
    const at::Tensor expected = Statistics(config_of(fixture)).normalised(fixture.batched("mean"));
    for (const int64_t frames : {1, 5, 9, 13}) {
      INFO(version << ", " << frames << " frames");
      const at::Tensor latents = codec->encode(fixture.video("video_u8").slice(2, 0, frames));
      CHECK(latents.scalar_type() == at::kFloat);
      CHECK(relative_error(latents, expected.slice(2, 0, codec->shape().latent_frames(frames))) < kRounding);
    }
  }
}

TEST_CASE("wan_vae: videos of 1 to 4 latent frames are diffusers'") {
  for (const std::string& version : versions()) {
    const VaeFixture fixture = vae_fixture(version);
    const auto codec = codec_of(fixture);
    const at::Tensor latents = fixture.batched("latents"), expected = fixture.batched("decoded");
    for (const int64_t count : {1, 2, 3, 4}) {
      INFO(version << ", " << count << " latent frames");
      const at::Tensor video = decode_raw(*codec, latents.slice(2, 0, count), config_of(fixture));
      CHECK(relative_error(video, expected.slice(2, 0, 4 * count - 3)) < kRounding);
      CHECK(video.is_contiguous());
      CHECK(video.abs().max().item<double>() <= 1);
    }
  }
}

TEST_CASE("wan_vae: one chunk for all frames after the first gives the same as a chunk for each latent frame") {
  for (const std::string& version : versions()) {
    INFO(version);
    const VaeFixture fixture = vae_fixture(version);
    const WanVaeWeights weights(fixture.folder);
    const TensorSource source = weights.load(at::kFloat, at::kCPU);
    const int64_t patch = weights.config().patch_channels();
    const auto run = [](const auto& network, const at::Tensor& all, const std::vector<int64_t>& chunks) {
      FrameMemory memory;
      std::vector<at::Tensor> out;
      for (const at::Tensor& chunk : all.split_with_sizes(chunks)) out.push_back(network(chunk, memory));
      return at::cat(out);
    };
    at::manual_seed(1);
    const WanVaeEncoder encoder(weights.config(), source);
    const at::Tensor frames = at::randn({13, 16, 8, patch});
    const at::Tensor latents = run(encoder, frames, {1, 4, 4, 4});
    CHECK(latents.size(0) == 4);
    CHECK(relative_error(run(encoder, frames, {1, 12}), latents) < kRounding);
    CHECK(relative_error(run(encoder, frames, {1, 8, 4}), latents) < kRounding);
    const WanVaeDecoder decoder(weights.config(), source);
    const at::Tensor z = at::randn({4, 2, 1, weights.config().z_dim});
    const at::Tensor video = run(decoder, z, {1, 1, 1, 1});
    CHECK(video.size(0) == 13);
    CHECK(relative_error(run(decoder, z, {1, 3}), video) < kRounding);
    CHECK(relative_error(run(decoder, z, {1, 1, 2}), video) < kRounding);
  }
}

TEST_CASE("wan_vae: a sample's numbers do not depend on its batch") {
  const VaeFixture fixture = vae_fixture("21");
  const auto codec = codec_of(fixture);
  const at::Tensor first = fixture.video("video_u8").slice(2, 0, 5), second = first.flip({4});
  const at::Tensor both = codec->encode(at::cat({first, second}));
  CHECK(at::equal(both.slice(0, 0, 1), codec->encode(first)));
  CHECK(at::equal(both.slice(0, 1, 2), codec->encode(second)));
  const at::Tensor videos = codec->decode(both);
  CHECK(at::equal(videos.slice(0, 1, 2), codec->decode(both.slice(0, 1, 2))));
}

TEST_CASE("wan_vae: tiles and their seams are diffusers'") {
  for (const std::string& version : versions()) {
    INFO(version);
    const VaeFixture fixture = vae_fixture(version);
    const auto whole = codec_of(fixture);
    CodecConfig config = fixture.codec_config();
    const at::Tensor tile = fixture.tensors.tensor("tile");
    config.tile_size = tile[0].item<int64_t>();
    config.tile_overlap = tile[1].item<int64_t>();
    const auto tiled = make_codec(config, at::kCPU);
    const at::Tensor video = fixture.video("tile_video_u8"), latents = fixture.batched("tile_latents");
    const WanVaeConfig vae = config_of(fixture);
    const at::Tensor encoded = tiled->encode(video);
    CHECK(relative_error(encoded, Statistics(vae).normalised(fixture.batched("tile_mean"))) < kRounding);
    const at::Tensor decoded = decode_raw(*tiled, latents, vae);
    CHECK(relative_error(decoded, fixture.batched("tile_decoded")) < kRounding);
    // Tiles matter here, so that the comparison above says something.
    CHECK(relative_error(encoded, whole->encode(video)) > 100 * kRounding);
    CHECK(relative_error(decoded, decode_raw(*whole, latents, vae)) > 100 * kRounding);
    // Pictures that fit into a tile are not cut.
    config.tile_size = 80;
    config.tile_overlap = 16;
    CHECK(at::equal(make_codec(config, at::kCPU)->encode(video), whole->encode(video)));
  }
}

TEST_CASE("wan_vae: bf16 keeps two digits") {
  for (const std::string& version : versions()) {
    INFO(version);
    const VaeFixture fixture = vae_fixture(version);
    CodecConfig config = fixture.codec_config();
    config.compute_dtype = "bf16";
    const auto codec = make_codec(config, at::kCPU);
    const at::Tensor latents = codec->encode(fixture.video("video_u8"));
    CHECK(latents.scalar_type() == at::kFloat);
    const at::Tensor expected = Statistics(config_of(fixture)).normalised(fixture.batched("mean"));
    // Rounding of 2^-9 in each of some 40 layers that add up like noise: sqrt(40) * 2^-9 = 1.2%, and 4 times that at
    // the worst of a thousand values.
    CHECK(relative_error(latents, expected) < 0.05);
    CHECK(relative_error(latents, expected) > kRounding);  // it was bf16
  }
}

TEST_CASE("wan_vae: working memory does not grow with the length of the video") {
  const VaeFixture fixture = vae_fixture("21");
  const auto codec = codec_of(fixture);
  const auto working = [&](int64_t latent_frames, bool decode) {
    const at::Tensor latents = at::zeros({1, 16, latent_frames, 4, 4});
    const at::Tensor video = at::zeros({1, 3, 4 * latent_frames - 3, 32, 32});
    int64_t result = 0;
    const int64_t peak = peak_bytes([&] { return decode ? codec->decode(latents) : codec->encode(video); }, result);
    // Beside chunks: the result; latents also without their normalisation.
    return peak - result - (decode ? 2 : 1) * int64_t(latents.nbytes());
  };
  for (const bool decode : {false, true}) {
    INFO(decode);
    const int64_t three = working(3, decode), twelve = working(12, decode);
    CHECK(three > 0);
    CHECK(twelve <= three);
  }
}

TEST_CASE("wan_vae: sizes that do not fit are refused with those that do") {
  const auto wan21 = codec_of(vae_fixture("21")), wan22 = codec_of(vae_fixture("22"));
  CHECK(contains(refusal_of([&] {
                   wan21->encode(at::zeros({1, 3, 8, 16, 16}));
                 }),
                 "codec wan_vae: expected 1 + 4n frames, found 8; use 5 or 9"));
  CHECK(contains(refusal_of([&] {
                   wan22->encode(at::zeros({1, 3, 5, 24, 16}));
                 }),
                 "multiples of 16, found 24x16; use 32x16"));
  CHECK(contains(refusal_of([&] {
                   wan21->decode(at::zeros({1, 48, 1, 2, 2}));
                 }),
                 "latents [B, 16, T, H, W], found 5 dimensions and 48"));
}
