// codec.type taehv against a PyTorch model of the architecture (scripts/make_taehv_fixtures.py).
#include <ATen/ATen.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/codec/taehv.h"
#include "model/codec/taehv_network.h"
#include "model/memory_counter.h"
#include "model/vae_fixture.h"
#include "model/weights/safetensors.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::peak_bytes;
using vmoba::test::refusal_of;
using vmoba::test::relative_error;

namespace {

// Two fp32 runs of the same sums in another order; the networks are some 40 layers deep.
constexpr double kRounding = 1e-5;
const std::string kModels = vmoba::test::fixtures() + "/model/";

struct Fixture {
  std::string name;
  SafetensorsFile file{kModels + "taehv_cases.safetensors"};

  at::Tensor tensor(const char* part) const { return file.tensor(name + "." + part).to(at::kFloat).unsqueeze(0); }
  at::Tensor video() const { return tensor("video_u8") / 127.5 - 1; }
  at::Tensor decoded() const { return (tensor("decoded") * 2 - 1).clamp(-1, 1); }
  std::unique_ptr<Codec> codec() const { return make_codec(config(), at::kCPU); }
  CodecConfig config() const { return {.type = "taehv", .weights = kModels + name + ".safetensors"}; }
};

std::vector<Fixture> fixtures() {
  std::vector<Fixture> out;
  for (const char* name : {"taehv", "taehv_variant"}) out.push_back({name});
  return out;
}

// A copy of the fixture's file with some tensors or metadata changed.
std::string changed_file(const vmoba::test::TemporaryFolder& folder,
                         const std::function<void(std::map<std::string, at::Tensor>&)>& change,
                         const std::map<std::string, std::string>& metadata = {}) {
  const SafetensorsFile file(kModels + "taehv.safetensors");
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, info] : file.tensors()) tensors[name] = file.tensor(name);
  change(tensors);
  std::vector<NamedTensor> named;
  for (const auto& [name, tensor] : tensors) named.push_back({name, tensor});
  const std::string path = folder.path() + "/changed.safetensors";
  write_safetensors(path, named, metadata);
  return path;
}

std::string refusal_of_file(const std::string& path) {
  return refusal_of([&] { make_codec({.type = "taehv", .weights = path}, at::kCPU); });
}

}  // namespace

TEST_CASE("taehv: latents and videos are those of the reference") {
  for (const Fixture& fixture : fixtures()) {
    INFO(fixture.name);
    const auto codec = fixture.codec();
    const at::Tensor encoded = fixture.tensor("encoded");
    CHECK(codec->shape().channels == encoded.size(1));
    CHECK(codec->shape().temporal_stride == 4);
    CHECK(codec->shape().spatial_stride == fixture.video().size(4) / encoded.size(4));
    CHECK(relative_error(codec->encode(fixture.video()), encoded) < kRounding);
    const at::Tensor video = codec->decode(fixture.tensor("latents"));
    CHECK(relative_error(video, fixture.decoded()) < kRounding);
    CHECK(video.is_contiguous());
  }
}

TEST_CASE("taehv: shorter latents decode to the first frames, and frame counts are the Wan VAE's") {
  for (const Fixture& fixture : fixtures()) {
    INFO(fixture.name);
    const auto codec = fixture.codec();
    for (const int64_t count : {1, 2, 3}) {
      const at::Tensor video = codec->decode(fixture.tensor("latents").slice(2, 0, count));
      CHECK(video.size(2) == 4 * count - 3);
      CHECK(relative_error(video, fixture.decoded().slice(2, 0, 4 * count - 3)) < kRounding);
      CHECK(codec->encode(video).size(2) == count);
    }
  }
}

TEST_CASE("taehv: a file that says so sees the first frame alone, the published ones look ahead") {
  const auto first_latents_differ = [](const Fixture& fixture) {
    const auto codec = fixture.codec();
    const at::Tensor latents = codec->encode(fixture.video().slice(2, 0, 1));
    return !at::allclose(latents, codec->encode(fixture.video()).slice(2, 0, 1), 1e-4, 1e-5);
  };
  CHECK(first_latents_differ({"taehv"}));
  CHECK_FALSE(first_latents_differ({"taehv_variant"}));
}

TEST_CASE("taehv: a chunk of many frames gives the same as a chunk for each latent frame") {
  for (const Fixture& fixture : fixtures()) {
    INFO(fixture.name);
    const CodecConfig config = fixture.config();
    const SafetensorsFile file(config.weights);
    const TaehvConfig sizes = deduce_taehv_config(
        [&](const std::string& name) {
          return file.contains(name) ? file.tensors().at(name).shape : std::vector<int64_t>{};
        },
        config.weights);
    const TensorSource source = [&](const std::string& name, const std::vector<int64_t>&) {
      return file.tensor(name).to(at::kFloat);
    };
    at::manual_seed(1);
    constexpr int64_t kBatch = 2;
    const auto run = [](const auto& network, const at::Tensor& all, const std::vector<int64_t>& frames) {
      FrameMemory memory;
      std::vector<int64_t> rows;
      for (const int64_t count : frames) rows.push_back(count * kBatch);
      std::vector<at::Tensor> out;
      for (const at::Tensor& chunk : all.split_with_sizes(rows)) out.push_back(network(chunk, kBatch, memory));
      return at::cat(out);
    };
    const TaehvEncoder encoder(sizes, source);
    const at::Tensor frames = at::rand({12 * kBatch, sizes.patch_channels(), 16, 8});
    const at::Tensor latents = run(encoder, frames, {4, 4, 4});
    CHECK(latents.size(0) == 3 * kBatch);
    CHECK(relative_error(run(encoder, frames, {12}), latents) < kRounding);
    CHECK(relative_error(run(encoder, frames, {8, 4}), latents) < kRounding);
    const TaehvDecoder decoder(sizes, source);
    const at::Tensor video = run(decoder, latents, {1, 1, 1});
    CHECK(video.size(0) == 12 * kBatch);
    CHECK(relative_error(run(decoder, latents, {3}), video) < kRounding);
    // Videos of a batch do not see each other.
    const at::Tensor alone = latents.view({3, kBatch, -1, 2, 1}).select(1, 1).contiguous();
    FrameMemory memory;
    const at::Tensor second = video.view({12, kBatch, sizes.patch_channels(), 16, 8}).select(1, 1);
    CHECK(relative_error(decoder(alone, 1, memory), second) < kRounding);
  }
}

TEST_CASE("taehv: working memory does not grow with the length of the video") {
  const auto codec = Fixture{"taehv"}.codec();
  const auto bytes = [&](int64_t latent_frames, int64_t& result_bytes) {
    const at::Tensor latents = at::zeros({1, 16, latent_frames, 16, 16});
    return peak_bytes([&] { return codec->decode(latents); }, result_bytes);
  };
  constexpr int64_t kCopies = 3;  // of the frames, on their way into the batch
  int64_t few = 0, many = 0;
  const int64_t grown = bytes(12, many) - bytes(3, few);
  CHECK(many == 5 * few);
  CHECK(grown <= kCopies * (many - few) + (1 << 20));
}

TEST_CASE("taehv: names and shapes are those of the published files") {
  const nlohmann::json published = nlohmann::json::parse(std::ifstream(kModels + "taehv_shapes.json"));
  for (const auto& [name, tensors] : published.items()) {
    INFO(name);
    std::map<std::string, std::vector<int64_t>> expected;
    for (const auto& row : tensors) expected[row[0]] = row[1].get<std::vector<int64_t>>();
    const TaehvConfig config = deduce_taehv_config(
        [&](const std::string& tensor) {
          return expected.contains(tensor) ? expected.at(tensor) : std::vector<int64_t>{};
        },
        name);
    std::map<std::string, std::vector<int64_t>> found;
    for (const ParameterSpec& spec : taehv_specs(config)) found[spec.name] = spec.shape;
    CHECK(found == expected);
    CHECK(config.shape().channels == (name == "taew2_1" ? 16 : 48));
    CHECK(config.shape().spatial_stride == (name == "taew2_1" ? 8 : 16));
  }
}

TEST_CASE("taehv: bf16 keeps two digits") {
  CodecConfig config = Fixture{"taehv"}.config();
  config.compute_dtype = "bf16";
  const Fixture fixture{"taehv"};
  const double error = relative_error(make_codec(config, at::kCPU)->encode(fixture.video()), fixture.tensor("encoded"));
  CHECK(error < 0.05);
  CHECK(error > 1e-4);
}

TEST_CASE("taehv: what does not fit is refused with what does") {
  const vmoba::test::TemporaryFolder folder;
  const std::string pickle = folder.path() + "/taew2_1.pth";
  std::ofstream(pickle) << "PK";
  CHECK(contains(refusal_of_file(pickle), "expected safetensors, found a pickle"));
  CHECK(contains(refusal_of_file(pickle), "save_file"));
  CHECK(contains(refusal_of_file(""), "docs/pretrained.md"));
  CHECK(contains(refusal_of_file(kModels + "hunyuan_vae/diffusion_pytorch_model.safetensors"),
                 "expected a TAEHV autoencoder with a 4-dimensional 'encoder.0.weight'"));
  CHECK(contains(refusal_of_file(changed_file(folder, [](auto& all) { all.erase("decoder.9.conv.2.bias"); })),
                 "missing: 1 (decoder.9.conv.2.bias 6)"));
  CHECK(contains(refusal_of_file(changed_file(folder, [](auto& all) { all["extra"] = at::zeros({1}); })),
                 "unknown: 1 (extra)"));
  CHECK(contains(refusal_of_file(changed_file(folder,
                                              [](auto& all) {
                                                all["decoder.13.conv.weight"] = at::zeros({6, 6, 1, 1});
                                              })),
                 "the same strides of 1 or 2 frames"));
  CHECK(contains(refusal_of_file(changed_file(folder, [](auto&) {}, {{"first_frame_alone", "yes"}})),
                 "expected true or false as first_frame_alone"));
  CodecConfig tiles = Fixture{"taehv"}.config();
  tiles.tile_size = 64;
  CHECK(contains(refusal_of([&] { make_codec(tiles, at::kCPU); }), "codec.tile_size: expected 0 for codec.type taehv"));
  const auto codec = Fixture{"taehv"}.codec();
  CHECK(contains(refusal_of([&] {
                   codec->encode(at::zeros({1, 3, 8, 16, 16}));
                 }),
                 "codec taehv: expected 1 + 4n frames, found 8; use 5 or 9"));
  CHECK(contains(refusal_of([&] { codec->decode(at::zeros({1, 4, 1, 2, 2})); }), "codec taehv: expected latents"));
}
