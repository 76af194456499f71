#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "model/text/t5_encoder.h"
#include "model/text_encoder.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/messages.h"
#include "umt5_fixture.h"

using namespace vmoba;
using namespace vmoba::model;
namespace fs = std::filesystem;

namespace {

TextEncoderConfig fixture_config() {
  TextEncoderConfig config;
  config.type = "umt5";
  config.weights = test::kUmt5Fixture + "/text_encoder";
  config.dtype = "fp32";
  config.max_tokens = test::prompt_cases().max_tokens;
  return config;
}

at::Tensor expected_embeds() {
  return SafetensorsFile(test::kUmt5Fixture + "/expected.safetensors").tensor("prompt_embeds").clone();
}

at::Tensor encode_fixture(const TextEncoderConfig& config) {
  return make_text_encoder(config, at::kCPU)->encode(test::prompt_cases().encoded).tokens_BLE;
}

double worst(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

std::vector<NamedTensor> stored_tensors() {
  const WeightFiles files(test::kUmt5Fixture + "/text_encoder", umt5_layouts());
  std::vector<NamedTensor> out;
  for (const auto& [name, entry] : files.entries()) out.push_back({name, files.read(name, at::kFloat, at::kCPU)});
  return out;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

// The names of Wan-Video/Wan2.1 wan/modules/t5.py.
std::string original_name(std::string name) {
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"shared.", "token_embedding."},
           {"encoder.final_layer_norm.", "norm."},
           {"encoder.block.", "blocks."},
           {"layer.0.layer_norm", "norm1"},
           {"layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"},
           {"layer.0.SelfAttention", "attn"},
           {"layer.1.layer_norm", "norm2"},
           {"layer.1.DenseReluDense.wi_0", "ffn.gate.0"},
           {"layer.1.DenseReluDense.wi_1", "ffn.fc1"},
           {"layer.1.DenseReluDense.wo", "ffn.fc2"}})
    name = replaced(name, from, to);
  return name;
}

std::string written(const std::string& name, const std::vector<NamedTensor>& tensors) {
  const fs::path folder = fs::temp_directory_path() / "vmoba_umt5";
  fs::create_directories(folder);
  const std::string path = (folder / (name + ".safetensors")).string();
  write_safetensors(path, tensors);
  return path;
}

NamedTensor tokenizer_tensor() {
  const std::string model = read_file(test::kUmt5Fixture + "/spiece.model", 1 << 20, "the fixture");
  const at::Tensor bytes = at::empty({int64_t(model.size())}, at::kByte);
  std::copy(model.begin(), model.end(), bytes.data_ptr<uint8_t>());
  return {"spiece_model", bytes};
}

}  // namespace

TEST_CASE("embeddings equal those of transformers' UMT5EncoderModel as Wan's pipeline cuts and pads them") {
  const at::Tensor found_BLE = encode_fixture(fixture_config()), expected_BLE = expected_embeds();
  REQUIRE(found_BLE.sizes() == expected_BLE.sizes());
  CHECK(found_BLE.scalar_type() == at::kFloat);
  CHECK(worst(found_BLE, expected_BLE) < 1e-5);
  const at::Tensor length_B =
      make_text_encoder(fixture_config(), at::kCPU)->encode(test::prompt_cases().encoded).length_B;
  CHECK(at::equal(length_B, expected_BLE.ne(0).any(2).sum(1)));
  // Zeros behind the prompt are exact; the empty prompt is its end token alone.
  CHECK(at::equal(found_BLE.eq(0).all(2), expected_BLE.eq(0).all(2)));
  CHECK(found_BLE[0].ne(0).any(1).sum().item<int64_t>() == 1);
}

TEST_CASE("each layout of a UMT5 encoder gives the same embeddings") {
  const at::Tensor reference = encode_fixture(fixture_config());
  TextEncoderConfig config = fixture_config();
  config.tokenizer = test::kUmt5Fixture + "/spiece.model";
  std::vector<NamedTensor> tensors = stored_tensors();

  SECTION("diffusers' whole model, its encoder one level down") {
    config.weights = test::kUmt5Fixture;
    config.tokenizer.clear();
  }
  SECTION("a file with the tied copy of the embedding") {
    for (const NamedTensor& named : stored_tensors())
      if (named.name == "shared.weight") tensors.push_back({"encoder.embed_tokens.weight", named.tensor});
    config.weights = written("tied", tensors);
  }
  SECTION("the original repository's names") {
    for (NamedTensor& named : tensors) named.name = original_name(named.name);
    config.weights = written("original", tensors);
  }
  SECTION("ComfyUI's file, whose weights are fp16") {
    // The fixture's matrices are bf16 numbers below 2^7, which fp16 holds up to 2^-11 of each.
    for (NamedTensor& named : tensors) named.tensor = named.tensor.to(at::kHalf);
    config.weights = written("comfyui", tensors);
    CHECK(worst(encode_fixture(config), reference) < 2e-2);
    return;
  }
  CHECK(at::equal(encode_fixture(config), reference));
}

TEST_CASE("ComfyUI's fp8_scaled file is read with its scales") {
  std::vector<NamedTensor> tensors, exact;
  for (const NamedTensor& named : stored_tensors()) {
    if (named.tensor.dim() != 2 || !test::contains(named.name, "encoder.block") ||
        test::contains(named.name, "relative_attention_bias")) {
      tensors.push_back(named);
      exact.push_back(named);
      continue;
    }
    const at::Tensor scale = named.tensor.abs().max() / 448;
    const at::Tensor stored = (named.tensor / scale).to(at::kFloat8_e4m3fn);
    tensors.push_back({named.name, stored});
    tensors.push_back({replaced(named.name, ".weight", ".scale_weight"), scale});
    exact.push_back({named.name, stored.to(at::kFloat) * scale});
  }
  tensors.push_back({"scaled_fp8", at::empty({0}, at::kFloat8_e4m3fn)});
  tensors.push_back(tokenizer_tensor());
  TextEncoderConfig config = fixture_config();
  config.weights = written("fp8_scaled", tensors);
  config.tokenizer = test::kUmt5Fixture;
  const std::vector<std::string> prompts = {"A cat sits on a mat."};
  const at::Tensor found = make_text_encoder(config, at::kCPU)->encode(prompts).tokens_BLE;
  config.weights = written("exact", exact);
  CHECK(at::equal(found, make_text_encoder(config, at::kCPU)->encode(prompts).tokens_BLE));
}

TEST_CASE("the tokenizer inside ComfyUI's file is used where none is given") {
  std::vector<NamedTensor> tensors = stored_tensors();
  // UMT5's 300 sentinels need rows of the embedding.
  for (NamedTensor& named : tensors)
    if (named.name == "shared.weight") named.tensor = at::cat({named.tensor, at::zeros({300, named.tensor.size(1)})});
  tensors.push_back(tokenizer_tensor());
  TextEncoderConfig config = fixture_config();
  config.weights = written("embedded", tensors);
  const at::Tensor found = make_text_encoder(config, at::kCPU)->encode({"A cat sits on a mat."}).tokens_BLE;
  CHECK(worst(found[0], expected_embeds()[1]) < 1e-5);
}

TEST_CASE("bf16 weights give the embeddings of bf16 arithmetic") {
  TextEncoderConfig config = fixture_config();
  config.dtype = "bf16";
  const at::Tensor found_BLE = encode_fixture(config), expected_BLE = expected_embeds();
  // Three layers of about ten roundings to 8 bits each, of values whose largest is `top`.
  const double top = expected_BLE.abs().max().item<double>();
  CHECK(worst(found_BLE, expected_BLE) < 30 * top / 256);
  CHECK(worst(found_BLE, expected_BLE) > 0);
  CHECK(at::equal(found_BLE, found_BLE.to(at::kBFloat16).to(at::kFloat)));
}

TEST_CASE("position buckets of near and far keys") {
  // By hand from Raffel et al.: 32 buckets, 16 for each direction, 8 exact, then logarithmic up to 128.
  const at::Tensor bucket_LL = t5_position_buckets(512, 32);
  const auto at_distance = [&](int64_t key_minus_query) {
    return bucket_LL[key_minus_query < 0 ? 511 : 0][key_minus_query < 0 ? 511 + key_minus_query : key_minus_query]
        .item<int64_t>();
  };
  CHECK(at_distance(0) == 0);
  CHECK(at_distance(-7) == 7);
  CHECK(at_distance(7) == 16 + 7);
  CHECK(at_distance(-8) == 8);
  CHECK(at_distance(-11) == 8);  // 8 + 8 * log(11/8) / log(16) = 8.92
  CHECK(at_distance(-12) == 9);  // 9.17
  CHECK(at_distance(-127) == 15);
  CHECK(at_distance(511) == 31);
}

TEST_CASE("headers alone tell the width, and what is wrong with weights or tokenizer") {
  CHECK(check_text_encoder(fixture_config()) == 24);
  const auto refusal = [](const TextEncoderConfig& config) {
    const std::string checked = test::refusal_of([&] { check_text_encoder(config); });
    CHECK(test::refusal_of([&] { make_text_encoder(config, at::kCPU); }) == checked);
    return checked;
  };
  TextEncoderConfig config = fixture_config();
  config.weights.clear();
  CHECK(test::contains(refusal(config), "text.weights"));
  config.weights = "/nowhere/model";
  CHECK(test::contains(refusal(config), "found nothing at '/nowhere/model'"));
  config.weights = (fs::temp_directory_path() / "vmoba_umt5.pth").string();
  std::ofstream(config.weights) << "x";
  CHECK(test::contains(refusal(config), "pickle"));

  config = fixture_config();
  config.tokenizer = test::kUmt5Fixture + "/text_encoder";
  CHECK(test::contains(refusal(config), "spiece.model"));
  config.tokenizer.clear();
  std::vector<NamedTensor> tensors = stored_tensors();
  config.weights = written("no_tokenizer", tensors);
  CHECK(test::contains(refusal(config), "none lies near"));
  config.tokenizer = test::kUmt5Fixture;

  SECTION("missing") {
    std::erase_if(tensors,
                  [](const NamedTensor& n) { return n.name == "encoder.block.1.layer.0.SelfAttention.k.weight"; });
    config.weights = written("missing", tensors);
    CHECK(test::contains(refusal(config), "encoder.block.1.layer.0.SelfAttention.k.weight"));
  }
  SECTION("misshapen") {
    for (NamedTensor& n : tensors)
      if (n.name == "encoder.block.2.layer.1.DenseReluDense.wo.weight") n.tensor = at::zeros({24, 41});
    config.weights = written("misshapen", tensors);
    CHECK(test::contains(refusal(config), "24x40"));
  }
  SECTION("a decoder, too") {
    tensors.push_back({"decoder.block.0.layer.0.SelfAttention.q.weight", at::zeros({1})});
    config.weights = written("decoder", tensors);
    CHECK(test::contains(refusal(config), "expected the 32 tensors"));
  }
  SECTION("another model") {
    config.weights = written("other", {{"x", at::zeros({1})}});
    CHECK(test::contains(refusal(config), "such as 'x'"));
  }
  SECTION("a tokenizer with more words than the encoder") {
    for (NamedTensor& n : tensors)
      if (n.name == "shared.weight") n.tensor = n.tensor.narrow(0, 0, 544).clone();
    config.weights = written("small", tensors);
    CHECK(test::contains(refusal(config), "at most the 544 words"));
  }
}

TEST_CASE("weights may not be asked onto a GPU that the run does not use") {
  TextEncoderConfig config = fixture_config();
  config.device = "cuda";
  CHECK(test::contains(test::refusal_of([&] { make_text_encoder(config, at::kCPU); }), "text.device"));
  config.device = "cpu";
  CHECK(make_text_encoder(config, at::kCPU)->dim() == 24);
}
