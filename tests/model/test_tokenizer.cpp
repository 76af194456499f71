#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "model/text/sentencepiece_tokenizer.h"
#include "model/text/text_cleaning.h"
#include "support/catch.h"
#include "support/messages.h"
#include "umt5_fixture.h"

using namespace vmoba;
using namespace vmoba::model;
namespace fs = std::filesystem;

namespace {

fs::path empty_folder(const std::string& name) {
  const fs::path folder = fs::temp_directory_path() / ("vmoba_tokenizer_" + name);
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string model_bytes() {
  return read_file(test::kUmt5Fixture + "/spiece.model", 1 << 20, "the fixture");
}

}  // namespace

TEST_CASE("ids equal those of transformers' T5Tokenizer for cleaned prompts") {
  const SentencePieceTokenizer tokenizer = SentencePieceTokenizer::load(test::kUmt5Fixture);
  const test::PromptCases fixture = test::prompt_cases();
  for (const auto& c : fixture.cases) {
    INFO(c.prompt);
    CHECK(tokenizer.encode(c.clean, fixture.max_tokens) == c.ids);
    CHECK(tokenizer.encode(clean_prompt(c.prompt), fixture.max_tokens) == c.ids);
  }
}

TEST_CASE("a prompt is cut so that its end token stays") {
  const SentencePieceTokenizer tokenizer = SentencePieceTokenizer::load(test::kUmt5Fixture);
  const std::string prompt = "A cat sits on a mat.";
  const std::vector<int64_t> whole = tokenizer.encode(prompt, 512);
  for (const int64_t limit : {1, 2, 5}) {
    std::vector<int64_t> cut(whole.begin(), whole.begin() + limit - 1);
    cut.push_back(1);
    CHECK(tokenizer.encode(prompt, limit) == cut);
  }
  CHECK(tokenizer.encode(prompt, int64_t(whole.size())) == whole);
}

TEST_CASE("a tokenizer is found as file, in its folder and one level up") {
  const fs::path folder = empty_folder("found");
  fs::create_directories(folder / "tokenizer");
  for (const char* file : {"spiece.model", "tokenizer_config.json"})
    fs::copy_file(test::kUmt5Fixture + "/" + file, folder / "tokenizer" / file);
  const std::vector<int64_t> ids = SentencePieceTokenizer::load(test::kUmt5Fixture).encode("<extra_id_0> cat", 64);
  for (const fs::path& path : {folder, folder / "tokenizer", folder / "tokenizer" / "spiece.model"})
    CHECK(SentencePieceTokenizer::load(path.string()).encode("<extra_id_0> cat", 64) == ids);
}

TEST_CASE("sentinels follow tokenizer_config.json, and are UMT5's without one") {
  const fs::path folder = empty_folder("sentinels");
  fs::copy_file(test::kUmt5Fixture + "/spiece.model", folder / "spiece.model");
  const auto first_id = [&](const std::string& text) {
    return SentencePieceTokenizer::load(folder.string()).encode(text, 64).front();
  };
  CHECK(first_id("<extra_id_0>") == 515 + 299);
  CHECK(SentencePieceTokenizer::from_bytes(model_bytes(), "memory").vocabulary_size() == 515 + 300);
  std::ofstream(folder / "tokenizer_config.json") << "{}";
  CHECK(first_id("<extra_id_0>") == 515 + 99);
  std::ofstream(folder / "tokenizer_config.json")
      << R"({"extra_ids": 5, "added_tokens_decoder": {"515": {"content": "<one>"}, "600": {"content": "<extra_id_0>"}}})";
  CHECK(first_id("<extra_id_0>") == 600);
  CHECK(first_id("<one>two") == 515);
  CHECK(SentencePieceTokenizer::load(folder.string()).vocabulary_size() == 601);
}

TEST_CASE("what is no SentencePiece model is refused with a reason") {
  const fs::path folder = empty_folder("refused");
  const auto refusal = [&](const fs::path& path) {
    return test::refusal_of([&] { SentencePieceTokenizer::load(path.string()); });
  };
  CHECK(test::contains(refusal(folder / "nowhere"), "found nothing"));
  CHECK(test::contains(refusal(folder), "spiece.model"));
  std::ofstream(folder / "tokenizer.json") << "{}";
  CHECK(test::contains(refusal(folder), "tokenizer.json only"));
  CHECK(test::contains(refusal(folder / "tokenizer.json"), "beside it"));
  std::ofstream(folder / "spiece.model") << "not a model";
  CHECK(test::contains(refusal(folder), "expected a SentencePiece model"));
  std::ofstream(folder / "spiece.model", std::ios::binary) << model_bytes().substr(0, 5000);
  CHECK(test::contains(refusal(folder), "expected a SentencePiece model"));
  std::ofstream(folder / "spiece.model", std::ios::binary) << model_bytes();
  for (const char* config : {"[]", R"({"extra_ids": -1})", R"({"added_tokens_decoder": {"x": {"content": "a"}}})",
                             R"({"added_tokens_decoder": {"7": {"content": ""}}})"}) {
    std::ofstream(folder / "tokenizer_config.json") << config;
    CHECK(test::contains(refusal(folder), "tokenizer_config.json"));
  }
}
