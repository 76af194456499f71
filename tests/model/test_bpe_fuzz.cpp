// Random damage to vocabularies: an Error of what the user gave or a vocabulary that encodes, never a crash or a hang.
#include "core/check.h"
#include "core/file.h"
#include "core/random.h"
#include "model/bpe_fixture.h"
#include "model/text/bpe_tokenizer.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::model;

namespace {

std::string fixture_text(const std::string& file) {
  return read_file(test::kBpeFixture + "/" + file, 1 << 20, "the fixture");
}

void damage(std::string& bytes, RandomStream& random) {
  static const std::string kSyntax = "{}[]\":,0123456789-eE.\\u \n=+/#";
  const size_t at = random.below(bytes.size());
  switch (random.below(5)) {
    case 0:
      bytes[at] = char(random.below(256));
      break;
    case 1:
      bytes[at] = kSyntax[random.below(kSyntax.size())];
      break;
    case 2:
      bytes.resize(at);
      break;
    case 3:
      bytes.erase(at, 1 + random.below(8));
      break;
    default:
      bytes.insert(at, bytes.substr(random.below(bytes.size()), 1 + random.below(40)));
      break;
  }
}

// Returns how many damaged vocabularies were accepted.
template <typename Read>
int64_t run_cases(const char* stream, int64_t cases, const std::string& whole, const BpeRules& rules,
                  const Read& read) {
  int64_t accepted = 0;
  for (int64_t i = 0; i < cases; ++i) {
    RandomStream random(1, stream, uint64_t(i));
    std::string bytes = whole;
    for (uint64_t n = 1 + random.below(3); n > 0 && !bytes.empty(); --n) damage(bytes, random);
    try {
      const BpeTokenizer tokenizer(read(bytes), rules);
      ++accepted;
      for (const int64_t id : tokenizer.encode(test::random_string(uint64_t(i))))
        if (id < 0 || id >= tokenizer.vocabulary_size()) FAIL("an id outside the vocabulary: " << id);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInput) FAIL("not an input error: " << error.what());
    }
  }
  return accepted;
}

void run_all(int64_t cases) {
  const BpeRules llama = llama3_rules(), clip = clip_rules();
  const std::string vocab = fixture_text("clip/vocab.json"), merges = fixture_text("clip/merges.txt");
  CHECK(run_cases("bpe-json", cases, fixture_text("llama/tokenizer.json"), llama,
                  [&](const std::string& text) { return read_bpe_json(text, "memory", llama.naming); }) > 0);
  CHECK(run_cases("bpe-ranks", cases, fixture_text("llama/tokenizer.model"), llama,
                  [&](const std::string& text) { return read_bpe_ranks(text, "memory", llama.naming); }) > 0);
  CHECK(run_cases("bpe-vocab", cases, vocab, clip,
                  [&](const std::string& text) { return read_bpe_pair(text, merges, "", "memory", clip.naming); }) > 0);
  CHECK(run_cases("bpe-merges", cases, merges, clip,
                  [&](const std::string& text) { return read_bpe_pair(vocab, text, "", "memory", clip.naming); }) > 0);
}

}  // namespace

TEST_CASE("damaged vocabularies are refused or encode") {
  run_all(100);
}

TEST_CASE("damaged vocabularies are refused or encode, at length", "[fuzz]") {
  run_all(20000);
}
