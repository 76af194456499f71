// Mutated and truncated configurations: an error or values, never a crash, a hang or wild memory. The program
// fuzz_readers runs it with sanitizers, too.
#include <chrono>

#include "core/check.h"
#include "core/config.h"
#include "core/every_kind_config.h"
#include "core/random.h"
#include "support/catch.h"

using namespace vmoba;

namespace {

const char* const kSeeds[] = {
    "steps: 12\nrate: 2.5e-3\non: false\nname: \"two \\\"words\\\" # \\u4e2d\"\nsizes: [1, 2, 3]\nweights:\n  - 0.5\n  "
    "- 1\n"
    "words: [a, 'b c', \"d\"]\ninner:\n  mode: fast\n  depth: 3\nitems:\n  - mode: slow\n    depth: 3\n  - {}\n",
    "name: |\n  block\n  text\nwords:\n- >-\n  folded\n  more\n- plain words\n? steps\n: 5\n",
    "{steps: 1, inner: {mode: slow, depth: 1}, items: [{depth: 2}, {mode: fast}], words: [\"\", '', ~]}\n",
};

// Pieces that mean something to a YAML reader.
const char* const kPieces[] = {"&a ",
                               "*a",
                               "<<: ",
                               "- ",
                               "? ",
                               ": ",
                               "[",
                               "]",
                               "{",
                               "}",
                               "|",
                               ">",
                               "'",
                               "\"",
                               "#",
                               "---",
                               "...",
                               "!!",
                               "!x ",
                               "%YAML 1.2\n",
                               "\t",
                               "\r\n",
                               "\\x41",
                               "~",
                               "1e999",
                               "-9223372036854775809",
                               ".nan",
                               "\xff",
                               "\xef\xbb\xbf",
                               "\n",
                               "\n  ",
                               ","};

std::string mutated(const std::string& seed, RandomStream& random) {
  std::string text = seed;
  if (random.below(4) == 0) text.resize(random.below(text.size() + 1));
  for (uint64_t edits = random.below(6); edits > 0; --edits) {
    const size_t at = random.below(text.size() + 1);
    switch (random.below(5)) {
      case 0:
        if (at < text.size()) text[at] = char(random.below(256));
        break;
      case 1:
        text.insert(at, kPieces[random.below(std::size(kPieces))]);
        break;
      case 2:
        text.erase(at, random.below(8));
        break;
      case 3:
        text.insert(at, text.substr(random.below(text.size() + 1), random.below(40)));
        break;
      default:
        text.insert(at, std::string(random.below(40), "[{-? :"[random.below(6)]));
    }
  }
  return text;
}

// Parses; whatever comes out must be an error with words or a configuration that can be written and read again.
void try_one(const std::string& text, const std::vector<std::string>& overrides) {
  test::BigConfig config;
  try {
    parse_config(text, "fuzz", overrides, test::visitor(config));
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kInput || std::string(e.what()).size() < 10 || std::string(e.what()).size() > 2000)
      FAIL("a poor error of " << std::string(e.what()).size() << " bytes: " << e.what() << "\nfor: " << text);
    return;
  }
  const std::string yaml = config_to_yaml(test::visitor(config));
  test::BigConfig again;
  parse_config(yaml, "written", {}, test::visitor(again));
  if (config_to_yaml(test::visitor(again)) != yaml) FAIL("not the same when read again:\n" << yaml);
}

// Returns how many were taken as good configurations.
int fuzz(uint64_t seed, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    RandomStream random(seed, "config_fuzz", uint64_t(i));
    const std::string text = mutated(kSeeds[random.below(std::size(kSeeds))], random);
    std::vector<std::string> overrides;
    if (random.below(8) == 0) overrides.push_back(mutated("inner.depth=[3, x]", random));
    try_one(text, overrides);
  }
  return int(count);
}

}  // namespace

TEST_CASE("100,000 mutated configurations are read or refused") {
  CHECK(fuzz(1, 100000) == 100000);
}

TEST_CASE("every truncation is read or refused") {
  for (const char* seed : kSeeds)
    for (size_t length = 0; length <= std::string(seed).size(); ++length)
      try_one(std::string(seed).substr(0, length), {});
}

TEST_CASE("a megabyte of any one piece is refused or read in bounded time and memory") {
  for (const char* piece : kPieces) {
    std::string text = "words: ";
    while (text.size() + 32 < (1 << 20)) text += piece;
    try_one(text, {});
    text.replace(0, 7, std::string(7, '\n'));
    try_one(text, {});
  }
}

TEST_CASE("millions of mutated configurations", "[fuzz]") {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  for (uint64_t seed = 2; seed < 42 && std::chrono::steady_clock::now() < end; ++seed)
    CHECK(fuzz(seed, 100000) == 100000);
}
