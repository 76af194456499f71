// Expected values: tests/fixtures/model/siglip, made by scripts/make_siglip_fixtures.py with transformers and PIL.
#include <ATen/ATen.h>

#include <filesystem>

#include "model/image/clip_preprocess.h"
#include "model/image_encoder.h"
#include "model/test_image.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::model;
namespace fs = std::filesystem;

namespace {

const std::string kFixture = test::fixtures() + "/model/siglip";
constexpr int64_t kPixels = 45;

struct Size {
  const char* name;
  int64_t height, width;
};
constexpr Size kSizes[] = {{"exact", kPixels, kPixels}, {"wide", 150, 401}, {"small", 31, 23}};

at::Tensor expected(const std::string& name) {
  return SafetensorsFile(kFixture + "/expected.safetensors").tensor(name).clone();
}

ImageEncoderConfig fixture_config() {
  return {"siglip", kFixture + "/image_encoder"};
}

std::vector<NamedTensor> stored_tensors() {
  const SafetensorsFile file(kFixture + "/image_encoder/model.safetensors");
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors()) out.push_back({name, file.tensor(name).clone()});
  return out;
}

}  // namespace

TEST_CASE("siglip: both sides are resized within one level of PIL's result") {
  const double level = 2 / 255.0;
  for (const Size& size : kSizes) {
    INFO(size.name);
    const at::Tensor bytes = bicubic_resize(test::image_of(size.height, size.width), kPixels, kPixels);
    REQUIRE(bytes.sizes() == at::IntArrayRef({1, 3, kPixels, kPixels}));
    const at::Tensor pixels = siglip_normalize(bytes).slice(2, 0, kPixels, 3).slice(3, 0, kPixels, 3);
    const at::Tensor error = (pixels - expected(std::string(size.name) + ".pixels")).abs();
    CHECK(error.max().item<double>() < 1.01 * level);
    CHECK(error.gt(0.5 * level).to(at::kFloat).mean().item<double>() < 0.01);
  }
}

TEST_CASE("siglip: states equal those that HunyuanVideo15ImageToVideoPipeline takes") {
  const auto encoder = make_image_encoder(fixture_config(), at::kCPU);
  CHECK(encoder->dim() == 18);
  CHECK(encoder->tokens() == 9);
  for (const Size& size : kSizes) {
    INFO(size.name);
    const at::Tensor found = encoder->encode(test::image_of(size.height, size.width));
    const at::Tensor wanted = expected(std::string(size.name) + ".hidden");
    REQUIRE(found.sizes() == wanted.sizes());
    const double error = ((found - wanted).abs().max() / wanted.abs().max()).item<double>();
    // Without resizing the pixels are the same; with it, a few differ by a level.
    CHECK(error < (std::string(size.name) == "exact" ? 1e-5 : 0.05));
  }
}

TEST_CASE("siglip: names with a prefix, without the pooling head, in a single file") {
  const test::TemporaryFolder temp;
  const at::Tensor image = test::image_of(kPixels, kPixels);
  const at::Tensor reference = make_image_encoder(fixture_config(), at::kCPU)->encode(image);
  std::vector<NamedTensor> tensors = stored_tensors();
  const bool prefixed = tensors.front().name.starts_with("vision_model.");
  std::erase_if(tensors, [](const NamedTensor& n) { return n.name.find("head.") != std::string::npos; });
  for (NamedTensor& named : tensors) named.name = prefixed ? named.name.substr(13) : "vision_model." + named.name;
  fs::create_directories(temp.path() + "/image_encoder");
  fs::copy_file(kFixture + "/image_encoder/config.json", temp.path() + "/image_encoder/config.json");
  write_safetensors(temp.path() + "/image_encoder/model.safetensors", tensors);
  CHECK(at::equal(make_image_encoder({"siglip", temp.path()}, at::kCPU)->encode(image), reference));
}

TEST_CASE("siglip: what is no SigLIP vision model is refused with a reason") {
  const test::TemporaryFolder temp;
  const auto refusal = [](const ImageEncoderConfig& config) {
    return test::refusal_of([&] { make_image_encoder(config, at::kCPU); });
  };
  CHECK(test::contains(refusal({"siglip", ""}), "sigclip_vision_patch14_384"));
  CHECK(test::contains(refusal({"siglip", "/nowhere"}), "image_encoder.weights"));
  CHECK(test::contains(refusal({"siglip", test::fixtures() + "/model/clip/image_encoder"}), "no class embedding"));
  std::vector<NamedTensor> tensors = stored_tensors();
  const std::string path = temp.path() + "/model.safetensors";
  // A single file has published values: 384 pixels, 27 patches a side, 16 heads.
  write_safetensors(path, tensors);
  CHECK(test::contains(refusal({"siglip", path}), "width that 16 heads divide"));
}
