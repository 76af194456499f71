// The HunyuanVideo VAE's arithmetic, tiles and files against diffusers' AutoencoderKLHunyuanVideo.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/config.h"
#include "model/codec.h"
#include "model/codec/hunyuan_vae_names.h"
#include "model/codec/hunyuan_vae_network.h"
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
namespace fs = std::filesystem;

namespace {

// fp32 against fp64; group norms and some 30 layers.
constexpr double kRounding = 1e-5;
constexpr double kScale = 0.476986;
const std::string kFixtures = vmoba::test::fixtures() + "/model";
const std::string kVae = vmoba::test::fixtures() + "/model/hunyuan_vae";

const VaeFixture& fixture() {
  static const VaeFixture one("hunyuan_vae", "hunyuan_vae", kScale);
  return one;
}

}  // namespace

TEST_CASE("hunyuan_vae: latents and videos of 1, 5, 17 and 33 frames, whole and in tiles, are diffusers'") {
  for (const std::string name : {"frames_1", "frames_5", "frames_17", "frames_33", "diffusers_17", "diffusers_33",
                                 "diffusers_25", "published_69", "space", "both"}) {
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

TEST_CASE("hunyuan_vae: tiles matter, and fit videos and pictures that are no larger than one") {
  for (const std::string name : {"diffusers_33", "published_69", "space"}) {
    INFO(name);
    VaeCase one = fixture().read(name);
    const at::Tensor tiled = make_codec(one.config, at::kCPU)->encode(one.video);
    one.config.tile_frames = one.config.tile_size = 0;
    const at::Tensor whole = make_codec(one.config, at::kCPU)->encode(one.video);
    CHECK(relative_error(tiled, whole) > 100 * kRounding);
    one.config.tile_frames = (one.video.size(2) + 3) / 4 * 4;
    one.config.tile_size = 64;
    CHECK(at::equal(make_codec(one.config, at::kCPU)->encode(one.video), whole));
  }
  // Published: 64 frames, 16 of them shared.
  CHECK(CodecConfig().tile_frames == 64);
  CHECK(CodecConfig().tile_frames_overlap == 16);
}

TEST_CASE("hunyuan_vae: a sample's numbers do not depend on its batch") {
  const VaeCase one = fixture().read("frames_5");
  const auto codec = make_codec(one.config, at::kCPU);
  const at::Tensor second = one.video.flip({4}), both = codec->encode(at::cat({one.video, second}));
  CHECK(at::equal(both.slice(0, 0, 1), codec->encode(one.video)));
  CHECK(at::equal(both.slice(0, 1, 2), codec->encode(second)));
  CHECK(at::equal(codec->decode(both).slice(0, 1, 2), codec->decode(both.slice(0, 1, 2))));
}

TEST_CASE("hunyuan_vae: convolutions give the same whatever frames they make at a time") {
  at::manual_seed(1);
  const TensorSource random = [](const std::string&, const std::vector<int64_t>& shape) { return at::randn(shape); };
  const at::Tensor x_THWC = at::randn({9, 6, 5, 3});
  // [C, T, H, W] with two frames in front and a border, by ATen itself.
  const at::Tensor padded = at::replication_pad3d(x_THWC.permute({3, 0, 1, 2}).unsqueeze(0), {1, 1, 1, 1, 2, 0});
  for (const std::array<int64_t, 3>& stride : {std::array<int64_t, 3>{1, 1, 1}, {1, 2, 2}, {2, 2, 2}}) {
    at::Tensor weight, bias;
    const TensorSource kept = [&](const std::string& name, const std::vector<int64_t>& shape) {
      return name.ends_with("weight") ? weight = random(name, shape) : bias = random(name, shape);
    };
    const ReplicateConv conv(kept, "conv", 3, 4, stride);
    const at::Tensor expected = at::conv3d(padded, weight, bias, stride).squeeze(0).permute({1, 2, 3, 0});
    for (const int64_t chunk : {0, 1, 2, 3, 4, 9}) {
      INFO(stride[0] << ", " << stride[1] << ", chunks of " << chunk);
      const at::Tensor found = conv({9, 6, 5}, frames_of(x_THWC), chunk);
      REQUIRE(found.sizes() == expected.sizes());
      CHECK(relative_error(found, expected) < kRounding);
    }
  }
}

TEST_CASE("hunyuan_vae: bf16 keeps two digits") {
  VaeCase one = fixture().read("frames_17");
  one.config.compute_dtype = "bf16";
  const auto codec = make_codec(one.config, at::kCPU);
  const at::Tensor latents = codec->encode(one.video);
  CHECK(latents.scalar_type() == at::kFloat);
  // Rounding of 2^-9 in each of some 30 layers that add up like noise: 1.1%, and 4 times that at the worst value.
  CHECK(relative_error(latents, one.mean * kScale) < 0.05);
  CHECK(relative_error(latents, one.mean * kScale) > kRounding);  // it was bf16
}

TEST_CASE("hunyuan_vae: working memory is that of a tile, whatever the length of the video") {
  VaeCase one = fixture().read("diffusers_33");
  const auto codec = make_codec(one.config, at::kCPU);
  const auto working = [&](int64_t latent_frames, bool decode) {
    const at::Tensor latents = at::zeros({1, 4, latent_frames, 2, 2});
    const at::Tensor video = at::zeros({1, 3, 4 * latent_frames - 3, 16, 16});
    int64_t result = 0;
    const int64_t peak =
        vmoba::test::peak_bytes([&] { return decode ? codec->decode(latents) : codec->encode(video); }, result);
    // The result, its parts before they are put together, and the latents before and after their scale.
    return peak - 3 * result - 2 * int64_t(latents.nbytes());
  };
  for (const bool decode : {false, true}) {
    INFO(decode);
    const int64_t short_video = working(9, decode), long_video = working(33, decode);
    CHECK(short_video > 0);
    CHECK(long_video <= short_video);
  }
}

TEST_CASE("hunyuan_vae: names and shapes are those of the published VAE") {
  const json published = fixture().cases().at("published");
  std::map<std::string, std::vector<int64_t>> expected;
  for (const json& row : published) expected[row.at(0)] = row.at(1).get<std::vector<int64_t>>();
  CHECK(expected.size() == 248);
  int64_t values = 0;
  const std::vector<ParameterSpec> specs = hunyuan_vae_specs(HunyuanVaeConfig());
  CHECK(specs.size() == expected.size());
  for (const ParameterSpec& spec : specs) {
    INFO(spec.name);
    CHECK(expected[spec.name] == spec.shape);
    values += spec.numel();
  }
  CHECK(values == 246478803);
  CHECK(values == int64_t(fixture().cases().at("values")));
}

TEST_CASE("hunyuan_vae: ComfyUI's names, a prefix, and maps stored as convolutions give the same latents") {
  // From the table of latent diffusion's names that ComfyUI converts diffusers' VAEs to.
  const std::vector<std::pair<std::string, std::string>> names = {
      {"encoder.down.0.block.1.nin_shortcut.conv.weight", "encoder.down_blocks.0.resnets.1.conv_shortcut.conv.weight"},
      {"encoder.down.2.downsample.conv.conv.bias", "encoder.down_blocks.2.downsamplers.0.conv.conv.bias"},
      {"decoder.up.3.block.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"},
      {"decoder.up.1.upsample.conv.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.conv.weight"},
      {"encoder.mid.block_2.conv1.conv.weight", "encoder.mid_block.resnets.1.conv1.conv.weight"},
      {"decoder.mid.attn_1.norm.bias", "decoder.mid_block.attentions.0.group_norm.bias"},
      {"decoder.mid.attn_1.proj_out.weight", "decoder.mid_block.attentions.0.to_out.0.weight"},
      {"encoder.norm_out.weight", "encoder.conv_norm_out.weight"},
      {"vae.encoder.conv_in.conv.weight", "encoder.conv_in.conv.weight"},
      {"first_stage_model.quant_conv.bias", "quant_conv.bias"}};
  for (const auto& [stored, ours] : names) CHECK(hunyuan_vae_name(stored) == ours);
  for (const ParameterSpec& spec : hunyuan_vae_specs(HunyuanVaeConfig()))
    CHECK(hunyuan_vae_name(spec.name) == spec.name);
  for (const char* strange :
       {"encoder.down.9.block.0.conv1.conv.weight", "decoder.mid.attn_1.x", "encoder.down.x", "a"})
    CHECK(hunyuan_vae_name(strange) == strange);

  VaeCase one = fixture().read("frames_5");
  const vmoba::test::TemporaryFolder temp;
  const SafetensorsFile file(kVae + "/diffusion_pytorch_model.safetensors");
  std::vector<NamedTensor> tensors;
  for (const auto& [name, info] : file.tensors()) {
    const bool map = info.shape.size() == 2;
    tensors.push_back({"vae." + name, map ? file.tensor(name).view({info.shape[0], info.shape[1], 1, 1, 1})
                                          : file.tensor(name).clone()});
  }
  fs::copy_file(kVae + "/config.json", temp.path() + "/config.json");
  write_safetensors(temp.path() + "/diffusion_pytorch_model.safetensors", tensors);
  const at::Tensor reference = make_codec(one.config, at::kCPU)->encode(one.video);
  one.config.weights = temp.path();
  CHECK(at::equal(make_codec(one.config, at::kCPU)->encode(one.video), reference));
}

TEST_CASE("hunyuan_vae: a file without config.json has the widths of its shapes and published values else") {
  const HunyuanVaeConfig published;
  CHECK(published.shape().channels == 16);
  CHECK(published.shape().spatial_stride == 8);
  CHECK(published.shape().temporal_stride == 4);
  const vmoba::test::TemporaryFolder temp;
  HunyuanVaeConfig small;
  small.block_out_channels = {32, 32, 64, 64};
  std::vector<NamedTensor> tensors;
  for (const ParameterSpec& spec : hunyuan_vae_specs(small))
    tensors.push_back({spec.name, at::zeros(spec.shape, at::kBFloat16)});
  const std::string path = temp.path() + "/hunyuan_video_vae_bf16.safetensors";
  write_safetensors(path, tensors);
  CodecConfig config;
  config.type = "hunyuan_vae";
  config.weights = path;
  CHECK(codec_shape(config).channels == 16);
  CHECK(make_codec(config, at::kCPU)->encode(at::zeros({1, 3, 1, 16, 16})).size(1) == 16);
  const std::string missing = tensors.back().name;
  tensors.pop_back();
  write_safetensors(path, tensors);
  CHECK(contains(refusal_of([&] { codec_shape(config); }), "missing: 1 (" + missing));
}

TEST_CASE("hunyuan_vae: what does not fit is refused with what does") {
  const VaeCase one = fixture().read("frames_1");
  const auto codec = make_codec(one.config, at::kCPU);
  CHECK(contains(refusal_of([&] {
                   codec->encode(at::zeros({1, 3, 8, 16, 16}));
                 }),
                 "codec hunyuan_vae: expected 1 + 4n frames, found 8; use 5 or 9"));
  CHECK(contains(refusal_of([&] { codec->encode(at::zeros({1, 3, 5, 20, 16})); }), "multiples of 8"));
  CHECK(contains(refusal_of([&] { codec->decode(at::zeros({1, 16, 1, 2, 2})); }), "latents [B, 4, T, H, W]"));
  const auto with = [&](auto change) {
    CodecConfig config = one.config;
    change(config);
    const std::string message = refusal_of([&] { codec_shape(config); });
    CHECK(refusal_of([&] { make_codec(config, at::kCPU); }) == message);
    return message;
  };
  CHECK(contains(with([](CodecConfig& c) { c.tile_frames = 18; }), "codec.tile_frames and codec.tile_frames_overlap"));
  CHECK(contains(with([](CodecConfig& c) { c.tile_frames = c.tile_frames_overlap = 16; }), "found 16 and 16"));
  CHECK(contains(with([](CodecConfig& c) { c.tile_size = 20; }), "codec.tile_size and codec.tile_overlap"));
  CHECK(contains(with([](CodecConfig& c) { c.weights.clear(); }), "hunyuanvideo-community/HunyuanVideo"));
  CHECK(contains(with([](CodecConfig& c) { c.weights = kFixtures + "/wan_vae_21"; }), "AutoencoderKLWan"));
}

TEST_CASE("hunyuan_vae: time tiles are keys of this codec alone") {
  const auto parse = [](const std::string& text) {
    CodecConfig parsed;
    vmoba::parse_config(text, "test", {}, [&](vmoba::ConfigVisitor& v) { parsed.visit(v); });
    return parsed;
  };
  CHECK(parse("{type: hunyuan_vae, tile_frames: 16, tile_frames_overlap: 4}").tile_frames == 16);
  CHECK(contains(refusal_of([&] { parse("{type: wan_vae, tile_frames: 16}"); }), "tile_frames"));
}
