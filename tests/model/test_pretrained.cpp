#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "model/dit.h"
#include "model/wan_fixture.h"
#include "support/messages.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;

const char* kFile = "diffusion_pytorch_model.safetensors";

std::vector<NamedTensor> fixture_weights() {
  const SafetensorsFile file(fixture_path(fmt::format("wan_t2v/{}", kFile)));
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors()) out.push_back({name, file.tensor(name)});
  return out;
}

std::unique_ptr<Dit> load(const fs::path& path) {
  ModelConfig config = wan_t2v_config();
  config.weights = path.string();
  return make_dit(config, full_attention(), 0, at::kCPU);
}

std::string refusal(const fs::path& path) {
  return vmoba::test::refusal_of([&] { load(path); });
}

void check_equal(const Dit& model) {
  const auto expected = fixture_weights();
  REQUIRE(model.parameters().size() == expected.size());
  for (const NamedTensor& named : expected) {
    bool found = false;
    for (const Parameter& parameter : model.parameters()) {
      if (parameter.name == named.name) found = parameter.tensor.detach().equal(named.tensor);
    }
    INFO(named.name);
    CHECK(found);
  }
}

// Two shards and an index, as diffusers' save_pretrained(max_shard_size=...) writes them.
void write_shards(const fs::path& folder) {
  std::vector<NamedTensor> halves[2];
  std::string map;
  for (const NamedTensor& named : fixture_weights()) {
    const int half = named.name.starts_with("blocks.1") ? 1 : 0;
    halves[half].push_back(named);
    map += fmt::format(R"({}"{}":"part-{}.safetensors")", map.empty() ? "" : ",", named.name, half);
  }
  for (int half = 0; half < 2; ++half) {
    write_safetensors(folder / fmt::format("part-{}.safetensors", half), halves[half]);
  }
  std::ofstream(folder / fmt::format("{}.index.json", kFile)) << "{\"metadata\":{},\"weight_map\":{" << map << "}}";
}

}  // namespace

TEST_CASE("a folder, a pipeline folder, shards and a single file load alike") {
  check_equal(*load(fixture_path("wan_t2v")));
  check_equal(*load(fixture_path(fmt::format("wan_t2v/{}", kFile))));
  const vmoba::test::TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  fs::create_directories(folder / "transformer");
  write_shards(folder / "transformer");
  check_equal(*load(folder));
  check_equal(*load(folder / "transformer"));
}

TEST_CASE("half-precision weights become fp32 masters") {
  const vmoba::test::TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  std::vector<NamedTensor> weights = fixture_weights();
  for (NamedTensor& named : weights) named.tensor = named.tensor.to(at::kBFloat16);
  write_safetensors(folder / kFile, weights);
  const auto model = load(folder);
  for (const Parameter& parameter : model->parameters()) CHECK(parameter.tensor.scalar_type() == at::kFloat);
}

TEST_CASE("missing, extra and misshapen tensors are named") {
  const vmoba::test::TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  std::vector<NamedTensor> weights = fixture_weights();
  for (NamedTensor& named : weights) {
    if (named.name == "proj_out.bias") named.name = "proj_out.bais";
    if (named.name == "patch_embedding.bias") named.tensor = at::zeros({41});
    if (named.name == "proj_out.weight") named.tensor = named.tensor.to(at::kInt);
  }
  write_safetensors(folder / kFile, weights);
  const std::string message = refusal(folder);
  CHECK(contains(message, "missing: 1 (proj_out.bias)"));
  CHECK(contains(message, "unknown: 1 (proj_out.bais)"));
  CHECK(contains(message, "patch_embedding.bias: expected 40, found Float 41"));
  CHECK(contains(message, "proj_out.weight: expected 16x40, found Int 16x40"));
}

TEST_CASE("weights can be checked without loading them") {
  ModelConfig config = wan_t2v_config();
  CHECK_NOTHROW(check_weights(config));
  config.layers += 1;
  CHECK_THROWS_AS(check_weights(config), vmoba::Error);
  config.weights.clear();
  CHECK_NOTHROW(check_weights(config));
}

TEST_CASE("a config.json that disagrees is refused with key and values") {
  ModelConfig config = wan_t2v_config();
  config.heads = 4;  // the same shapes, another model
  config.head_dim = 10;
  try {
    make_dit(config, full_attention(), 0, at::kCPU);
    FAIL("accepted");
  } catch (const vmoba::Error& error) {
    CHECK(contains(error.what(), "expected attention_head_dim 10"));
    CHECK(contains(error.what(), "found 20"));
  }
}

TEST_CASE("LoRA files and damaged indices are refused by name") {
  const vmoba::test::TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  const fs::path index = folder / fmt::format("{}.index.json", kFile);
  CHECK(contains(refusal(folder / "none"), "found nothing"));
  CHECK(contains(refusal(folder / "none"), "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"));
  CHECK(contains(refusal(folder), "found neither"));
  const auto with_index = [&](const std::string& text) {
    std::ofstream(index) << text;
    return refusal(folder);
  };
  CHECK(contains(with_index("{"), "expected JSON in"));
  CHECK(contains(with_index("[]"), "JSON object"));
  CHECK(contains(with_index("{}"), "weight_map"));
  CHECK(contains(with_index(R"({"weight_map":{"a":1}})"), "file name for 'a'"));
  CHECK(contains(with_index(R"({"weight_map":{"a":"../x.safetensors"}})"), "file name for 'a'"));
  CHECK(contains(with_index(R"({"weight_map":{"a":"x.safetensors"}})"), "x.safetensors"));
  write_safetensors(folder / "x.safetensors", {{"a", at::zeros({1})}});
  write_safetensors(folder / "y.safetensors", {{"a", at::zeros({1})}});
  CHECK(contains(with_index(R"({"weight_map":{"a":"x.safetensors","b":"y.safetensors"}})"), "'a' twice"));
  const auto with_name = [&](const std::string& name) {
    write_safetensors(folder / "z.safetensors", {{name, at::zeros({1})}});
    return refusal(folder / "z.safetensors");
  };
  CHECK(contains(with_name("transformer.blocks.0.attn1.to_q.lora_A.weight"), "LoRA layout"));
}
