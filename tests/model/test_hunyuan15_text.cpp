// HunyuanVideo 1.5's text encoders against diffusers' pipeline with transformers' models.
#include <ATen/ATen.h>

#include <filesystem>

#include "model/hunyuan_text_fixture.h"
#include "model/text/bpe_tokenizer.h"
#include "model/text/glyph_text.h"
#include "model/weights/weight_files.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::model;
namespace fs = std::filesystem;
using nlohmann::json;
using test::hunyuan_case;
using test::hunyuan_expected;
using test::worst;

namespace {

// Two fp32 runs of the same sums in another order.
constexpr double kRounding = 1e-5;

TextEncoderConfig fixture_config() {
  TextEncoderConfig config;
  config.type = "hunyuan_15";
  config.weights = test::kHunyuanText + "/qwen";
  config.weights_2 = test::kHunyuanText + "/byt5";
  config.tokenizer = test::kBpe + "/qwen";
  config.dtype = "fp32";
  config.max_tokens = hunyuan_case("qwen").at("max_tokens");
  return config;
}

std::string refusal(const TextEncoderConfig& config) {
  const std::string checked = test::refusal_of([&] { check_text_encoder(config); });
  CHECK(test::refusal_of([&] { make_text_encoder(config, at::kCPU); }) == checked);
  return checked;
}

}  // namespace

TEST_CASE("hunyuan_15: states of captions of 0, 1, 295 and 500 tokens, and others, are those of diffusers' pipeline") {
  const json qwen = hunyuan_case("qwen");
  const std::vector<std::string> prompts = qwen.at("prompts");
  const TextEmbedding found = make_text_encoder(fixture_config(), at::kCPU)->encode(prompts);
  CHECK(found.tokens_BLE.sizes() == at::IntArrayRef({int64_t(prompts.size()), 300, 24}));
  CHECK_FALSE(found.pooled_BP.defined());
  for (size_t n = 0; n < prompts.size(); ++n) {
    INFO(n << ": " << prompts[n]);
    const at::Tensor expected_XE = hunyuan_expected("qwen", n);
    CHECK(found.length_B[int64_t(n)].item<int64_t>() == int64_t(qwen.at("lengths").at(n)));
    CHECK(worst(found.tokens_BLE[int64_t(n)].slice(0, 0, expected_XE.size(0)), expected_XE) < kRounding);
    CHECK(found.tokens_BLE[int64_t(n)].slice(0, expected_XE.size(0)).eq(0).all().item<bool>());
  }
}

TEST_CASE("hunyuan_15: glyph states are those of diffusers' pipeline, and none where nothing is quoted") {
  const json byt5 = hunyuan_case("byt5");
  const std::vector<std::string> prompts = byt5.at("prompts");
  const auto encoder = make_text_encoder(fixture_config(), at::kCPU);
  const TextEmbedding found = encoder->encode(prompts);
  CHECK(found.glyphs_BJU.sizes() == at::IntArrayRef({int64_t(prompts.size()), 256, 20}));
  for (size_t n = 0; n < prompts.size(); ++n) {
    INFO(n << ": " << prompts[n]);
    const at::Tensor expected_JU = hunyuan_expected("byt5", n);
    const int64_t length = byt5.at("lengths").at(n);
    CHECK(found.glyph_length_B[int64_t(n)].item<int64_t>() == length);
    CHECK(found.glyphs_BJU[int64_t(n)].slice(0, length).eq(0).all().item<bool>());
    if (length > 0) CHECK(worst(found.glyphs_BJU[int64_t(n)].slice(0, 0, length), expected_JU) < kRounding);
  }
  const TextEmbedding none = encoder->encode({"nothing", ""});
  CHECK(none.glyphs_BJU.sizes() == at::IntArrayRef({2, 0, 20}));
  CHECK(none.glyph_length_B.eq(0).all().item<bool>());
}

TEST_CASE("quoted pieces of a prompt") {
  using Pieces = std::vector<std::string>;
  CHECK(quoted_pieces("") == Pieces{});
  CHECK(quoted_pieces("a 'single' one, and it's none") == Pieces{});
  CHECK(quoted_pieces("says \"OPEN\"") == Pieces{"OPEN"});
  CHECK(quoted_pieces("“curly” and \"straight\"") == Pieces{"curly", "straight"});
  CHECK(quoted_pieces("\"b\" \"a\" \"b\"") == Pieces{"b", "a"});
  CHECK(quoted_pieces("\"\"") == Pieces{""});
  CHECK(quoted_pieces("an \"unpaired") == Pieces{});
  CHECK(quoted_pieces("over \"a\nfeed\" here") == Pieces{});
  CHECK(quoted_pieces("“one\" two\"") == Pieces{" two"});
  CHECK(quoted_pieces("\"“in”\" “x”") == Pieces{"“in”", "x"});
  CHECK(glyph_text("\"a\" then \"\"") == "Text \"a\". Text \"\". ");
  CHECK(glyph_text("nothing").empty());
}

TEST_CASE("ids of ByT5 are bytes and an end token") {
  CHECK(byt5_ids("", 8) == std::vector<int64_t>{1});
  CHECK(byt5_ids("Ab", 8) == std::vector<int64_t>{68, 101, 1});
  CHECK(byt5_ids("é", 8) == std::vector<int64_t>{0xC3 + 3, 0xA9 + 3, 1});
  CHECK(byt5_ids("\xFF", 8) == std::vector<int64_t>{0xEF + 3, 0xBF + 3, 0xBD + 3, 1});
  CHECK(byt5_ids("abcdef", 4) == std::vector<int64_t>{100, 101, 102, 1});
}

TEST_CASE("hunyuan_15: the template's blanks and line feeds are the published ones") {
  // By their bytes: 9 blanks before each of the five numbers.
  const BpeTokenizer tokenizer = BpeTokenizer::load(test::kBpe + "/qwen", "tokenizer", qwen2_rules(), "text.tokenizer");
  CHECK(int64_t(hunyuan_case("qwen").at("crop")) > 0);
  CHECK(tokenizer.encode("<|im_start|>").size() == 1);
  CHECK(published_max_tokens(fixture_config()) == 1000);
}

TEST_CASE("hunyuan_15: a diffusers folder alone is enough; a glyph encoder of a training's checkpoint is read") {
  const test::TemporaryFolder temp;
  fs::copy(test::kHunyuanText + "/qwen", temp.path() + "/text_encoder");
  fs::copy(test::kHunyuanText + "/byt5", temp.path() + "/text_encoder_2");
  fs::copy(test::kBpe + "/qwen", temp.path() + "/tokenizer");
  TextEncoderConfig config = fixture_config();
  const TextEmbedding reference = make_text_encoder(config, at::kCPU)->encode({"a \"cat\""});
  config.weights = temp.path();
  config.weights_2.clear();
  config.tokenizer.clear();
  CHECK(check_text_encoder(config) == 24);
  CHECK(at::equal(make_text_encoder(config, at::kCPU)->encode({"a \"cat\""}).glyphs_BJU, reference.glyphs_BJU));
  // Two shards and a config.json, three of the tokenizer, ByT5's weights and config.json.
  CHECK(text_encoder_files(config).size() == 3 + 3 + 2);

  const WeightFiles files(test::kHunyuanText + "/byt5", {});
  std::vector<NamedTensor> tensors;
  for (const auto& [name, entry] : files.entries())
    tensors.push_back({"module.text_tower." + name, files.read(name, at::kFloat, at::kCPU)});
  config.weights_2 = temp.path() + "/byt5_model.safetensors";
  write_safetensors(config.weights_2, tensors);
  CHECK(at::equal(make_text_encoder(config, at::kCPU)->encode({"a \"cat\""}).glyphs_BJU, reference.glyphs_BJU));
}

TEST_CASE("hunyuan_15: everything that is missing is said at once, and other models are refused") {
  TextEncoderConfig config = fixture_config();
  config.weights.clear();
  config.weights_2.clear();
  CHECK(test::contains(refusal(config), "the Qwen2.5-VL 7B language model of HunyuanVideo 1.5"));
  CHECK(test::contains(refusal(config), "text.weights_2: expected the ByT5 glyph encoder"));
  config = fixture_config();
  config.weights = test::kHunyuanText + "/text_encoder";
  CHECK(test::contains(refusal(config), "expected a tensor 'layers.0.self_attn.q_proj.bias'"));
  config = fixture_config();
  config.weights_2 = test::kHunyuanText + "/text_encoder_2";
  CHECK(test::contains(refusal(config), "text.weights_2: expected a ByT5 encoder"));
  config = fixture_config();
  config.tokenizer = test::kBpe + "/llama";
  CHECK(test::contains(refusal(config), "expected the vocabulary of Qwen2.5 with a token '<|im_start|>'"));
}
