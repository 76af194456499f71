// Expected values: tests/fixtures/model/clip, made by scripts/make_clip_fixtures.py with transformers and PIL.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "model/image/clip_preprocess.h"
#include "model/image_encoder.h"
#include "model/test_image.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"

using namespace vmoba;
using namespace vmoba::model;
using test::image_of;
namespace fs = std::filesystem;

namespace {

const std::string kFixture = test::fixtures() + "/model/clip";

at::Tensor expected(const std::string& name) {
  return SafetensorsFile(kFixture + "/expected.safetensors").tensor(name).clone();
}

ImageEncoderConfig fixture_config() {
  return {"clip", kFixture + "/image_encoder"};
}

std::vector<NamedTensor> stored_tensors() {
  const SafetensorsFile file(kFixture + "/image_encoder/model.safetensors");
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors()) out.push_back({name, file.tensor(name).clone()});
  return out;
}

struct Size {
  const char* name;
  int64_t height, width;
};
constexpr Size kSizes[] = {{"exact", 224, 224}, {"wide", 150, 401}, {"tall", 377, 301}, {"small", 60, 45}};

}  // namespace

TEST_CASE("images are resized and cropped within one level of PIL's result") {
  // A level is 1/255 of the range, divided by the smallest deviation.
  const double level = 1 / 255.0 / 0.26130258;
  for (const Size& size : kSizes) {
    INFO(size.name);
    const at::Tensor bytes = clip_resize(image_of(size.height, size.width), 224);
    REQUIRE(bytes.sizes() == at::IntArrayRef({1, 3, 224, 224}));
    const at::Tensor pixels = clip_normalize(bytes).slice(2, 0, 224, 7).slice(3, 0, 224, 7);
    const at::Tensor error = (pixels - expected(std::string(size.name) + ".pixels")).abs();
    CHECK(error.max().item<double>() < 1.01 * level);
    // Rounding may fall to the other side in a few places only.
    CHECK(error.gt(0.5 * level).to(at::kFloat).mean().item<double>() < 0.01);
    if (std::string(size.name) == "exact") CHECK(error.max().item<double>() < 1e-5);
  }
}

TEST_CASE("hidden states equal those that WanImageToVideoPipeline takes from CLIPVisionModel") {
  const auto encoder = make_image_encoder(fixture_config(), at::kCPU);
  CHECK(encoder->dim() == 16);
  CHECK(encoder->tokens() == 257);
  for (const Size& size : kSizes) {
    INFO(size.name);
    const at::Tensor found = encoder->encode(image_of(size.height, size.width));
    const at::Tensor wanted = expected(std::string(size.name) + ".hidden");
    REQUIRE(found.sizes() == wanted.sizes());
    const double error = (found - wanted).abs().max().item<double>();
    // Without resizing the pixels are the same; with it, a few differ by a level, a thousandth of their range.
    CHECK(error < (std::string(size.name) == "exact" ? 2e-5 : 0.05));
  }
}

TEST_CASE("images of a batch are encoded as alone") {
  const auto encoder = make_image_encoder(fixture_config(), at::kCPU);
  const at::Tensor a = image_of(150, 401), b = a.flip({3});
  const at::Tensor both = encoder->encode(at::cat({a, b}));
  CHECK((both[0] - encoder->encode(a)[0]).abs().max().item<double>() < 1e-5);
  CHECK((both[1] - encoder->encode(b)[0]).abs().max().item<double>() < 1e-5);
  CHECK((both[0] - both[1]).abs().max().item<double>() > 0.1);
}

TEST_CASE("names with the prefix of older files, ComfyUI's extra tensors, and the folder one level up are read alike") {
  const at::Tensor image = image_of(224, 224);
  const at::Tensor reference = make_image_encoder(fixture_config(), at::kCPU)->encode(image);
  const fs::path folder = fs::temp_directory_path() / "vmoba_clip" / "image_encoder";
  fs::remove_all(folder.parent_path());
  fs::create_directories(folder);
  std::vector<NamedTensor> tensors = stored_tensors();
  for (NamedTensor& named : tensors) named.name = "vision_model." + named.name;
  tensors.push_back({"vision_model.embeddings.position_ids", at::arange(257).unsqueeze(0)});
  tensors.push_back({"visual_projection.weight", at::zeros({8, 16})});
  write_safetensors((folder / "clip_vision_h.safetensors").string(), tensors);
  fs::copy_file(kFixture + "/image_encoder/config.json", folder / "config.json");
  for (const fs::path& path : {folder / "clip_vision_h.safetensors", folder.parent_path()}) {
    const auto encoder = make_image_encoder({"clip", path.string()}, at::kCPU);
    CHECK(at::equal(encoder->encode(image), reference));
  }
}

TEST_CASE("what is no CLIP vision model is refused with a reason") {
  const fs::path folder = fs::temp_directory_path() / "vmoba_clip_refused";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const auto refusal = [](const ImageEncoderConfig& config) {
    return test::refusal_of([&] { make_image_encoder(config, at::kCPU); });
  };
  const std::string path = (folder / "model.safetensors").string();
  CHECK(make_image_encoder({"none", ""}, at::kCPU) == nullptr);
  CHECK(test::contains(refusal({"none", path}), "expected empty"));
  CHECK(test::contains(refusal({"clip", ""}), "image_encoder.weights"));
  CHECK(test::contains(refusal({"clip", path}), "found nothing"));
  write_safetensors(path, {{"x", at::zeros({1})}});
  CHECK(test::contains(refusal({"clip", path}), "such as 'x'"));

  std::vector<NamedTensor> tensors = stored_tensors();
  // Without a config.json ViT-H's 16 heads are assumed; they would divide 16 as well.
  write_safetensors(path, tensors);
  CHECK(make_image_encoder({"clip", path}, at::kCPU)->dim() == 16);
  std::ofstream(folder / "config.json") << R"({"hidden_act": "relu", "num_attention_heads": 2})";
  CHECK(test::contains(refusal({"clip", path}), "relu"));
  std::ofstream(folder / "config.json") << R"({"hidden_act": "gelu", "num_attention_heads": 3})";
  CHECK(test::contains(refusal({"clip", path}), "3 heads"));
  fs::remove(folder / "config.json");
  for (NamedTensor& named : tensors)
    if (named.name == "encoder.layers.1.mlp.fc2.weight") named.tensor = at::zeros({16, 27});
  write_safetensors(path, tensors);
  CHECK(test::contains(refusal({"clip", path}), "16x28"));
  const auto image = [](std::vector<int64_t> shape) {
    return test::refusal_of([&] { clip_resize(at::zeros(shape), 224); });
  };
  CHECK(test::contains(image({3, 8, 8}), "[3, 8, 8]"));
  CHECK(test::contains(image({1, 1, 8, 8}), "[1, 1, 8, 8]"));
}
