// HunyuanVideo's text encoders against diffusers' pipeline with transformers' models.
#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "core/config.h"
#include "model/hunyuan_text_fixture.h"
#include "model/text/clip_text_encoder.h"
#include "model/text/llama_encoder.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::model;
namespace fs = std::filesystem;
using nlohmann::json;
using test::hunyuan_case;
using test::hunyuan_config;
using test::hunyuan_expected;
using test::worst;

namespace {

// Two fp32 runs of the same sums in another order.
constexpr double kRounding = 1e-5;

TextEmbedding encode(const TextEncoderConfig& config, const std::vector<std::string>& prompts) {
  return make_text_encoder(config, at::kCPU)->encode(prompts);
}

std::string refusal(const TextEncoderConfig& config) {
  const std::string checked = test::refusal_of([&] { check_text_encoder(config); });
  CHECK(test::refusal_of([&] { make_text_encoder(config, at::kCPU); }) == checked);
  return checked;
}

std::vector<NamedTensor> stored_tensors(const std::string& folder) {
  const WeightFiles files(test::kHunyuanText + "/" + folder, {});
  std::vector<NamedTensor> out;
  for (const auto& [name, entry] : files.entries()) out.push_back({name, files.read(name, at::kFloat, at::kCPU)});
  return out;
}

// A file of LLaMA's tensors under other names, with its config.json in the same folder.
TextEncoderConfig renamed(const test::TemporaryFolder& temp, const std::string& prefix,
                          const std::vector<NamedTensor>& others) {
  std::vector<NamedTensor> tensors = stored_tensors("text_encoder");
  for (NamedTensor& named : tensors) named.name = prefix + named.name;
  tensors.insert(tensors.end(), others.begin(), others.end());
  fs::copy_file(test::kHunyuanText + "/text_encoder/config.json", temp.path() + "/config.json",
                fs::copy_options::overwrite_existing);
  write_safetensors(temp.path() + "/model.safetensors", tensors);
  TextEncoderConfig config = hunyuan_config();
  config.weights = temp.path();
  config.weights_2 = test::kHunyuanText;
  return config;
}

}  // namespace

TEST_CASE("hunyuan: states of captions of 0, 1, 256 and 400 tokens, and others, are those of diffusers' pipeline") {
  const json llama = hunyuan_case("llama");
  const std::vector<std::string> prompts = llama.at("prompts");
  const TextEmbedding found = encode(hunyuan_config(), prompts);
  CHECK(found.tokens_BLE.sizes() == at::IntArrayRef({int64_t(prompts.size()), 256, 24}));
  CHECK(found.tokens_BLE.scalar_type() == at::kFloat);
  for (size_t n = 0; n < prompts.size(); ++n) {
    INFO(n << ": " << prompts[n]);
    const at::Tensor expected_XE = hunyuan_expected("llama", n);
    CHECK(found.length_B[int64_t(n)].item<int64_t>() == int64_t(llama.at("lengths").at(n)));
    CHECK(worst(found.tokens_BLE[int64_t(n)].slice(0, 0, expected_XE.size(0)), expected_XE) < kRounding);
    CHECK(found.tokens_BLE[int64_t(n)].slice(0, expected_XE.size(0)).eq(0).all().item<bool>());
  }
}

TEST_CASE("hunyuan: pooled vectors are those of diffusers' pipeline") {
  const std::vector<std::string> prompts = hunyuan_case("clip").at("prompts");
  const at::Tensor pooled_BP = encode(hunyuan_config(), prompts).pooled_BP;
  CHECK(pooled_BP.sizes() == at::IntArrayRef({int64_t(prompts.size()), 24}));
  for (size_t n = 0; n < prompts.size(); ++n) {
    INFO(n << ": " << prompts[n]);
    CHECK(worst(pooled_BP[int64_t(n)], hunyuan_expected("clip", n)) < kRounding);
  }
}

TEST_CASE("hunyuan: a prompt's numbers do not depend on the others, and equal prompts are computed once") {
  const auto encoder = make_text_encoder(hunyuan_config(), at::kCPU);
  const TextEmbedding both = encoder->encode({"a cat", "", "a cat"}), alone = encoder->encode({"a cat"});
  for (const int64_t b : {0, 2}) {
    CHECK(at::equal(both.tokens_BLE[b], alone.tokens_BLE[0]));
    CHECK(at::equal(both.pooled_BP[b], alone.pooled_BP[0]));
    CHECK(both.length_B[b].item<int64_t>() == alone.length_B[0].item<int64_t>());
  }
}

TEST_CASE("hunyuan: fewer tokens are the first of them") {
  TextEncoderConfig config = hunyuan_config();
  const at::Tensor whole = encode(config, {"A cat sits on a mat."}).tokens_BLE;
  config.max_tokens = 4;
  const TextEmbedding cut = encode(config, {"A cat sits on a mat."});
  CHECK(cut.tokens_BLE.size(1) == 4);
  CHECK(cut.length_B[0].item<int64_t>() == 4);
  CHECK(worst(cut.tokens_BLE, whole.narrow(1, 0, 4)) < kRounding);
}

TEST_CASE("hunyuan: names of vision-language models and of ComfyUI's files give the same states") {
  const test::TemporaryFolder temp;
  const std::vector<std::string> prompts = {"A cat sits on a mat."};
  const TextEmbedding reference = encode(hunyuan_config(), prompts);
  const std::vector<NamedTensor> others = {
      {"lm_head.weight", at::zeros({3, 24})},
      {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", at::zeros({2})},
      {"multi_modal_projector.linear_1.weight", at::zeros({2, 2})}};
  for (const char* prefix : {"", "model.", "language_model.model.", "model.language_model."}) {
    INFO(prefix);
    CHECK(at::equal(encode(renamed(temp, prefix, others), prompts).tokens_BLE, reference.tokens_BLE));
  }
}

TEST_CASE("hunyuan: CLIP's file may be a single one, with a projection and without a prefix") {
  const test::TemporaryFolder temp;
  std::vector<NamedTensor> tensors = stored_tensors("text_encoder_2");
  TextEncoderConfig config = hunyuan_config();
  const at::Tensor reference = encode(config, {"a cat"}).pooled_BP;
  const bool prefixed = tensors.front().name.starts_with("text_model.");
  for (NamedTensor& named : tensors)
    named.name = prefixed ? named.name.substr(std::string("text_model.").size()) : "text_model." + named.name;
  tensors.push_back({"text_projection.weight", at::zeros({24, 24})});
  tensors.push_back({"logit_scale", at::zeros({})});
  fs::copy_file(test::kHunyuanText + "/text_encoder_2/config.json", temp.path() + "/config.json");
  write_safetensors(temp.path() + "/model.safetensors", tensors);
  config.weights_2 = temp.path();
  CHECK(at::equal(encode(config, {"a cat"}).pooled_BP, reference));
}

TEST_CASE("hunyuan: a diffusers folder alone is enough, and its parts are found from text_encoder/") {
  const test::TemporaryFolder temp;
  for (const char* folder : {"text_encoder", "text_encoder_2"})
    fs::copy(test::kHunyuanText + "/" + folder, temp.path() + "/" + folder);
  fs::copy(test::kBpe + "/llama", temp.path() + "/tokenizer");
  fs::copy(test::kBpe + "/clip", temp.path() + "/tokenizer_2");
  const TextEmbedding reference = encode(hunyuan_config(), {"a cat"});
  TextEncoderConfig config = hunyuan_config();
  config.tokenizer.clear();
  config.tokenizer_2.clear();
  for (const std::string& place : {temp.path(), temp.path() + "/text_encoder"}) {
    config.weights = place;
    CHECK(check_text_encoder(config) == 24);
    const TextEmbedding found = encode(config, {"a cat"});
    CHECK(at::equal(found.tokens_BLE, reference.tokens_BLE));
    CHECK(at::equal(found.pooled_BP, reference.pooled_BP));
    // Two shards and an index's config.json, tokenizer.json; CLIP's weights and config.json, vocab.json and merges.txt.
    CHECK(text_encoder_files(config).size() == 2 + 1 + 1 + 2 + 2);
  }
}

TEST_CASE("hunyuan: everything that is missing is said at once") {
  TextEncoderConfig config = hunyuan_config();
  config.weights.clear();
  const std::string nothing = refusal(config);
  CHECK(test::contains(nothing, "text.weights: expected the LLaMA-3 8B language model of HunyuanVideo"));
  CHECK(test::contains(nothing, "text.weights_2: expected CLIP-L's text model"));
  config.weights = "/nowhere";
  config.weights_2 = "/no/clip";
  CHECK(test::contains(refusal(config), "found nothing at '/nowhere'"));
  CHECK(test::contains(refusal(config), "found nothing at '/no/clip'"));
  config = hunyuan_config();
  config.tokenizer.clear();
  config.tokenizer_2.clear();
  CHECK(test::contains(refusal(config), "text.tokenizer: expected a tokenizer's folder or file"));
  CHECK(test::contains(refusal(config), "text.tokenizer_2: expected a tokenizer's folder or file"));
}

TEST_CASE("hunyuan: weights and tokenizers of other models are refused") {
  TextEncoderConfig config = hunyuan_config();
  SECTION("CLIP in LLaMA's place") {
    config.weights = test::kHunyuanText + "/text_encoder_2";
    CHECK(test::contains(refusal(config), "expected the LLaMA-3 8B language model"));
  }
  SECTION("LLaMA in CLIP's place") {
    config.weights_2 = test::kHunyuanText + "/text_encoder";
    CHECK(test::contains(refusal(config), "text.weights_2: expected a CLIP text model"));
  }
  SECTION("Qwen2.5's, which has biases") {
    config.weights = test::kHunyuanText + "/qwen";
    config.weights_2 = test::kHunyuanText;
    CHECK(test::contains(refusal(config), "found a tensor 'layers.0.self_attn.k_proj.bias', which it does not have"));
  }
  SECTION("Qwen2.5's tokenizer") {
    config.tokenizer = test::kBpe + "/qwen";
    CHECK(test::contains(refusal(config), "expected the vocabulary of LLaMA-3 with a token '<|begin_of_text|>'"));
  }
  SECTION("LLaMA's tokenizer for CLIP") {
    config.tokenizer_2 = test::kBpe + "/llama";
    CHECK(test::contains(refusal(config), "(each byte is a token)"));
  }
  SECTION("a tokenizer of more words than the encoder") {
    const test::TemporaryFolder temp;
    std::vector<NamedTensor> tensors = stored_tensors("text_encoder");
    for (NamedTensor& named : tensors)
      if (named.name == "embed_tokens.weight") named.tensor = named.tensor.slice(0, 0, 900).clone();
    fs::copy_file(test::kHunyuanText + "/text_encoder/config.json", temp.path() + "/config.json");
    write_safetensors(temp.path() + "/model.safetensors", tensors);
    config.weights = temp.path();
    config.weights_2 = test::kHunyuanText;
    CHECK(test::contains(refusal(config), "text.tokenizer: expected at most the 900 words"));
  }
}

TEST_CASE("hunyuan: missing and misshapen tensors are named") {
  const test::TemporaryFolder temp;
  std::vector<NamedTensor> tensors = stored_tensors("text_encoder");
  SECTION("missing") {
    std::erase_if(tensors, [](const NamedTensor& n) { return n.name == "layers.4.mlp.up_proj.weight"; });
    fs::copy_file(test::kHunyuanText + "/text_encoder/config.json", temp.path() + "/config.json");
    write_safetensors(temp.path() + "/model.safetensors", tensors);
    TextEncoderConfig config = hunyuan_config();
    config.weights = temp.path();
    CHECK(test::contains(refusal(config), "expected a tensor 'layers.4.mlp.up_proj.weight'"));
  }
  SECTION("misshapen") {
    for (NamedTensor& named : tensors)
      if (named.name == "layers.3.self_attn.o_proj.weight") named.tensor = at::zeros({24, 47});
    fs::copy_file(test::kHunyuanText + "/text_encoder/config.json", temp.path() + "/config.json");
    write_safetensors(temp.path() + "/model.safetensors", tensors);
    TextEncoderConfig config = hunyuan_config();
    config.weights = temp.path();
    CHECK(test::contains(refusal(config), "'layers.3.self_attn.o_proj.weight' of shape 24x48"));
  }
}

TEST_CASE("hunyuan: bf16 weights give the states of bf16 arithmetic, CLIP stays in fp32") {
  TextEncoderConfig config = hunyuan_config();
  config.dtype = "bf16";
  const TextEmbedding found = encode(config, {"A cat sits on a mat."}),
                      exact = encode(hunyuan_config(), {"A cat sits on a mat."});
  // Three layers of about ten roundings to 8 bits.
  CHECK(worst(found.tokens_BLE, exact.tokens_BLE) < 30.0 / 256);
  CHECK(worst(found.tokens_BLE, exact.tokens_BLE) > 0);
  CHECK(at::equal(found.pooled_BP, exact.pooled_BP));
}

TEST_CASE("published numbers of tokens belong to the type, and second encoders to those that have one") {
  TextEncoderConfig config;
  CHECK(published_max_tokens(config) == 512);
  config.type = "umt5";
  CHECK(published_max_tokens(config) == 512);
  config.type = "hunyuan";
  CHECK(published_max_tokens(config) == 256);
  const auto parse = [](const std::string& text) {
    TextEncoderConfig parsed;
    parse_config(text, "test", {}, [&](ConfigVisitor& v) { parsed.visit(v); });
    return parsed;
  };
  CHECK(parse("{type: hunyuan, weights_2: x}").weights_2 == "x");
  CHECK(test::contains(test::refusal_of([&] { parse("{type: umt5, weights_2: x}"); }), "weights_2"));
}
