// tests/fixtures/model/umt5, made by scripts/make_text_encoder_fixtures.py from the real packages.
#pragma once
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/paths.h"

namespace vmoba::test {

inline const std::string kUmt5Fixture = test::fixtures() + "/model/umt5";

struct PromptCase {
  std::string prompt, clean;  // clean: diffusers' prompt_clean
  std::vector<int64_t> ids;   // of transformers' T5Tokenizer, cut at max_tokens
};

struct PromptCases {
  int64_t max_tokens = 0;
  std::vector<PromptCase> cases;
  std::vector<std::string> encoded;  // prompts whose embeddings expected.safetensors has
};

inline PromptCases prompt_cases() {
  const nlohmann::json file = nlohmann::json::parse(std::ifstream(kUmt5Fixture + "/cases.json"));
  PromptCases out{file.at("max_tokens"), {}, file.at("encoded")};
  for (const auto& entry : file.at("cases"))
    out.cases.push_back({entry.at("prompt"), entry.at("clean"), entry.at("ids")});
  return out;
}

}  // namespace vmoba::test
