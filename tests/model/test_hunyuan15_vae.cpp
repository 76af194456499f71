// The HunyuanVideo 1.5 VAE's arithmetic, tiles and files against diffusers' AutoencoderKLHunyuanVideo15.
#include <ATen/ATen.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "model/codec.h"
#include "model/codec/hunyuan15_vae_network.h"
#include "model/memory_counter.h"
#include "model/vae_fixture.h"
#include "model/weights/safetensors.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::model;
using nlohmann::json;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::relative_error;
using vmoba::test::VaeCase;
using vmoba::test::VaeFixture;

namespace {

// fp32 against fp64; norms over 8 channels and some 30 layers.
constexpr double kRounding = 1e-5;
constexpr double kScale = 1.03682;
const std::string kVae = vmoba::test::fixtures() + "/model/hunyuan15_vae";

const VaeFixture& fixture() {
  static const VaeFixture one("hunyuan_15_vae", "hunyuan15_vae", kScale);
  return one;
}

Hunyuan15VaeConfig small_config() {
  Hunyuan15VaeConfig config;
  config.latent_channels = 4;
  config.block_out_channels = {8, 8, 8, 8, 16};
  config.layers_per_block = 1;
  return config;
}

}  // namespace

TEST_CASE("hunyuan15_vae: latents and videos of 1, 5, 9 and 13 frames, whole and in tiles, are diffusers'") {
  for (const std::string name : {"frames_1", "frames_5", "frames_9", "frames_13", "space", "space_wide"}) {
    INFO(name);
    const VaeCase one = fixture().read(name);
    const auto codec = make_codec(one.config, at::kCPU);
    const at::Tensor latents = codec->encode(one.video), video = fixture().decoded_half(*codec, one.latents);
    CHECK(latents.scalar_type() == at::kFloat);
    REQUIRE(latents.sizes() == one.mean.sizes());
    REQUIRE(video.sizes() == one.decoded.sizes());
    CHECK(relative_error(latents, one.mean * kScale) < kRounding);
    CHECK(relative_error(video, one.decoded) < kRounding);
    CHECK(video.abs().max().item<double>() <= 1);
  }
}

TEST_CASE("hunyuan15_vae: tiles matter, and a picture that is no larger than one is not cut") {
  VaeCase one = fixture().read("space");
  const at::Tensor tiled = make_codec(one.config, at::kCPU)->encode(one.video);
  one.config.tile_size = 0;
  const at::Tensor whole = make_codec(one.config, at::kCPU)->encode(one.video);
  CHECK(relative_error(tiled, whole) > 100 * kRounding);
  one.config.tile_size = 48;
  CHECK(at::equal(make_codec(one.config, at::kCPU)->encode(one.video), whole));
}

TEST_CASE("hunyuan15_vae: chunks of any number of latent frames give the same") {
  at::manual_seed(1);
  const SafetensorsFile file(kVae + "/diffusion_pytorch_model.safetensors");
  const TensorSource source = [&](const std::string& name, const std::vector<int64_t>&) {
    return file.tensor(name).to(at::kFloat);
  };
  const auto run = [](const auto& network, const at::Tensor& all, const std::vector<int64_t>& chunks) {
    FrameMemory memory;
    std::vector<at::Tensor> out;
    for (const at::Tensor& chunk : all.split_with_sizes(chunks)) out.push_back(network(chunk, memory));
    return at::cat(out);
  };
  const Hunyuan15VaeEncoder encoder(small_config(), source);
  const at::Tensor frames = at::randn({13, 32, 16, 3}), latents = run(encoder, frames, {1, 4, 4, 4});
  CHECK(latents.size(0) == 4);
  CHECK(relative_error(run(encoder, frames, {1, 12}), latents) < kRounding);
  CHECK(relative_error(run(encoder, frames, {1, 8, 4}), latents) < kRounding);
  const Hunyuan15VaeDecoder decoder(small_config(), source);
  const at::Tensor z = at::randn({4, 2, 1, 4}), video = run(decoder, z, {1, 1, 1, 1});
  CHECK(video.size(0) == 13);
  CHECK(relative_error(run(decoder, z, {1, 3}), video) < kRounding);
  CHECK(relative_error(run(decoder, z, {1, 2, 1}), video) < kRounding);
}

TEST_CASE("hunyuan15_vae: the first latent frame is that of the first frame alone, and of its sample alone") {
  const VaeCase one = fixture().read("frames_13");
  const auto codec = make_codec(one.config, at::kCPU);
  const at::Tensor latents = codec->encode(one.video);
  CHECK(at::equal(codec->encode(one.video.slice(2, 0, 1)), latents.slice(2, 0, 1)));
  CHECK(at::equal(codec->encode(at::cat({one.video.flip({4}), one.video})).slice(0, 1, 2), latents));
}

TEST_CASE("hunyuan15_vae: working memory does not grow with the length of the video but for keys and values") {
  const auto codec = make_codec(fixture().read("frames_1").config, at::kCPU);
  const auto working = [&](int64_t latent_frames, bool decode) {
    const at::Tensor latents = at::zeros({1, 4, latent_frames, 2, 2});
    const at::Tensor video = at::zeros({1, 3, 4 * latent_frames - 3, 32, 32});
    int64_t result = 0;
    const int64_t peak =
        vmoba::test::peak_bytes([&] { return decode ? codec->decode(latents) : codec->encode(video); }, result);
    // Keys and values of 4 positions of 16 channels a frame, twice where they are appended; the result and its parts.
    return peak - 3 * result - 2 * int64_t(latents.nbytes()) - latent_frames * 2 * 2 * 4 * 16 * int64_t(sizeof(float));
  };
  for (const bool decode : {false, true}) {
    INFO(decode);
    const int64_t three = working(3, decode), twelve = working(12, decode);
    CHECK(three > 0);
    CHECK(twelve <= three);
  }
}

TEST_CASE("hunyuan15_vae: names and shapes are those of the published VAE, and the original names become them") {
  std::map<std::string, std::vector<int64_t>> expected;
  const json published = fixture().cases().at("published");
  for (const json& row : published) expected[row.at(0)] = row.at(1).get<std::vector<int64_t>>();
  CHECK(expected.size() == 218);
  int64_t values = 0;
  const std::vector<ParameterSpec> specs = hunyuan15_vae_specs(Hunyuan15VaeConfig());
  CHECK(specs.size() == expected.size());
  for (const ParameterSpec& spec : specs) {
    INFO(spec.name);
    CHECK(expected[spec.name] == spec.shape);
    CHECK(hunyuan15_vae_name(spec.name) == spec.name);
    values += spec.numel();
  }
  CHECK(values == 1260634115);
  // hyvideo/models/autoencoders/hunyuanvideo_15_vae.py, diffusers' convert_hunyuan_video1_5_to_diffusers.py
  const std::vector<std::pair<std::string, std::string>> names = {
      {"encoder.down.0.block.1.norm1.gamma", "encoder.down_blocks.0.resnets.1.norm1.gamma"},
      {"encoder.down.3.downsample.conv.conv.bias", "encoder.down_blocks.3.downsamplers.0.conv.conv.bias"},
      {"decoder.up.0.block.2.conv2.conv.weight", "decoder.up_blocks.0.resnets.2.conv2.conv.weight"},
      {"decoder.up.1.upsample.conv.conv.weight", "decoder.up_blocks.1.upsamplers.0.conv.conv.weight"},
      {"encoder.mid.block_2.conv1.conv.weight", "encoder.mid_block.resnets.1.conv1.conv.weight"},
      {"decoder.mid.attn_1.norm.gamma", "decoder.mid_block.attentions.0.norm.gamma"},
      {"decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight"},
      {"vae.decoder.mid.attn_1.proj_out.bias", "decoder.mid_block.attentions.0.proj_out.bias"}};
  for (const auto& [stored, ours] : names) CHECK(hunyuan15_vae_name(stored) == ours);
}

TEST_CASE("hunyuan15_vae: the original names and a file without config.json") {
  const vmoba::test::TemporaryFolder temp;
  Hunyuan15VaeConfig small;
  small.block_out_channels = {8, 16, 16, 64, 64};
  std::vector<NamedTensor> tensors;
  for (const ParameterSpec& spec : hunyuan15_vae_specs(small))
    tensors.push_back({spec.name, at::zeros(spec.shape, at::kBFloat16)});
  CodecConfig config;
  config.type = "hunyuan_15_vae";
  config.weights = temp.path() + "/hunyuanvideo15_vae_fp16.safetensors";
  write_safetensors(config.weights, tensors);
  CHECK(codec_shape(config).channels == 32);
  CHECK(codec_shape(config).spatial_stride == 16);
  tensors.pop_back();
  write_safetensors(config.weights, tensors);
  CHECK(contains(refusal_of([&] { codec_shape(config); }), "missing: 1 ("));
}

TEST_CASE("hunyuan15_vae: what does not fit is refused with what does") {
  const VaeCase one = fixture().read("frames_1");
  const auto codec = make_codec(one.config, at::kCPU);
  CHECK(contains(refusal_of([&] { codec->encode(at::zeros({1, 3, 1, 24, 32})); }), "multiples of 16, found 24x32"));
  CHECK(contains(refusal_of([&] { codec->decode(at::zeros({1, 16, 1, 2, 2})); }), "latents [B, 4, T, H, W]"));
  CodecConfig config = one.config;
  config.tile_size = 24;
  CHECK(contains(refusal_of([&] { codec_shape(config); }), "multiples of 16"));
  config = one.config;
  config.weights = vmoba::test::fixtures() + "/model/hunyuan_vae";
  CHECK(contains(refusal_of([&] { codec_shape(config); }), "spatial_compression_ratio 16"));
}
