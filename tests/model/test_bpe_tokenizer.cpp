// Byte-level BPE against the `tokenizers` package.
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "model/bpe_fixture.h"
#include "model/text/bpe_tokenizer.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::model;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

BpeRules rules_of(const std::string& kind) {
  return kind == "llama" ? llama3_rules() : kind == "qwen" ? qwen2_rules() : clip_rules();
}

BpeTokenizer fixture_tokenizer(const std::string& kind, const std::string& file = "") {
  return BpeTokenizer::load(test::kBpeFixture + "/" + kind + (file.empty() ? "" : "/" + file), "tokenizer",
                            rules_of(kind), "text.tokenizer");
}

std::string fixture_text(const std::string& file) {
  return read_file(test::kBpeFixture + "/" + file, 1 << 20, "the fixture");
}

void check_hashes(const BpeTokenizer& tokenizer, const std::string& kind) {
  const json& cases = test::bpe_cases();
  const int64_t strings = cases.at("strings"), group = cases.at("group");
  int64_t wrong = 0, first_wrong = -1;
  for (int64_t begin = 0; begin < strings; begin += group) {
    test::IdHash hash;
    for (int64_t n = begin; n < begin + group; ++n) hash.add(tokenizer.encode(test::random_string(uint64_t(n))));
    const std::string expected = cases.at("hashes").at(kind).at(size_t(begin / group));
    if (fmt::format("{:016x}", hash.value()) == expected) continue;
    if (wrong++ == 0) first_wrong = begin;
  }
  INFO(kind << ": first of the groups that differ begins at string " << first_wrong);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("ids of chosen texts are those of the tokenizers package") {
  for (const std::string kind : {"llama", "qwen", "clip"}) {
    const BpeTokenizer tokenizer = fixture_tokenizer(kind);
    for (const json& text : test::bpe_cases().at("texts")) {
      INFO(kind << ": " << text.at("text").dump());
      CHECK(tokenizer.encode(text.at("text")) == text.at(kind).get<std::vector<int64_t>>());
    }
  }
}

TEST_CASE("ids of 12,000 random strings are those of the tokenizers package") {
  CHECK(int64_t(test::bpe_cases().at("strings")) >= 10000);
  for (const std::string kind : {"llama", "qwen", "clip"}) check_hashes(fixture_tokenizer(kind), kind);
}

TEST_CASE("tiktoken's ranks give the ids of tokenizer.json") {
  const BpeTokenizer ranks = fixture_tokenizer("llama", "tokenizer.model");
  check_hashes(ranks, "llama");
  CHECK(ranks.special("<|eot_id|>") == fixture_tokenizer("llama").special("<|eot_id|>"));
  CHECK(ranks.encode("<pad>").size() == 1);  // LLaVA's tokens follow LLaMA's
}

TEST_CASE("merges as strings, as tokenizer.json had them earlier, give the same ids") {
  json file = json::parse(fixture_text("llama/tokenizer.json"));
  for (json& merge : file["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  const BpeRules rules = llama3_rules();
  check_hashes(BpeTokenizer(read_bpe_json(file.dump(), "memory", rules.naming), rules), "llama");
}

TEST_CASE("tokenizer.json made of vocab.json and merges.txt gives the same ids") {
  for (const std::string kind : {"qwen", "clip"}) {
    const BpeTokenizer pair = fixture_tokenizer(kind);
    json file = {{"model", {{"vocab", json::parse(fixture_text(kind + "/vocab.json"))}}}};
    for (const std::string& line : test::lines_of(fixture_text(kind + "/merges.txt")))
      if (!line.starts_with("#version")) file["model"]["merges"].push_back(line);
    for (const std::string& content : rules_of(kind).naming.specials)
      if (kind == "clip" || pair.encode(content).size() == 1)
        file["added_tokens"].push_back({{"id", pair.special(content)}, {"content", content}, {"special", true}});
    check_hashes(BpeTokenizer(read_bpe_json(file.dump(), "memory", rules_of(kind).naming), rules_of(kind)), kind);
  }
}

TEST_CASE("special tokens: without a configuration those of the family, behind the vocabulary") {
  const std::string vocab = fixture_text("qwen/vocab.json"), merges = fixture_text("qwen/merges.txt");
  const BpeRules rules = qwen2_rules();
  const BpeTokenizer tokenizer(read_bpe_pair(vocab, merges, "", "memory", rules.naming), rules);
  const int64_t words = int64_t(json::parse(vocab).size());
  CHECK(tokenizer.special("<|endoftext|>") == words);
  CHECK(tokenizer.special("<|im_end|>") == words + 2);
  CHECK(tokenizer.vocabulary_size() == words + int64_t(rules.naming.specials.size()));
  CHECK(test::contains(test::refusal_of([&] { tokenizer.special("<|eot_id|>"); }), "<|eot_id|>"));
}

TEST_CASE("a token of normalised text is found in any case, one of raw text as it is written") {
  const std::string vocab = fixture_text("clip/vocab.json"), merges = fixture_text("clip/merges.txt");
  const auto ids = [&](bool normalized, const std::string& text) {
    const json config = {{"added_tokens_decoder",
                          {{"1119", {{"content", "<|endoftext|>"}, {"special", true}, {"normalized", normalized}}}}}};
    const BpeRules rules = clip_rules();
    return BpeTokenizer(read_bpe_pair(vocab, merges, config.dump(), "memory", rules.naming), rules).encode(text);
  };
  const std::vector<int64_t> end = {1119};
  CHECK(ids(false, "<|endoftext|>") == end);
  CHECK(ids(true, "<|endoftext|>") == end);
  CHECK(ids(false, "<|ENDOFTEXT|>").size() > 1);
  CHECK(ids(true, "<|ENDOFTEXT|>") == end);
}

TEST_CASE("published special tokens have their published ids") {
  // LLaMA-3: 128000 ranks; Qwen2.5: 151643 words.
  const auto id = [](const BpeRules& rules, int64_t words, const std::string& content) {
    const auto& list = rules.naming.specials;
    return words + std::distance(list.begin(), std::find(list.begin(), list.end(), content));
  };
  const auto llama = [&](const std::string& content) { return id(llama3_rules(), 128000, content); };
  CHECK(llama("<|begin_of_text|>") == 128000);
  CHECK(llama("<|start_header_id|>") == 128006);
  CHECK(llama("<|end_header_id|>") == 128007);
  CHECK(llama("<|eot_id|>") == 128009);
  CHECK(llama("<|reserved_special_token_250|>") == 128255);
  CHECK(llama("<unk>") == 128256);
  CHECK(llama("<pad>") == 128258);
  const auto qwen = [&](const std::string& content) { return id(qwen2_rules(), 151643, content); };
  CHECK(qwen("<|im_start|>") == 151644);
  CHECK(qwen("<|im_end|>") == 151645);
  CHECK(qwen("<tool_call>") == 151657);
}

TEST_CASE("a vocabulary is found as file, in its folder and one level down") {
  const test::TemporaryFolder temp;
  const fs::path folder = fs::path(temp.path()) / "model";
  fs::create_directories(folder / "tokenizer");
  for (const char* file : {"vocab.json", "merges.txt", "tokenizer_config.json"})
    fs::copy_file(test::kBpeFixture + "/qwen/" + file, folder / "tokenizer" / file);
  const std::vector<int64_t> ids = fixture_tokenizer("qwen").encode("<|im_start|>a cat");
  for (const fs::path& path : {folder, folder / "tokenizer", folder / "tokenizer" / "vocab.json"}) {
    CHECK(BpeTokenizer::load(path.string(), "tokenizer", qwen2_rules(), "text.tokenizer").encode("<|im_start|>a cat") ==
          ids);
    CHECK(BpeTokenizer::files(path.string(), "tokenizer", "text.tokenizer").size() == 3);
  }
  const auto refusal = [](const std::string& path) {
    return test::refusal_of([&] { BpeTokenizer::load(path, "tokenizer", llama3_rules(), "text.tokenizer"); });
  };
  CHECK(test::contains(refusal("/nowhere"), "text.tokenizer: expected tokenizer.json"));
  CHECK(test::contains(refusal(temp.path()), "its folder tokenizer/, found none"));
}

TEST_CASE("damaged vocabularies are refused with what is wrong") {
  const BpeNaming naming = qwen2_rules().naming;
  const std::string vocab = fixture_text("qwen/vocab.json"), merges = fixture_text("qwen/merges.txt");
  const auto pair = [&](const std::string& v, const std::string& m, const std::string& c) {
    return test::refusal_of([&] { read_bpe_pair(v, m, c, "x.json", naming); });
  };
  CHECK(test::contains(pair("[]", merges, ""), "expected a vocabulary of tokens and ids"));
  CHECK(test::contains(pair(R"({"a": "b"})", merges, ""), "expected an id of 'a'"));
  CHECK(test::contains(pair(R"({"a": -1})", merges, ""), "found -1 of 'a'"));
  CHECK(test::contains(pair(R"({"a": 1})", merges, ""), "each byte is a token"));
  CHECK(test::contains(pair(vocab, "one", ""), "expected two tokens in merge 0, found 'one'"));
  CHECK(test::contains(pair(vocab, "Ġ 猫", ""), "'猫' in the vocabulary (a merge names it)"));
  CHECK(test::contains(pair(vocab, merges, R"({"added_tokens_decoder": {"x": {}}})"), "found 'x'"));
  CHECK(test::contains(pair(vocab, merges, R"({"added_tokens_decoder": {"7": {"content": "<a>", "lstrip": true}}})"),
                       "expected lstrip false of added token '<a>'"));
  const auto ranks = [&](const std::string& text) {
    return test::refusal_of([&] { read_bpe_ranks(text, "x.model", naming); });
  };
  CHECK(test::contains(ranks(""), "found nothing"));
  CHECK(test::contains(ranks("IQ== 0\nnot base64\n"), "found 'not base64'"));
  CHECK(test::contains(ranks("IQ== 0\n"), "expected a rank of each byte"));
  CHECK(test::contains(ranks("IQ== 99999999999999999999\n"), "found 'IQ== 9999"));
  const auto file = [&](const std::string& text) {
    return test::refusal_of([&] { read_bpe_json(text, "x.json", naming); });
  };
  CHECK(test::contains(file("{"), "x.json"));
  CHECK(test::contains(file("{}"), "'model' not found"));
  CHECK(test::contains(file(R"({"model": {"type": "Unigram"}})"), "expected a BPE model, found Unigram"));
}

TEST_CASE("the file at fault is named: merges, configuration, or a vocabulary of another family") {
  const test::TemporaryFolder temp;
  for (const char* file : {"vocab.json", "merges.txt", "tokenizer_config.json"})
    fs::copy_file(test::kBpeFixture + "/qwen/" + file, temp.path() + "/" + file);
  const auto refusal = [&](const BpeRules& rules) {
    return test::refusal_of([&] { BpeTokenizer::load(temp.path(), "tokenizer", rules, "text.tokenizer"); });
  };
  CHECK(refusal(qwen2_rules()).empty());
  CHECK(test::contains(refusal(llama3_rules()), "text.tokenizer: expected the vocabulary of LLaMA-3"));
  CHECK(test::contains(refusal(llama3_rules()), temp.path() + "/vocab.json"));
  std::ofstream(temp.path() + "/tokenizer_config.json") << "{\"added_tokens_decoder\": {\"x\": 1}}";
  CHECK(test::contains(refusal(qwen2_rules()), temp.path() + "/tokenizer_config.json"));
  std::ofstream(temp.path() + "/merges.txt") << std::string(100'000, 'y') << "\n";
  CHECK(test::contains(refusal(qwen2_rules()), temp.path() + "/merges.txt"));
  CHECK(refusal(qwen2_rules()).size() < 400);
}

TEST_CASE("a text of one endless piece takes little time") {
  const BpeTokenizer tokenizer = fixture_tokenizer("llama");
  CHECK(tokenizer.encode(std::string(1 << 20, 'a')).size() > 0);
  CHECK(tokenizer.encode(std::string(1 << 20, ' ') + "a").size() > 0);
}
