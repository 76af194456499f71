// codec.type patch_codec against its formula, written out here on whole clips.
#include <ATen/ATen.h>

#include <filesystem>
#include <map>

#include "model/codec/patch_codec.h"
#include "model/codec/patch_codec_network.h"
#include "model/vae_fixture.h"
#include "model/weights/safetensors.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::relative_error;

namespace {

constexpr double kRounding = 1e-5;  // two fp32 runs of the same sums in another order
using Tensors = std::map<std::string, at::Tensor>;

const PatchCodecConfig kSizes = {.latent_channels = 5,
                                 .encoder_width = 6,
                                 .encoder_blocks = 1,
                                 .decoder_width = 7,
                                 .decoder_blocks = 2,
                                 .fine_width = 4,
                                 .fine_blocks = 1};

Tensors random_weights() {
  at::manual_seed(3);
  Tensors out;
  for (const ParameterSpec& spec : patch_codec_specs(kSizes))
    out[spec.name] = at::randn(spec.shape) / std::sqrt(double(spec.numel() / spec.shape[0]));
  return out;
}

std::string write_file(const vmoba::test::TemporaryFolder& folder, const Tensors& tensors) {
  std::vector<NamedTensor> named;
  for (const auto& [name, tensor] : tensors) named.push_back({name, tensor});
  const std::string path = folder.path() + "/codec.safetensors";
  write_safetensors(path, named, {});
  return path;
}

std::unique_ptr<Codec> open_codec(const std::string& path) {
  return make_codec({.type = "patch_codec", .weights = path}, at::kCPU);
}

at::Tensor convolve(const Tensors& weights, const std::string& name, const at::Tensor& x_NCHW) {
  const at::Tensor& weight = weights.at(name + ".weight");
  return at::conv2d(x_NCHW, weight, weights.at(name + ".bias"), 1, weight.size(2) / 2);
}

// The frames of one clip: [T, C, h, w].
at::Tensor blocks(const Tensors& weights, const std::string& name, int64_t count, at::Tensor x) {
  for (int64_t i = 0; i < count; ++i) {
    const std::string block = name + "." + std::to_string(i) + ".conv.";
    const at::Tensor before = at::cat({at::zeros_like(x.slice(0, 0, 1)), x.slice(0, 0, x.size(0) - 1)});
    const at::Tensor y = convolve(weights, block + "0", at::cat({x, before}, 1)).relu();
    x = (convolve(weights, block + "4", convolve(weights, block + "2", y).relu()) + x).relu();
  }
  return x;
}

// Video [3, F, H, W] in [-1, 1] -> [T, Z, h, w].
at::Tensor expected_latents(const Tensors& weights, const at::Tensor& video) {
  const int64_t h = video.size(2) / 8, w = video.size(3) / 8;
  const at::Tensor whole = at::cat({video.slice(1, 0, 1), video.slice(1, 0, 1), video.slice(1, 0, 1), video}, 1) / 2;
  // Of a patch first the frame, then the colour, the row, the column.
  const at::Tensor patches =
      whole.reshape({3, -1, 4, h, 8, w, 8}).permute({1, 2, 0, 4, 6, 3, 5}).reshape({-1, 768, h, w});
  const at::Tensor x =
      blocks(weights, "encoder.blocks", kSizes.encoder_blocks, convolve(weights, "encoder.conv_in", patches).relu());
  return convolve(weights, "encoder.linear", patches) + convolve(weights, "encoder.conv_out", x);
}

// [T, 4*3*side*side, h, w] -> [3, 4T, h*side, w*side].
at::Tensor unfold_patches(const at::Tensor& patches, int64_t side) {
  const int64_t T = patches.size(0), h = patches.size(2), w = patches.size(3);
  return patches.reshape({T, 4, 3, side, side, h, w})
      .permute({2, 0, 1, 5, 3, 6, 4})
      .reshape({3, 4 * T, h * side, w * side});
}

at::Tensor expected_video(const Tensors& weights, const at::Tensor& latents) {
  at::Tensor x =
      blocks(weights, "decoder.blocks", kSizes.decoder_blocks, convolve(weights, "decoder.conv_in", latents).relu());
  x = convolve(weights, "decoder.enlarge", x);
  const int64_t T = x.size(0), h = x.size(2), w = x.size(3), fine = kSizes.fine_width;
  x = x.reshape({T, fine, 2, 2, h, w}).permute({0, 1, 4, 2, 5, 3}).reshape({T, fine, 2 * h, 2 * w}).relu();
  x = convolve(weights, "decoder.conv_out", blocks(weights, "decoder.fine_blocks", kSizes.fine_blocks, x));
  const at::Tensor frames = unfold_patches(convolve(weights, "decoder.linear", latents), 8) + unfold_patches(x, 4);
  return (frames.slice(1, 3) * 2).clamp(-1, 1);
}

at::Tensor random_video(int64_t frames) {
  at::manual_seed(4);
  return at::rand({1, 3, frames, 16, 24}) * 2 - 1;
}

}  // namespace

TEST_CASE("patch_codec: latents and videos are those of the formula") {
  const vmoba::test::TemporaryFolder folder;
  Tensors weights = random_weights();
  for (auto& [name, tensor] : weights)  // so that values stay inside of [-1, 1], where nothing is clamped
    if (name.starts_with("decoder.linear") || name.starts_with("decoder.conv_out")) tensor *= 0.01;
  const auto codec = open_codec(write_file(folder, weights));
  CHECK(codec->shape().channels == 5);
  CHECK(codec->shape().temporal_stride == 4);
  CHECK(codec->shape().spatial_stride == 8);
  const at::Tensor video = random_video(9), latents = codec->encode(video);
  CHECK(latents.sizes() == at::IntArrayRef({1, 5, 3, 2, 3}));
  CHECK(relative_error(latents[0].transpose(0, 1), expected_latents(weights, video[0])) < kRounding);
  const at::Tensor decoded = codec->decode(latents), expected = expected_video(weights, latents[0].transpose(0, 1));
  CHECK(expected.abs().max().item<double>() < 1);
  CHECK(relative_error(decoded[0], expected) < kRounding);
  CHECK(decoded.is_contiguous());
}

TEST_CASE("patch_codec: no latent frame sees a later frame, and the first one stands alone") {
  const vmoba::test::TemporaryFolder folder;
  const auto codec = open_codec(write_file(folder, random_weights()));
  const at::Tensor video = random_video(13), latents = codec->encode(video);
  for (const int64_t frames : {1, 5, 9})
    CHECK(at::allclose(codec->encode(video.slice(2, 0, frames)), latents.slice(2, 0, 1 + frames / 4), 1e-4, 1e-5));
  const at::Tensor decoded = codec->decode(latents);
  CHECK(at::allclose(codec->decode(latents.slice(2, 0, 2)), decoded.slice(2, 0, 5), 1e-4, 1e-5));
}

TEST_CASE("patch_codec: what does not fit is refused with what does") {
  const vmoba::test::TemporaryFolder folder;
  const auto refusal = [&](const std::function<void(Tensors&)>& change) {
    Tensors weights = random_weights();
    change(weights);
    const std::string path = write_file(folder, weights);
    return refusal_of([&] { open_codec(path); });
  };
  CHECK(contains(refusal_of([] { open_codec(""); }), "vmoba-train-codec makes one"));
  CHECK(contains(refusal([](Tensors& all) { all.erase("encoder.linear.weight"); }),
                 "expected a patch codec with a 4-dimensional 'encoder.linear.weight'"));
  CHECK(contains(refusal([](Tensors& all) { all.erase("decoder.enlarge.bias"); }), "missing: 1 (decoder.enlarge.bias"));
  CHECK(contains(refusal([](Tensors& all) { all["extra"] = at::zeros({1}); }), "unknown: 1 (extra)"));
  CHECK(contains(refusal([](Tensors& all) {
                   all["encoder.linear.weight"] = at::zeros({5, 192, 1, 1});
                 }),
                 "encoder.linear.weight"));
  const std::string path = write_file(folder, random_weights());
  CHECK(contains(refusal_of([&] { make_codec({.type = "patch_codec", .weights = path, .tile_size = 64}, at::kCPU); }),
                 "codec.tile_size: expected 0 for codec.type patch_codec"));
  CHECK(contains(refusal_of([&] {
                   open_codec(path)->encode(at::zeros({1, 3, 8, 16, 16}));
                 }),
                 "codec patch_codec: expected 1 + 4n frames, found 8; use 5 or 9"));
}
