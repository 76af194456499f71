// tests/fixtures/model/bpe, made by scripts/make_tokenizer_fixtures.py with the `tokenizers` package; and the random
// strings that the script draws.
#pragma once
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/text/utf8.h"
#include "support/paths.h"

namespace vmoba::test {

inline const std::string kBpeFixture = test::fixtures() + "/model/bpe";

inline const nlohmann::json& bpe_cases() {
  static const nlohmann::json cases = nlohmann::json::parse(std::ifstream(kBpeFixture + "/cases.json"));
  return cases;
}

// splitmix64
class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t count) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) % count;
  }

 private:
  uint64_t state_;
};

// The script's random_string.
inline std::string random_string(uint64_t number) {
  const nlohmann::json& parts = bpe_cases().at("parts");
  const auto one_of = [&](SplitMix& random, const char* list) {
    return parts.at(list).at(random.below(parts.at(list).size()));
  };
  SplitMix random(number);
  const bool broken = random.below(8) == 0;
  std::string out;
  const auto add_characters = [&](bool several) {
    const nlohmann::json range = one_of(random, "ranges");
    const uint64_t low = range.at(0), high = range.at(1), count = several ? 1 + random.below(5) : 1;
    for (uint64_t i = 0; i < count; ++i)
      out += model::encode_utf8(std::u32string(1, char32_t(low + random.below(high - low + 1))));
  };
  for (uint64_t n = 1 + random.below(10); n > 0; --n) {
    const uint64_t kind = random.below(6);
    if (kind <= 1 || kind == 4) out += one_of(random, "words").get<std::string>();
    if (kind == 2 || kind == 4) out += one_of(random, "blanks").get<std::string>();
    if (kind == 3) add_characters(true);
    if (kind == 5 && broken) out += char(uint8_t(0x80 + random.below(128)));
    if (kind == 5 && !broken) add_characters(false);
  }
  return out;
}

// The script's hash_of.
class IdHash {
 public:
  void add(const std::vector<int64_t>& ids) {
    for (const int64_t id : ids) add(uint32_t(id));
    add(0xFFFFFFFFu);
  }
  uint64_t value() const { return value_; }

 private:
  void add(uint32_t number) {
    for (int byte = 0; byte < 4; ++byte) value_ = (value_ ^ (number >> (8 * byte) & 0xFF)) * 0x100000001B3u;
  }
  uint64_t value_ = 0xCBF29CE484222325u;
};

}  // namespace vmoba::test
