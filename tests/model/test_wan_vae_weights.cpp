// Wan VAE files: layouts, names and shapes of the published ones, and what is said about damaged ones.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "core/check.h"
#include "model/codec/wan_vae_names.h"
#include "model/codec/wan_vae_network.h"
#include "model/wan_vae_fixture.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;

namespace {

namespace fs = std::filesystem;

constexpr const char* kFile = "diffusion_pytorch_model.safetensors";

std::vector<NamedTensor> fixture_tensors(const std::string& version) {
  const SafetensorsFile file(fixture_path(fmt::format("wan_vae_{}/{}", version, kFile)));
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors()) out.push_back({name, file.tensor(name)});
  return out;
}

// The fixture's weights under the names of the original repository, which do not depend on widths.
std::vector<NamedTensor> original_tensors(const std::string& version, const std::string& prefix) {
  std::map<std::string, std::string> originals;
  for (const PublishedTensor& row : published_tensors(version == "21" ? "2.1" : "2.2"))
    originals[row.name] = row.original;
  std::vector<NamedTensor> out = fixture_tensors(version);
  for (NamedTensor& named : out) named.name = prefix + originals.at(named.name);
  return out;
}

CodecConfig wan_vae(const fs::path& weights) {
  CodecConfig config;
  config.type = "wan_vae";
  config.weights = weights.string();
  return config;
}

std::string refusal(const fs::path& weights) {
  return refusal_of([&] { make_codec(wan_vae(weights), at::kCPU); });
}

}  // namespace

TEST_CASE("wan_vae: the published networks have diffusers' names and shapes") {
  for (const std::string version : {"2.1", "2.2"}) {
    INFO(version);
    std::map<std::string, std::vector<int64_t>> expected, found;
    for (const PublishedTensor& row : published_tensors(version)) expected[row.name] = row.shape;
    const ShapeOf shape_of = [&](const std::string& name) {
      const auto row = expected.find(name);
      return row == expected.end() ? std::vector<int64_t>{} : row->second;
    };
    const WanVaeConfig config = deduce_wan_vae_config(shape_of, "listing");
    for (const ParameterSpec& spec : wan_vae_specs(config)) CHECK(found.emplace(spec.name, spec.shape).second);
    CHECK(expected.size() == (version == "2.1" ? 194 : 196));
    CHECK(found == expected);
    const CodecShape shape = config.shape();
    CHECK(shape.channels == (version == "2.1" ? 16 : 48));
    CHECK(shape.temporal_stride == 4);
    CHECK(shape.spatial_stride == (version == "2.1" ? 8 : 16));
    const nlohmann::json published = published_vae(version).at("config");
    CHECK(config.base_dim == published.at("base_dim").get<int64_t>());
    CHECK(config.is_residual == published.at("is_residual").get<bool>());
    if (version == "2.1") {
      CHECK(config.latents_mean == published.at("latents_mean").get<std::vector<double>>());
      CHECK(config.latents_std == published.at("latents_std").get<std::vector<double>>());
    }
  }
}

TEST_CASE("wan_vae: every original name becomes diffusers', and diffusers' stay") {
  for (const std::string version : {"2.1", "2.2"}) {
    for (const PublishedTensor& row : published_tensors(version)) {
      CHECK(wan_vae_name(row.original) == row.name);
      CHECK(wan_vae_name(row.name) == row.name);
      CHECK(wan_vae_name("model." + row.original) == row.name);
    }
  }
  for (const char* other : {"", "encoder", "encoder.", "encoder.downsamples.", "encoder.downsamples.x.residual.0.gamma",
                            "decoder.upsamples.99999999999999999999.shortcut.bias", "blocks.0.self_attn.q.weight"})
    CHECK(wan_vae_name(other) == other);
}

TEST_CASE("wan_vae: files in the original names give the same as the folder, but for the statistics") {
  for (const std::string version : {"21", "22"}) {
    const VaeFixture fixture = vae_fixture(version);
    const vmoba::test::TemporaryFolder folder;
    const fs::path root = folder.path();
    for (const std::string prefix : {"", "model."}) {
      INFO(version << prefix);
      const fs::path file = root / "wan_vae.safetensors";
      write_safetensors(file.string(), original_tensors(version, prefix));
      const auto codec = make_codec(wan_vae(file), at::kCPU);
      const WanVaeConfig config = WanVaeWeights(file.string()).config();
      CHECK(codec_shape(wan_vae(file)).spatial_stride == (version == "21" ? 8 : 16));
      const at::Tensor expected = Statistics(config).normalised(fixture.batched("mean"));
      CHECK(relative_error(codec->encode(fixture.video("video_u8")), expected) < 1e-5);
      const at::Tensor latents = Statistics(config).normalised(fixture.batched("latents")).to(at::kFloat);
      CHECK(relative_error(codec->decode(latents), fixture.batched("decoded")) < 1e-5);
    }
  }
}

TEST_CASE("wan_vae: the published Wan2.1 statistics move latents as diffusers' pipelines do") {
  const VaeFixture fixture = vae_fixture("21");
  const vmoba::test::TemporaryFolder folder;
  const fs::path root = folder.path();
  write_safetensors((root / "vae.safetensors").string(), fixture_tensors("21"));  // no config.json beside it
  const at::Tensor found = make_codec(wan_vae(root / "vae.safetensors"), at::kCPU)->encode(fixture.video("video_u8"));
  const nlohmann::json published = published_vae("2.1").at("config");
  for (const int64_t channel : {0, 15}) {
    const double mean = published.at("latents_mean").at(size_t(channel)),
                 deviation = published.at("latents_std").at(size_t(channel));
    const at::Tensor expected = (fixture.batched("mean").select(1, channel) - mean) / deviation;
    CHECK(relative_error(found.select(1, channel), expected) < 1e-5);
  }
}

TEST_CASE("wan_vae: the pipeline's folder will do") {
  const vmoba::test::TemporaryFolder folder;
  const fs::path root = folder.path();
  fs::copy(fixture_path("wan_vae_21"), root / "vae", fs::copy_options::recursive);
  CHECK(codec_shape(wan_vae(root)).channels == 16);
  CHECK(refusal(root).empty());
}

TEST_CASE("wan_vae: what is wrong with a file is named") {
  const vmoba::test::TemporaryFolder folder;
  const fs::path root = folder.path();
  const fs::path file = root / "vae.safetensors";
  std::vector<NamedTensor> tensors = original_tensors("21", "");
  const auto at_name = [&](const std::string& name) -> NamedTensor& {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name == name; });
  };
  at_name("decoder.middle.1.proj.weight").tensor = at::zeros({8, 9, 1, 1});
  at_name("encoder.downsamples.4.residual.6.bias").name = "encoder.downsamples.4.residual.7.bias";
  write_safetensors(file.string(), tensors);
  const std::string message = refusal(file);
  CHECK(contains(message, "missing: 1 (encoder.down_blocks.4.conv2.bias 4)"));
  CHECK(contains(message, "decoder.middle.1.proj.weight: expected 8x8x1x1, found Float 8x9x1x1"));
  CHECK(contains(message, "unknown: 1 (encoder.downsamples.4.residual.7.bias)"));

  at_name("decoder.middle.1.proj.weight").tensor = at::zeros({8, 8, 1, 1}, at::kInt);
  write_safetensors(file.string(), tensors);
  CHECK(contains(refusal(file), "expected 8x8x1x1, found Int 8x8x1x1"));

  tensors = fixture_tensors("21");
  tensors.push_back(original_tensors("21", "").front());
  write_safetensors(file.string(), tensors);
  CHECK(contains(refusal(file), "under two names"));

  write_safetensors(file.string(), {{"blocks.0.self_attn.q.weight", at::zeros({4, 4})}});
  CHECK(contains(refusal(file), "expected a Wan VAE with a 5-dimensional 'encoder.conv_in.weight'"));
}

TEST_CASE("wan_vae: missing files are asked for with where to get them") {
  const vmoba::test::TemporaryFolder folder;
  const fs::path root = folder.path();
  for (const std::string& message : {refusal(""), refusal(root), refusal(root / "none.safetensors")}) {
    CHECK(contains(message, "codec.weights"));
    CHECK(contains(message, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"));
  }
  CHECK(contains(refusal_of([&] { codec_shape(wan_vae(root / "none")); }), "found nothing"));
  std::ofstream(root / "Wan2.1_VAE.pth") << "PK";
  const std::string pickle = refusal(root / "Wan2.1_VAE.pth");
  CHECK(contains(pickle, "codec.weights"));
  CHECK(contains(pickle, "safetensors"));
}

TEST_CASE("wan_vae: a config.json that makes no network is refused") {
  const vmoba::test::TemporaryFolder folder;
  const fs::path root = folder.path();
  fs::copy(fixture_path("wan_vae_22"), root / "vae", fs::copy_options::recursive);
  const fs::path file = root / "vae" / "config.json";
  const nlohmann::json good = nlohmann::json::parse(vmoba::read_file(file.string(), 1 << 20, "fixture"));
  const auto message_with = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json changed = good;
    changed[key] = value;
    std::ofstream(file) << changed;
    return refusal(root);
  };
  CHECK(contains(message_with("_class_name", "AutoencoderKL"), "expected the configuration of an AutoencoderKLWan"));
  CHECK(contains(message_with("base_dim", "wide"), "base_dim"));
  CHECK(contains(message_with("base_dim", int64_t{1} << 40), "expected base_dim of 1 to 65536"));
  CHECK(contains(message_with("base_dim", 7), "of another shape or type: "));
  CHECK(contains(message_with("dim_mult", {1, 2, 5, 4}), "divide from stage to stage"));
  CHECK(contains(message_with("temperal_downsample", {true}), "expected 3 values of temperal_downsample"));
  CHECK(
      contains(message_with("latents_std", std::vector<double>(48, 1.0)), "expected 16 latents_mean and latents_std"));
  CHECK(contains(message_with("latents_std", std::vector<double>(16, 0.0)), "positive latents_std"));
  CHECK(contains(message_with("attn_scales", {0.5}), "expected no attn_scales"));
  CHECK(contains(message_with("patch_size", 1), "expected in_channels and out_channels of 3 * patch_size^2 (3)"));
  CHECK(message_with("dropout", 0.0).empty());
}

TEST_CASE("wan_vae: tiles are multiples of the stride, and dct has none") {
  CodecConfig config = vae_fixture("22").codec_config();
  config.tile_size = 40;
  CHECK(contains(refusal_of([&] { codec_shape(config); }),
                 "codec.tile_size and codec.tile_overlap: expected multiples of 16"));
  config.tile_size = config.tile_overlap = 64;
  CHECK(contains(refusal_of([&] { make_codec(config, at::kCPU); }), "the overlap less than the tile"));
  CodecConfig dct;
  dct.tile_size = 64;
  CHECK(contains(refusal_of([&] { make_codec(dct, at::kCPU); }), "codec.tile_size"));
}
