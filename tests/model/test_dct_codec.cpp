// The dct codec against its definition: an orthonormal transform computed here from the formula of the DCT-II.
#include <ATen/ATen.h>

#include <cmath>

#include "core/check.h"
#include "model/codec.h"
#include "support/catch.h"
#include "support/messages.h"

using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;

namespace {

std::unique_ptr<Codec> dct() {
  return make_codec({}, at::kCPU);
}

// A grey video whose blocks hold amplitude * cos over x (basis function k = 1 of 8 samples), constant in t and y.
at::Tensor horizontal_wave(double amplitude) {
  const at::Tensor x = at::arange(16, at::kDouble).remainder(8);
  const at::Tensor row = amplitude * at::cos(M_PI * (2 * x + 1) / 16.0);
  return row.expand({1, 3, 5, 8, 16}).to(at::kFloat).contiguous();
}

}  // namespace

TEST_CASE("the dct codec has Wan's latent geometry") {
  const CodecShape shape = codec_shape({});
  CHECK(shape.channels == 16);
  CHECK(shape.temporal_stride == 4);
  CHECK(shape.spatial_stride == 8);
  CHECK(shape.latent_frames(93) == 24);
  CHECK(shape.frames(24) == 93);
  const at::Tensor latents = dct()->encode(at::zeros({2, 3, 9, 16, 24}));
  CHECK(latents.sizes() == at::IntArrayRef({2, 16, 3, 2, 3}));
  CHECK(dct()->decode(latents).sizes() == at::IntArrayRef({2, 3, 9, 16, 24}));
}

TEST_CASE("what the kept coefficients span comes back") {
  const auto codec = dct();
  // Flat colours: three kept coefficients. fp32 sums of 768 terms of size 1: 768 * 2^-24 = 5e-5.
  const at::Tensor colours = at::tensor({-0.9f, 0.2f, 0.7f}).view({1, 3, 1, 1, 1}).expand({1, 3, 5, 8, 16});
  CHECK((codec->decode(codec->encode(colours)) - colours).abs().max().item<double>() < 1e-4);
  const at::Tensor wave = horizontal_wave(0.8);
  CHECK((codec->decode(codec->encode(wave)) - wave).abs().max().item<double>() < 1e-4);
}

TEST_CASE("a grey level moves one channel by the deviation of its coefficient") {
  const auto codec = dct();
  const at::Tensor difference =
      (codec->encode(at::full({1, 3, 1, 8, 8}, 0.5)) - codec->encode(at::zeros({1, 3, 1, 8, 8}))).flatten();
  // Orthonormal: 0.5 * sqrt(768) over luma; divided by the published deviation 14.236 of channel 0.
  CHECK(difference[0].item<double>() == Approx(0.5 * std::sqrt(768.0) / 14.236).epsilon(1e-4));
  CHECK(difference.slice(0, 1).abs().max().item<double>() < 1e-4);
}

TEST_CASE("the first latent frame depends on the first video frame alone") {
  const auto codec = dct();
  at::Tensor video = at::linspace(-1, 1, 3 * 9 * 8 * 8).view({1, 3, 9, 8, 8});
  const at::Tensor image = video.slice(2, 0, 1);
  // Matrix products of other sizes may add in another order: 768 terms of size 1, 768 * 2^-24 at most.
  CHECK((codec->encode(video).slice(2, 0, 1) - codec->encode(image)).abs().max().item<double>() < 5e-5);
  // Blocks of four follow: changing frames 1..4 leaves latents 0 and 2 alone.
  at::Tensor changed = video.clone();
  changed.slice(2, 1, 5).mul_(-1);
  const at::Tensor before = codec->encode(video), after = codec->encode(changed);
  CHECK(at::equal(before.select(2, 0), after.select(2, 0)));
  CHECK(at::equal(before.select(2, 2), after.select(2, 2)));
  CHECK_FALSE(at::equal(before.select(2, 1), after.select(2, 1)));
}

TEST_CASE("the reconstruction is the projection on the kept coefficients") {
  // Encoding the reconstruction again changes nothing, and the error is orthogonal to it (no clamping in +-0.3).
  const auto codec = dct();
  at::manual_seed(3);
  const at::Tensor video = at::rand({1, 3, 9, 16, 16}) * 0.6 - 0.3;
  const at::Tensor once = codec->decode(codec->encode(video));
  const at::Tensor twice = codec->decode(codec->encode(once));
  CHECK((once - twice).abs().max().item<double>() < 1e-4);
  const at::Tensor rest = (video - once).slice(2, 1).to(at::kDouble), kept = once.slice(2, 1).to(at::kDouble);
  CHECK(std::abs((rest * kept).sum().item<double>()) < 1e-4 * kept.pow(2).sum().item<double>());
  CHECK(rest.pow(2).sum().item<double>() < video.slice(2, 1).to(at::kDouble).pow(2).sum().item<double>());
}

TEST_CASE("decoded values stay in range") {
  const at::Tensor video = dct()->decode(at::full({1, 16, 2, 1, 1}, 50.0));
  CHECK(video.max().item<double>() <= 1);
  CHECK(video.min().item<double>() >= -1);
}

TEST_CASE("sizes that do not fit are refused with those that do") {
  const auto codec = dct();
  CHECK(contains(refusal_of([&] {
                   codec->encode(at::zeros({1, 3, 8, 16, 16}));
                 }),
                 "1 + 4n frames, found 8; use 5 or 9"));
  CHECK(contains(refusal_of([&] { codec->encode(at::zeros({1, 3, 5, 20, 16})); }), "found 20x16; use 24x16"));
  CHECK(contains(refusal_of([&] { codec->encode(at::zeros({1, 4, 5, 16, 16})); }), "[B, 3, F, H, W]"));
  CHECK(contains(refusal_of([&] { codec->decode(at::zeros({1, 4, 2, 2, 2})); }), "4 channels"));
  CHECK(contains(refusal_of([&] { make_codec({"dct", "vae.safetensors"}, at::kCPU); }), "codec.weights"));
  CHECK(contains(refusal_of([&] {
                   make_codec({"vae", ""}, at::kCPU);
                 }),
                 "codec.type (dct, hunyuan_15_vae, hunyuan_vae, patch_codec, taehv, wan_vae), found 'vae'"));
}
